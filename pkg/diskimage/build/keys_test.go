package build

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// keysOf are the keys of a build whose packages are cached as key.
func keysOf(t *testing.T, text string, key byte) []StepKey {
	t.Helper()
	r := load(t, text)
	b := &builder{recipe: r, options: Options{Program: "x"}, image: &Image{made: made{recipe: r, packages: &packages.Result{Key: diskimage.Digest{key}}}}}
	for _, s := range b.steps() {
		if known, err := b.extend(t.Context(), s); err != nil || !known {
			t.Fatalf("%s: %v, %v", s.name, known, err)
		}
	}
	return b.image.Record.Keys
}

func TestChangesNameTheInput(t *testing.T) {
	base := keysOf(t, text, 1)
	for _, c := range []struct {
		name, text string
		key        byte
		want       []string
	}{
		{"nothing", text, 1, []string{"packages: as before", "tree: as before", "boot: as before", "layout: as before"}},
		{"packages", text, 2, []string{"packages: packages changed", "tree: follows packages", "boot: follows tree", "layout: follows boot"}},
		{"a file", strings.Replace(text, "golden", "silver", 1), 1,
			[]string{"packages: as before", "tree: files[0] /etc/motd changed", "boot: follows tree", "layout: follows boot"}},
		{"a host name", text + "hostname: box\n", 1, []string{"packages: as before", "tree: hostname changed", "boot: follows tree", "layout: follows boot"}},
		{"the command line", strings.Replace(text, "ttyS0", "tty0", 1), 1,
			[]string{"packages: as before", "tree: as before", "boot: boot changed", "layout: follows boot"}},
		{"the disk", strings.Replace(text, "label: root", "label: r", 1), 1,
			[]string{"packages: as before", "tree: as before", "boot: as before", "layout: disk changed"}},
		{"a release", strings.Replace(text, `release: "1"`, `release: "2"`, 1), 1,
			[]string{"packages: as before", "tree: as before", "boot: as before", "layout: as before"}},
		{"a user", text + "users: [{name: ops}]\n", 1,
			[]string{"packages: as before", "tree: users[0] ops is new", "boot: follows tree", "layout: follows boot"}},
	} {
		if got := Changes(base, keysOf(t, c.text, c.key)); !slices.Equal(got, c.want) {
			t.Errorf("%s changed: got %q, want %q", c.name, got, c.want)
		}
	}
	if got := Changes(nil, base[:1]); !slices.Equal(got, []string{"packages: is new"}) {
		t.Errorf("without a build before: %q", got)
	}
	if got := Changes(base, base[:3]); got[3] != "layout: is gone" {
		t.Errorf("with a step less: %q", got)
	}
}

func TestContentsOfSourcesAreInTheKey(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "app"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("app/a", "one", 0o644)
	write("recipe.yaml", strings.Replace(text, `content: "golden\n"`, "source: app", 1), 0o644)
	key := func() diskimage.Digest {
		t.Helper()
		r, err := recipe.Load(filepath.Join(dir, "recipe.yaml"), recipe.Options{})
		if err != nil {
			t.Fatal(err)
		}
		b := &builder{recipe: r, image: &Image{}}
		in, err := b.treeInputs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return Key(diskimage.Digest{}, "tree", in...)
	}
	seen := map[diskimage.Digest]string{key(): "first"}
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"contents", func() { write("app/a", "two", 0o644) }},
		{"mode", func() { write("app/a", "two", 0o755) }},
		{"a file more", func() { write("app/b", "", 0o644) }},
	} {
		c.do()
		k := key()
		if other, ok := seen[k]; ok {
			t.Errorf("%s: the key of %s", c.what, other)
		}
		seen[k] = c.what
	}
	before := key()
	if err := os.Chtimes(filepath.Join(dir, "app/a"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if key() != before {
		t.Error("a time changed the key")
	}
}

// The lengths in a key keep names and inputs apart.
func TestKeysTellInputsApart(t *testing.T) {
	a := Key(diskimage.Digest{}, "ab", StepInput{Name: "c"})
	b := Key(diskimage.Digest{}, "a", StepInput{Name: "bc"})
	if a == b {
		t.Error("two steps of one key")
	}
}

func TestBuildAndKeysAgree(t *testing.T) {
	r, o := load(t, text), options(t)
	im := make1(t, r, o)
	if _, known, err := Keys(t.Context(), r, o); err != nil || known {
		t.Errorf("packages that are not known: %v, %v", known, err)
	}
	var steps []string
	for _, k := range im.Record.Keys {
		steps = append(steps, k.Step)
	}
	if want := []string{"packages", "tree", "boot", "layout"}; !slices.Equal(steps, want) {
		t.Errorf("keys of %q, want %q", steps, want)
	}
}

func TestPrune(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	put := func(name string, size int, age time.Duration) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	fill := func() {
		put("roots/aa.tar", 1<<20, 90*24*time.Hour)
		put("roots/aa.json", 10, 3*time.Hour) // used three hours ago
		put("roots/bb.tar", 1<<20, 5*time.Hour)
		put("roots/bb.json", 10, 5*time.Hour)
		put("debs/cc.deb", 1<<20, 30*24*time.Hour)
		put("steps/dd.tar", 1<<20, time.Minute)
		put("locks/x", 1<<20, 90*24*time.Hour)
		put("layers/.ee.tar.tmp-1", 1<<20, 2*24*time.Hour) // of a build that was killed
		put("layers/.ff.tar.tmp-2", 1<<20, 2*time.Hour)    // perhaps written to
	}
	names := func(es []CacheEntry) (out []string) {
		for _, e := range es {
			out = append(out, e.Kind+"/"+e.Name)
		}
		return out
	}
	for _, c := range []struct {
		o    PruneOptions
		want []string
	}{
		{PruneOptions{Keep: -1}, nil},
		{PruneOptions{Keep: 100 << 20}, nil},
		{PruneOptions{Keep: 3<<20 + 64<<10}, []string{"debs/cc"}},
		{PruneOptions{Keep: 2<<20 + 64<<10}, []string{"debs/cc", "roots/bb"}},
		{PruneOptions{Keep: 0}, []string{"debs/cc", "roots/bb", "roots/aa"}}, // what was just used stays
		{PruneOptions{Keep: -1, Unused: 4 * time.Hour}, []string{"debs/cc", "roots/bb"}},
	} {
		fill()
		c.o.Now, c.o.DryRun = now, true
		for range 2 {
			gone, left, err := Prune(dir, c.o)
			if want := append([]string{"layers/.ee.tar.tmp-1"}, c.want...); err != nil || !slices.Equal(names(gone), want) {
				t.Errorf("%+v: gone %q, %v; want %q", c.o, names(gone), err, want)
			}
			if want := int64(4-len(c.want)) << 20; left < want || left > want+64<<10 {
				t.Errorf("%+v: %d bytes left, want about %d", c.o, left, want)
			}
			c.o.DryRun = false
		}
		for _, name := range c.want {
			if found, _ := filepath.Glob(filepath.Join(dir, name+".*")); len(found) > 0 {
				t.Errorf("%+v: %q is still there", c.o, found)
			}
		}
		for _, stays := range []string{"locks/x", "layers/.ff.tar.tmp-2"} {
			if _, err := os.Stat(filepath.Join(dir, stays)); err != nil {
				t.Error(err)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "layers/.ee*")); len(left) > 0 {
			t.Errorf("%q is left", left)
		}
	}
}
