package recipe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func show(t *testing.T, r *Recipe) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Show(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestShowSaysWhereEachValueCameFrom(t *testing.T) {
	r := mustLoad(t, map[string]string{
		"base.yaml":   "extends: ok.yaml\nvars: {console: ttyS0, x: y}\npackages: [vim]\nsystemd: {mask: []}\n",
		"recipe.yaml": "extends: base.yaml\npackages: [nano]\nboot: {cmdline: \"console=${console} $${x}\"}\ndisk: {partitions: [{name: root, grow: true}]}\n",
	}, map[string]string{"console": "tty0"})
	const golden = "testdata/show.yaml"
	got := show(t, r)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// reload loads what Show prints of r, in the same folder.
func reload(t *testing.T, files fstest.MapFS, r *Recipe) *Recipe {
	t.Helper()
	if files = maps.Clone(files); files == nil {
		files = fstest.MapFS{}
	}
	files["shown.yaml"] = &fstest.MapFile{Data: []byte(show(t, r))}
	again, err := loadFS(files, "shown.yaml", nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, files["shown.yaml"].Data)
	}
	return again
}

func TestWhatShowPrintsMeansTheSame(t *testing.T) {
	r, err := loadFS(everyFile, "recipe.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	again := reload(t, everyFile, r)
	if !bytes.Equal(r.Canonical(), again.Canonical()) {
		t.Errorf("got\n%s\nwant\n%s", again.Canonical(), r.Canonical())
	}
	again.origins, again.sources, again.inputs = r.origins, r.sources, r.inputs
	if !reflect.DeepEqual(r, again) {
		t.Errorf("got\n%+v\nwant\n%+v", again, r)
	}
}

func TestAnyTextSurvivesShow(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	alphabet := []rune("ab: #-'\"\\{}[],&*!|>%@`$\t\n ~?=0é😀\u0085\u00a0\u2028\u2029\ufeff\u200b\x00\x01\x1b\x7f\x80\ufffd\ufffe\r")
	for range 300 {
		text := make([]rune, rng.IntN(12))
		for i := range text {
			text[i] = alphabet[rng.IntN(len(alphabet))]
		}
		r, err := loadText(okRecipe+"vars: {x: y}\nfiles: [{path: /a, content: \"${x}\"}]\n", map[string]string{"x": string(text)})
		if err != nil {
			t.Fatal(err)
		}
		if again := reload(t, nil, r); again.Files[0].Content != string(text) || again.Vars["x"] != string(text) {
			t.Errorf("%q came back as %q and %q", string(text), again.Files[0].Content, again.Vars["x"])
		}
	}
}

func TestCanonicalDependsOnTheRecipeAlone(t *testing.T) {
	text := strings.Replace(everyKey, "keys.gpg", "../keys.gpg", 1)
	in := func(dir string) *Recipe {
		at := strings.TrimPrefix(dir, "/")
		files := fstest.MapFS{at + "/keys.gpg": {}, at + "/r/app/x": {}, at + "/r/recipe.yaml": {Data: []byte(text)}}
		r, err := loadFS(files, dir+"/r/recipe.yaml", nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	want := in("a").Canonical()
	for _, dir := range []string{"a/b", "/srv/recipes/x"} {
		if got := in(dir).Canonical(); !bytes.Equal(got, want) {
			t.Errorf("in %s\n%s\nwant\n%s", dir, got, want)
		}
	}
	var parsed map[string]any
	if err := json.Unmarshal(want, &parsed); err != nil {
		t.Errorf("%v: %s", err, want)
	}
	for _, same := range []string{
		okRecipe, strings.Replace(okRecipe, "size: 64MiB", "size: 67108864", 1), okRecipe + "hostname: localhost\nsystemd: {enable: []}\nvars: {a: b}\n",
		"# moved\n\n" + okRecipe, okRecipe + "test: {timeout: 300s}\n",
	} {
		r, err := loadText(same, nil)
		if err != nil {
			t.Fatal(err)
		}
		base, err := loadText(okRecipe, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Canonical(), base.Canonical()) {
			t.Errorf("another canonical form of\n%s\n%s\n%s", same, r.Canonical(), base.Canonical())
		}
	}
}

// The canonical form is hashed into artifacts: it changes only on purpose.
func TestCanonicalIsPinned(t *testing.T) {
	r, err := loadText(okRecipe, nil)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"arch":"amd64","base":{"debian":{"components":["main"],"suite":"bookworm","variant":"minbase"}},` +
		`"boot":{"firmware":"uefi","initramfs":"distribution","loader":"uki"},"disk":{"partitions":[{"filesystem":"fat32","name":"esp","size":"64MiB","type":"esp"},` +
		`{"filesystem":"ext4","free":"100%","mount":"/","name":"root","type":"root"}],"sectorSize":512},"epoch":"2026-11-01T00:00:00Z",` +
		`"hostname":"localhost","kind":"DiskImage","locale":"C.UTF-8","name":"ok","release":"1","test":{"timeout":"5m"},"timezone":"UTC","version":1}`
	if got := string(r.Canonical()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Every value of a Recipe has to be in the table, or decoding, Show and the
// canonical form would pass over it.
func TestTheTableHasEveryFieldOfTheTypes(t *testing.T) {
	both := &shape{kind: mapping, fields: slices.Clone(recipeShape.fields)}
	for _, f := range environmentShape.fields {
		if recipeShape.field(f.name) == nil {
			both.fields = append(both.fields, f)
		}
	}
	checkTable(t, both, reflect.TypeFor[Recipe]())
}

func checkTable(t *testing.T, s *shape, typ reflect.Type) {
	t.Helper()
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	v, seen := reflect.New(typ).Elem(), map[string]bool{}
	for _, f := range s.fields {
		at := f.in(v)
		if !at.IsValid() {
			t.Errorf("%v has no field for key %s", typ, f.name)
			continue
		}
		for _, sf := range reflect.VisibleFields(typ) {
			field := v.FieldByIndex(sf.Index)
			if field.CanAddr() && at.CanAddr() && field.Addr().UnsafePointer() == at.Addr().UnsafePointer() && sf.Type == at.Type() {
				seen[sf.Name] = true
			}
		}
		switch {
		case f.doc == "":
			t.Errorf("%v: key %s has no description", typ, f.name)
		case f.shape.kind == mapping && f.shape.value == nil:
			checkTable(t, f.shape, at.Type())
		case f.shape.kind == list && f.shape.item.kind == mapping:
			checkTable(t, f.shape.item, at.Type().Elem())
		}
	}
	for _, f := range reflect.VisibleFields(typ) {
		if f.IsExported() && !f.Anonymous && !seen[f.Name] {
			t.Errorf("%v.%s is in no key of the table", typ, f.Name)
		}
	}
}

func ExampleRecipe_Errorf() {
	r, err := loadText(okRecipe+"systemd: {enable: [shh.service]}\n", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	e := r.Errorf("systemd.enable[0]", "no such unit in the tree")
	fmt.Println(e)
	fmt.Println(e.Excerpt)
	// Output:
	// recipe.yaml:12:20: systemd.enable[0]: no such unit in the tree
	//    12 | systemd: {enable: [shh.service]}
	//       |                    ^
}
