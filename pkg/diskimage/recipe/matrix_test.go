package recipe

import (
	"bytes"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const matrixRecipe = `extends: ok.yaml
flavour: none
vars: {host: a, n: 0}
hostname: "${host}-${n}"
matrix:
  arch: [amd64, arm64]
  flavour: [server, lab]
  host: [x, "y"]
  exclude: [{arch: arm64, flavour: lab}, {flavour: lab, host: y}]
`

func matrixOptions(text string) Options {
	files := fstest.MapFS{"recipe.yaml": {Data: []byte(text)}, "ok.yaml": {Data: []byte(okRecipe)}}
	return Options{
		ReadFile: func(name string) ([]byte, error) { return fs.ReadFile(files, name) },
		Stat:     func(name string) (fs.FileInfo, error) { return fs.Stat(files, name) },
	}
}

func TestMatrixListsCombinationsInOrder(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{matrixRecipe, []string{
			"arch=amd64,flavour=server,host=x", "arch=amd64,flavour=server,host=y", "arch=amd64,flavour=lab,host=x",
			"arch=arm64,flavour=server,host=x", "arch=arm64,flavour=server,host=y"}},
		{"extends: ok.yaml\n", []string{""}},
		{"extends: ok.yaml\nmatrix: {}\n", []string{""}},
		{"extends: ok.yaml\nmatrix: {release: ['2', '1.5']}\n", []string{"release=2", "release=1.5"}},
	} {
		all, err := Matrix("recipe.yaml", matrixOptions(c.text))
		if err != nil {
			t.Errorf("%s%v", c.text, err)
		}
		var got []string
		for _, x := range all {
			got = append(got, x.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%sgot %q\nwant %q", c.text, got, c.want)
		}
	}
}

// A combination is the recipe as it would be written out without matrix.
func TestACombinationIsTheRecipeWrittenOut(t *testing.T) {
	all, err := Matrix("recipe.yaml", matrixOptions(matrixRecipe))
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(matrixRecipe, "matrix:")
	for _, c := range all {
		m := c.Choose()
		o := matrixOptions(matrixRecipe)
		o.Choose = m
		r, err := Load("recipe.yaml", o)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer("flavour: none", "flavour: "+m["flavour"]+"\narch: "+m["arch"], "host: a", "host: "+m["host"]).Replace(head)
		want, err := Load("recipe.yaml", matrixOptions(text))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Canonical(), want.Canonical()) {
			t.Errorf("%v\ngot  %s\nwant %s", c, r.Canonical(), want.Canonical())
		}
		if r.Hostname != m["host"]+"-0" || r.Vars["host"] != m["host"] {
			t.Errorf("%v: hostname %s, variables %v", c, r.Hostname, r.Vars)
		}
		if pos := r.Pos("arch"); pos.File != "recipe.yaml" || pos.Line != 6 {
			t.Errorf("%v: arch comes from %v, want the matrix", c, pos)
		}
		var shown bytes.Buffer
		if err := r.Show(&shown); err != nil {
			t.Fatal(err)
		}
		again, err := Load("recipe.yaml", matrixOptions(shown.String()))
		if err != nil || !bytes.Equal(again.Canonical(), r.Canonical()) {
			t.Errorf("%v: what it shows is another recipe: %v", c, err)
		}
	}
}

func TestTheLastFilesMatrixCounts(t *testing.T) {
	for text, want := range map[string]int{
		"extends: recipe.yaml\n":                                     5,
		"extends: recipe.yaml\nmatrix: {}\n":                         1,
		"extends: recipe.yaml\nmatrix: {release: ['2', '3', '4']}\n": 3,
	} {
		o := matrixOptions(matrixRecipe)
		read := o.ReadFile
		o.ReadFile = func(name string) ([]byte, error) {
			if name == "over.yaml" {
				return []byte(text), nil
			}
			return read(name)
		}
		if all, err := Matrix("over.yaml", o); err != nil || len(all) != want {
			t.Errorf("%s%d combinations, %v; want %d", text, len(all), err, want)
		}
	}
}

func TestAChoiceHasToFitTheMatrix(t *testing.T) {
	for _, c := range []struct {
		text   string
		choose map[string]string
		want   string
	}{
		{matrixRecipe, map[string]string{"arch": "arm64"}, "makes 2 images; choose one, such as arch=amd64,flavour=server,host=x"},
		{matrixRecipe, map[string]string{"arch": "arm64", "flavour": "lab"}, "has no such combination"},
		{matrixRecipe, map[string]string{"arhc": "arm64"}, "has no such combination"},
		{"extends: ok.yaml\n", map[string]string{"arch": "amd64"}, "--only: arch: the recipe has no matrix"},
		{matrixRecipe, map[string]string{"arch": "arm64", "host": "y"}, ""},
	} {
		o := matrixOptions(c.text)
		o.Choose = c.choose
		_, err := Load("recipe.yaml", o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v: %v; want %q", c.choose, err, c.want)
		}
	}
}

// TestArchIsAVariable: what differs between architectures alone must not show in the
// tag, as a variable of the matrix would.
func TestArchIsAVariable(t *testing.T) {
	for text, want := range map[string]string{
		"extends: ok.yaml\nhostname: on-${arch}\nmatrix: {arch: [amd64, arm64]}\n":                       "on-arm64",
		"extends: ok.yaml\nhostname: on-${it}\nvars:\n  it: x-${arch}\nmatrix: {arch: [amd64, arm64]}\n": "on-x-arm64",
		"extends: ok.yaml\nhostname: on-${arch}\nvars: {arch: mine}\nmatrix: {arch: [amd64, arm64]}\n":   "on-mine",
		"extends: ok.yaml\nhostname: on-${arch}\nvars: {it: arm64}\narch: ${it}\n":                       "on-arm64",
		"extends: ok.yaml\nhostname: x\narch: ${arch}\n":                                                 "variables in a circle: arch -> arch",
	} {
		o := matrixOptions(text)
		if strings.Contains(text, "matrix") {
			o.Choose = map[string]string{"arch": "arm64"}
		}
		r, err := Load("recipe.yaml", o)
		if err != nil && !strings.Contains(err.Error(), want) || err == nil && r.Hostname != want {
			t.Errorf("%s%v, %v; want %s", text, r, err, want)
		}
	}
	o := matrixOptions("extends: ok.yaml\nhostname: on-${arch}\n")
	o.Set = map[string]string{"arch": "arm64"}
	if _, err := Load("recipe.yaml", o); err == nil || !strings.Contains(err.Error(), "vars.arch: no such variable") {
		t.Errorf("--set arch: %v", err)
	}
}
