package recipe

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

const recipesDir = "../../../recipes"

func TestTheRecipesOfTheProjectLoad(t *testing.T) {
	paths, err := filepath.Glob(recipesDir + "/*.yaml")
	if err != nil || len(paths) < 2 {
		t.Fatalf("recipes: %v, %v", paths, err)
	}
	for _, path := range paths {
		r, err := Load(path, Options{})
		if err != nil {
			t.Errorf("%s:\n%v", path, err)
			continue
		}
		if r.Name+".yaml" != filepath.Base(path) {
			t.Errorf("%s is named %s", path, r.Name)
		}
		var shown bytes.Buffer
		if err := r.Show(&shown); err != nil {
			t.Fatal(err)
		}
		if os.Getenv("SHOW") != "" {
			t.Logf("\n%s\n%s", shown.Bytes(), r.Canonical())
		}
	}
}
