package build

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const runText = `version: 1
kind: DiskImage
name: steps
release: "1"
arch: amd64
epoch: 2026-11-01T00:00:00Z
base: {tar: {file: base.tar}}
files:
  - {path: /etc/motd, content: "golden\n"}
  - {path: /usr/share/doc/kept, content: "kept\n"}
remove: ["/usr/share/doc/**"]
hostname: golden
run:
  - name: early
    after: packages
    script: |
      test ! -e /etc/motd
      test ! -e /etc/hostname   # the base's: of one machine
      echo early >/etc/early
  - name: late
    cache: [/var/cache/count]
    mounts: [{path: /src, source: src}]
    secrets: [{name: token, path: /run/token}]
    script: |
      echo run >>/var/cache/count/runs
      cat /etc/early /etc/motd /src/part >/opt
      test -s /run/token
      mkdir -p /usr/share/doc/new /var/log
      echo x >/usr/share/doc/new/file
      echo x >/var/log/step.log
      echo changed >/etc/motd
disk:
  partitions: [{name: esp, type: esp, size: 64MiB}, {name: root, type: root}]
`

// stepsTar writes a base that has a shell.
func stepsTar(t *testing.T, to string) {
	t.Helper()
	disktest.WriteTar(t, to, disktest.Busybox(t, time.Unix(1700000000, 0), "cat mkdir test", map[string]string{
		"/etc/hostname": "builder\n", "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "/etc/group": "root:x:0:\n", "/etc/shadow": "root:*:1::::::\n",
		"/usr/share/doc/old": "old",
	}))
}

// stepsBuild makes the tree of a recipe with steps, and returns what the builder has.
func stepsBuild(t *testing.T, r *recipe.Recipe, o Options) (*builder, error) {
	t.Helper()
	b := &builder{recipe: r, options: o, image: &Image{made: made{recipe: r}}}
	t.Cleanup(func() {
		if err := b.image.Close(); err != nil {
			t.Error(err)
		}
	})
	defer b.closeSandbox() //nolint:errcheck // a test of errors
	for _, s := range b.treeSteps() {
		known, err := b.extend(t.Context(), s)
		if err == nil {
			err = b.step(t.Context(), s.name, s.run)
		}
		if err == nil && !known {
			_, err = b.extend(t.Context(), s)
		}
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

func stepsFolder(t *testing.T, text string) (*recipe.Recipe, string) {
	t.Helper()
	dir := t.TempDir()
	stepsTar(t, filepath.Join(dir, "base.tar"))
	if err := os.Mkdir(filepath.Join(dir, "src"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{"recipe.yaml": text, "src/part": "part\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := recipe.Load(filepath.Join(dir, "recipe.yaml"), recipe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r, dir
}

func TestRunSteps(t *testing.T) {
	if err := sandbox.Check(t.Context(), t.TempDir(), ""); err != nil {
		t.Skip(err)
	}
	r, dir := stepsFolder(t, runText)
	o := Options{CacheDir: t.TempDir(), Now: time.Now, Secrets: map[string][]byte{"token": []byte("a secret value")}}
	t.Cleanup(func() {
		if err := sandbox.RemoveCaches(o.CacheDir); err != nil {
			t.Error(err)
		}
	})
	b, err := stepsBuild(t, r, o)
	if err != nil {
		t.Fatal(err)
	}
	read := func(p string) string {
		s, err := b.tree.ReadFile(p, 1000)
		if err != nil {
			return err.Error()
		}
		return string(s)
	}
	for p, want := range map[string]string{"/opt": "early\ngolden\npart\n", "/etc/motd": "changed\n", "/etc/hostname": "golden\n", "/usr/share/doc/kept": "kept\n"} {
		if got := read(p); got != want {
			t.Errorf("%s: %q", p, got)
		}
	}
	for _, p := range []string{"/usr/share/doc/new", "/usr/share/doc/old", "/var/log/step.log", "/src", "/run/token", "/var/cache/count/runs"} {
		if b.tree.Get(p) != nil {
			t.Errorf("%s is there", p)
		}
	}
	keys := func(b *builder) (out []diskimage.Digest) {
		for _, k := range b.image.Record.Keys {
			out = append(out, k.Key)
		}
		return out
	}
	runs := func() int {
		found, _ := filepath.Glob(filepath.Join(o.CacheDir, "mounts/*/x/*/runs"))
		s, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(s), "run")
	}
	// nothing changed: nothing runs, and no secret is wanted; all keys are known before
	was := b
	cached := o
	cached.Secrets = nil
	if b, err = stepsBuild(t, r, cached); err != nil || runs() != 1 || !slices.Equal(keys(b), keys(was)) {
		t.Errorf("%v, ran %d times", err, runs())
	}
	if d := tree.DiffContents(was.tree, b.tree); len(d) > 0 {
		t.Error(d)
	}
	// what is mounted counts, and a refresh
	if err := os.WriteFile(filepath.Join(dir, "src/part"), []byte("other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err = stepsBuild(t, r, o); err != nil || runs() != 2 || read("/opt") != "early\ngolden\nother\n" {
		t.Errorf("%v, ran %d times", err, runs())
	}
	o.Refresh = true
	if b, err = stepsBuild(t, r, o); err != nil || runs() != 3 {
		t.Errorf("%v, ran %d times", err, runs())
	}
}

func TestRunStepFails(t *testing.T) {
	if err := sandbox.Check(t.Context(), t.TempDir(), ""); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct{ from, to, want string }{
		{"test -s /run/token", "echo why; exit 3", "recipe.yaml:24:13: step late: exit status 3; its last lines:\n\twhy"},
		{"test -s /run/token", "cat /run/token >/etc/x", "the secret token is in /etc/x"},
		{"    cache: [/var", "    user: nobody\n    cache: [/var", `run[1].user: the tree has no user "nobody"`},
		{"name: token,", "name: other,", "run[1].secrets[0].name: the secret other was not given: --secret other=FILE"},
	} {
		r, _ := stepsFolder(t, strings.Replace(runText, c.from, c.to, 1))
		o := Options{CacheDir: t.TempDir(), Now: time.Now, Secrets: map[string][]byte{"token": []byte("a secret value")}}
		_, err := stepsBuild(t, r, o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
		if left, _ := filepath.Glob(filepath.Join(o.CacheDir, "steps/*.tar")); len(left) != 1 {
			t.Errorf("%s: cached are %q", c.to, left)
		}
		if err := sandbox.RemoveCaches(o.CacheDir); err != nil {
			t.Error(err)
		}
	}
}

// The folders of a cache are of other ids, and a step may hold them.
func TestPruneFoldersOfRunSteps(t *testing.T) {
	if err := sandbox.Check(t.Context(), t.TempDir(), ""); err != nil {
		t.Skip(err)
	}
	head, _, _ := strings.Cut(runText, "run:")
	_, disk, _ := strings.Cut(runText, "disk:")
	r, _ := stepsFolder(t, head+`run:
  - {name: fill, script: "b=/bin/busybox; $b head -c 1000000 /dev/zero >/var/cache/x/big; $b chown 33 /var/cache/x/big; $b chmod 700 /var/cache/x", cache: [/var/cache/x]}
disk:`+disk)
	o := Options{CacheDir: t.TempDir(), Now: time.Now}
	t.Cleanup(func() {
		if err := sandbox.RemoveCaches(o.CacheDir); err != nil {
			t.Error(err)
		}
	})
	b, err := stepsBuild(t, r, o)
	if err != nil {
		t.Fatal(err)
	}
	found := func() (out []CacheEntry) {
		entries, err := Cache(o.CacheDir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Kind == mounts {
				out = append(out, e)
			}
		}
		return out
	}
	all := found()
	if len(all) != 1 || os.Getuid() == 0 && all[0].Size < 1000000 || time.Since(all[0].Used) > time.Hour {
		t.Fatalf("listed: %+v", all)
	}
	prune := func(now time.Time, want int) {
		t.Helper()
		gone, _, err := Prune(o.CacheDir, PruneOptions{Keep: -1, Unused: 24 * time.Hour, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(found()); n != want || want == 0 && !slices.ContainsFunc(gone, func(e CacheEntry) bool { return e.Kind == mounts }) {
			t.Errorf("%d left, want %d; gone: %+v", n, want, gone)
		}
	}
	prune(time.Now(), 1)
	box := sandbox.New(sandbox.Options{CacheDir: o.CacheDir, Epoch: time.Unix(0, 0)})
	if _, err := box.Run(t.Context(), b.tree, sandbox.Step{Name: "x", Script: "true"}); err != nil {
		t.Fatal(err)
	}
	prune(time.Now().Add(48*time.Hour), 1) // the sandbox is open
	if err := box.Close(); err != nil {
		t.Fatal(err)
	}
	prune(time.Now().Add(48*time.Hour), 0)
}
