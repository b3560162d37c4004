package recipe

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzLoad checks that Load never panics, that every mistake has a place and one
// line, and that what Show prints of an accepted recipe loads to the same.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(okRecipe), []byte(""))
	recipes, _ := filepath.Glob(recipesDir + "/*.yaml")
	for _, path := range recipes {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, []byte(okRecipe))
	}
	archives, _ := filepath.Glob("testdata/errors/*.txtar")
	for _, path := range archives {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, x := range a.Files {
			if filepath.Base(x.Name) == "recipe.yaml" {
				f.Add(x.Data, []byte(okRecipe))
			}
		}
	}
	f.Add([]byte(everyKey), []byte(okRecipe))
	f.Fuzz(func(t *testing.T, data, base []byte) {
		files := fstest.MapFS{"recipe.yaml": {Data: data}, "ok.yaml": {Data: base}, "app/x": {}, "keys.gpg": {}}
		r, err := loadFS(files, "recipe.yaml", nil)
		if err != nil {
			checkErrors(t, err)
			return
		}
		var shown bytes.Buffer
		if err := r.Show(&shown); err != nil {
			t.Fatal(err)
		}
		files["shown.yaml"] = &fstest.MapFile{Data: shown.Bytes()}
		again, err := loadFS(files, "shown.yaml", nil)
		if err != nil {
			t.Fatalf("what Show prints does not load: %v\n%s", err, shown.Bytes())
		}
		if !bytes.Equal(r.Canonical(), again.Canonical()) {
			t.Fatalf("what Show prints loads to something else:\n%s\n%s\n%s", r.Canonical(), again.Canonical(), shown.Bytes())
		}
	})
}

func checkErrors(t *testing.T, err error) {
	t.Helper()
	errs, ok := err.(Errors)
	if !ok || len(errs) == 0 || len(errs) > maxErrors+1 {
		t.Fatalf("%T of %d mistakes: %v", err, len(errs), err)
	}
	for _, e := range errs {
		if e.Problem == "" || e.Pos.File == "" || bytes.ContainsAny([]byte(e.Error()), "\n\r") {
			t.Errorf("mistake without place or of several lines: %q", e.Error())
		}
	}
}
