package recipe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	recipesDir = "../../../recipes"
	docFile    = "../../../docs/recipe.md"
	envDocFile = "../../../docs/environment.md"
)

func TestTheRecipesOfTheProjectLoad(t *testing.T) {
	paths, err := filepath.Glob(recipesDir + "/*.yaml")
	if err != nil || len(paths) < 2 {
		t.Fatalf("recipes: %v, %v", paths, err)
	}
	for _, path := range paths {
		all, err := Matrix(path, Options{})
		if err != nil {
			t.Errorf("%s:\n%v", path, err)
			continue
		}
		r, err := Load(path, Options{Set: map[string]string{"console": "tty0"}, Choose: all[len(all)-1].Choose()})
		if err != nil {
			t.Errorf("%s:\n%v", path, err)
			continue
		}
		if r.Name+".yaml" != filepath.Base(path) {
			t.Errorf("%s is named %s", path, r.Name)
		}
		cmdline := "console=tty0"
		if r.Kind == KindEnvironment {
			cmdline, r.Boot.Cmdline = "console=tty0 console=tty0 panic=10", r.Cmdline
		}
		if rest := strings.TrimPrefix(r.Boot.Cmdline, cmdline); rest != "" && rest != " panic=10" && rest != " console=ttyAMA0" || r.Base.Debian.Mirrors != nil {
			t.Errorf("%s: cmdline %q, mirrors %q", path, r.Boot.Cmdline, r.Base.Debian.Mirrors)
		}
	}
}

// A recipe that comes with files of its own has a folder of its name.
func TestTheRecipesInFoldersLoad(t *testing.T) {
	paths, err := filepath.Glob(recipesDir + "/*/recipe.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("recipes: %v, %v", paths, err)
	}
	for _, path := range paths {
		if r, err := Load(path, Options{}); err != nil || r.Name != filepath.Base(filepath.Dir(path)) {
			t.Errorf("%s:\n%v", path, err)
		}
	}
}

func TestTheRecipeOfTheDocumentationLoads(t *testing.T) {
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.ReadFile(recipesDir + "/debian-base.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(doc), "```yaml\n")
	text, _, found := strings.Cut(text, "```")
	if !found {
		t.Fatal("no yaml in docs/recipe.md")
	}
	files := fstest.MapFS{"recipe.yaml": {Data: []byte(text)}, "debian-base.yaml": {Data: base}, "app/run": {}}
	if _, err := loadFS(files, "recipe.yaml", nil); err != nil {
		t.Error(err)
	}
}

func TestTheDocumentationNamesEveryKey(t *testing.T) {
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	var check func(*shape)
	check = func(s *shape) {
		if s.item != nil {
			check(s.item)
		}
		for _, f := range s.fields {
			if !strings.Contains(string(doc), "`"+f.name) {
				t.Errorf("docs/recipe.md does not explain `%s`", f.name)
			}
			if f.preset != "" && f.shape.kind == scalar && !strings.Contains(string(doc), "`"+f.preset+"`") {
				t.Errorf("docs/recipe.md does not say that %s is `%s` by default", f.name, f.preset)
			}
			check(f.shape)
		}
	}
	check(recipeShape)
	env, err := os.ReadFile(envDocFile)
	if err != nil {
		t.Fatal(err)
	}
	// There, a key of a map stands behind its name: `modules.extra`.
	doc = []byte(strings.NewReplacer("`modules.", "`", "`trust.", "`", "`server.", "`").Replace(string(doc) + string(env)))
	check(environmentShape)
}

func TestDidYouMean(t *testing.T) {
	for _, c := range []struct{ name, known, want string }{
		{"szie", "size sectorSize", `; did you mean "size"?`},
		{"sector_size", "size sectorSize", `; did you mean "sectorSize"?`},
		{"Size", "size sectorSize", `; did you mean "size"?`},
		{"path", "size sectorSize", "; known are size, sectorSize"},
		{"a", "b", "; known are b"},
		{"x", "", ""},
	} {
		if got := didYouMean(c.name, strings.Fields(c.known)); got != c.want {
			t.Errorf("%s among %s: %q, want %q", c.name, c.known, got, c.want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"ab", "ba", 1}, {"kitten", "sitting", 3}, {"abc", "", 3}, {"ca", "abc", 3}, {"abcdefghijkl", "xyz", 12}} {
		if got := editDistance(c.a, c.b, 99); got != c.want {
			t.Errorf("%s to %s is %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
