package recipe

import (
	"errors"
	"flag"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what the wrong recipes report into testdata/errors")

// okRecipe is complete and right; wrong recipes extend it to be wrong in one place.
const okRecipe = `version: 1
kind: DiskImage
name: ok
release: "1"
arch: amd64
epoch: 2026-11-01T00:00:00Z
base: {debian: {suite: bookworm}}
disk:
  partitions:
    - {name: esp, type: esp, size: 64MiB}
    - {name: root, type: root}
`

// loadFS loads a recipe out of a map of files.
func loadFS(files fstest.MapFS, path string, set map[string]string) (*Recipe, error) {
	clean := func(name string) string { return strings.TrimPrefix(filepath.ToSlash(name), "/") }
	return Load(path, Options{
		Set:      set,
		ReadFile: func(name string) ([]byte, error) { return fs.ReadFile(files, clean(name)) },
		Stat:     func(name string) (fs.FileInfo, error) { return fs.Stat(files, clean(name)) },
	})
}

func loadText(text string, set map[string]string) (*Recipe, error) {
	return loadFS(fstest.MapFS{"recipe.yaml": {Data: []byte(text)}, "ok.yaml": {Data: []byte(okRecipe)}}, "recipe.yaml", set)
}

// Each archive in testdata/errors holds cases: CASE/recipe.yaml, the files beside
// it, CASE/set with variables to set, and CASE/want, the exact messages.
func TestWrongRecipesReportEveryMistakeAtItsPlace(t *testing.T) {
	archives, err := filepath.Glob("testdata/errors/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	count := 0
	for _, path := range archives {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		count += checkArchive(t, a)
		if *update {
			if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if count < 40 {
		t.Errorf("%d wrong recipes; want at least 40", count)
	}
}

func checkArchive(t *testing.T, a *txtar.Archive) (count int) {
	cases := map[string]fstest.MapFS{}
	for _, f := range a.Files {
		name, file, ok := strings.Cut(f.Name, "/")
		if !ok {
			t.Fatalf("file %s belongs to no case", f.Name)
		}
		if cases[name] == nil {
			cases[name] = fstest.MapFS{"ok.yaml": {Data: []byte(okRecipe)}}
		}
		cases[name][file] = &fstest.MapFile{Data: f.Data}
	}
	for i := range a.Files {
		name, file, _ := strings.Cut(a.Files[i].Name, "/")
		if file != "want" {
			continue
		}
		count++
		t.Run(name, func(t *testing.T) {
			_, err := loadFS(cases[name], "recipe.yaml", setOf(cases[name]["set"]))
			if err == nil {
				t.Fatal("loads; want mistakes")
			}
			if _, ok := errors.AsType[Errors](err); !ok {
				t.Fatalf("%T %v; want Errors", err, err)
			}
			got := err.Error() + "\n"
			if *update {
				a.Files[i].Data = []byte(got)
			} else if want := string(a.Files[i].Data); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
	if count != len(cases) {
		t.Errorf("%d cases, %d of them with want", len(cases), count)
	}
	return count
}

func setOf(f *fstest.MapFile) map[string]string {
	if f == nil {
		return nil
	}
	set := map[string]string{}
	for line := range strings.Lines(string(f.Data)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		maps.Copy(set, map[string]string{k: v})
	}
	return set
}
