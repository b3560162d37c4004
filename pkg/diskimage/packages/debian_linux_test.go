package packages

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/internal/workdir"
)

// fake is an archive with programs that stand in for the package manager's:
// testdata/bin, found by PATH.
type fake struct {
	t    *testing.T
	dir  string
	req  Request
	opts Options
}

func newFake(t *testing.T) *fake {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the stand-ins are for root mode")
	}
	bin, err := filepath.Abs("testdata/bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	f := &fake{t: t, dir: t.TempDir()}
	f.write("archive/InRelease", "state 1")
	f.write("archive/a_1_amd64.deb", "package a")
	f.write("archive/b_1_amd64.deb", strings.Repeat("package b", 100_000))
	f.write("keyring.gpg", "keys")
	f.req = Request{
		Debian:   recipe.DebianBase{Suite: "stable", Keyring: f.path("keyring.gpg")},
		Arch:     "amd64",
		Packages: []string{"b", "a"},
		Epoch:    time.Unix(1_700_000_000, 0),
	}
	work := f.path("work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	f.opts = Options{CacheDir: f.path("cache"), WorkDir: work, Env: []string{"FAKE=" + f.dir}}
	t.Cleanup(func() {
		for _, d := range []string{"work", "cache/tmp"} {
			if left, _ := os.ReadDir(f.path(d)); len(left) > 0 {
				t.Errorf("%s is left in %s", left[0].Name(), d)
			}
		}
	})
	return f
}

func (f *fake) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fake) write(name, content string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(f.path(name)), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(f.path(name), []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// lines returns how many lines a file of the stand-ins has.
func (f *fake) lines(name string) int {
	b, err := os.ReadFile(f.path(name))
	if err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

func (f *fake) debian() *Result {
	f.t.Helper()
	res, err := Debian(f.t.Context(), f.req, f.opts)
	if err != nil {
		f.t.Fatal(err)
	}
	b, err := os.ReadFile(res.Tar)
	if err != nil || int64(len(b)) != res.Size || diskimage.DigestOf(b) != res.Digest {
		f.t.Fatalf("tar of %d bytes, %v: record says %d, %v", len(b), err, res.Size, res.Digest)
	}
	return res
}

// names returns what the tar holds.
func names(t *testing.T, res *Result) (out []string) {
	t.Helper()
	r, err := os.Open(res.Tar)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimPrefix(h.Name, "."))
	}
}

func TestColdBuild(t *testing.T) {
	f := newFake(t)
	var steps []Step
	f.opts.Progress = func(e Event) { steps = append(steps, e.Step) }
	var clock time.Time
	f.opts.Now = func() time.Time { clock = clock.Add(time.Second); return clock }
	res := f.debian()
	if res.FromCache || res.Mode != "root" || res.Tool != "mmdebstrap 9.9.9" {
		t.Errorf("result %+v", res)
	}
	digest := func(content string) diskimage.Digest { return diskimage.DigestOf([]byte(content)) }
	if want := []Package{
		{"a", "1", "amd64", digest("package a")},
		{"b", "1", "amd64", digest(strings.Repeat("package b", 100_000))},
	}; !slices.Equal(res.Packages, want) {
		t.Errorf("packages %v, want %v", res.Packages, want)
	}
	if want := []Source{{"archive_InRelease", diskimage.DigestOf([]byte("state 1"))}}; !slices.Equal(res.Sources, want) {
		t.Errorf("sources %v, want %v", res.Sources, want)
	}
	if want := []string{"6.1"}; !slices.Equal(res.Kernels, want) {
		t.Errorf("kernels %v, want %v", res.Kernels, want)
	}
	if want := []Step{Update, Unpack, Configure, Configure, Tar}; !slices.Equal(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
	if len(res.Steps) != 4 || res.Steps[0] != (StepTime{Update, time.Second}) {
		t.Errorf("times %v", res.Steps)
	}
	got := names(t, res)
	for _, gone := range []string{"/var/cache/apt/archives/a_1_amd64.deb", "/var/lib/apt/lists/archive_InRelease",
		"/etc/ssh/ssh_host_rsa_key", "/etc/dpkg/dpkg.cfg.d/00imgpipe", "/etc/apt/apt.conf.d/00imgpipe", "/usr/local/", "/tmp/imgpipe.plain/"} {
		if slices.Contains(got, gone) {
			t.Errorf("%s is in the tree", gone)
		}
	}
	if !slices.Contains(got, "/etc/b") {
		t.Errorf("package b is not in the tree: %q", got)
	}
	asked, err := os.ReadFile(f.path("asked"))
	if err != nil || !strings.HasSuffix(string(asked), "install ?essential ?priority(required) a b\n") {
		t.Errorf("apt was asked %q, %v", asked, err)
	}
	args, err := os.ReadFile(f.path("runs"))
	if err != nil || !strings.Contains(string(args), "--variant=minbase --architectures=amd64 --components=main ") ||
		!strings.HasSuffix(string(args), " --include=a,b stable -\n") {
		t.Errorf("mmdebstrap was called with %q, %v", args, err)
	}
}

// The stand-in's tree has no program that could make up for the call.
func TestDeferredCallThatFailsFailsTheBuild(t *testing.T) {
	f := newFake(t)
	f.write("compile", "")
	_, err := Debian(t.Context(), f.req, f.opts)
	if err == nil || !strings.Contains(err.Error(), "py3compile") {
		t.Errorf("error %v", err)
	}
}

func TestRebuildNeedsNoRun(t *testing.T) {
	f := newFake(t)
	first := f.debian()
	slices.Reverse(f.req.Packages)
	f.req.Debian.Variant = "minbase" // the default
	second := f.debian()
	if !second.FromCache || second.Tar != first.Tar || len(second.Packages) != 2 || f.lines("runs") != 1 {
		t.Errorf("second %+v after %d runs", second, f.lines("runs"))
	}
}

func TestDirectoriesMayBeRelative(t *testing.T) {
	f := newFake(t)
	t.Chdir(f.dir)
	f.opts.CacheDir, f.opts.WorkDir = "cache", "work"
	if res := f.debian(); !filepath.IsAbs(res.Tar) {
		t.Errorf("tar is %s, want an absolute path", res.Tar)
	}
}

func TestRequestsThatDifferDoNotShareATree(t *testing.T) {
	f := newFake(t)
	seen := map[diskimage.Digest]string{f.debian().Key: "base"}
	base := f.req
	for name, change := range map[string]func(*Request){
		"epoch":      func(r *Request) { r.Epoch = r.Epoch.Add(time.Second) },
		"packages":   func(r *Request) { r.Packages = []string{"a"} },
		"suite":      func(r *Request) { r.Debian.Suite = "testing" },
		"variant":    func(r *Request) { r.Debian.Variant = "apt" },
		"components": func(r *Request) { r.Debian.Components = []string{"main", "contrib"} },
		"mirrors":    func(r *Request) { r.Debian.Mirrors = []string{"http://mirror.example/debian"} },
		"arch":       func(r *Request) { r.Arch = "arm64" },
		"initramfs":  func(r *Request) { r.NoInitramfs = true },
		"keyring": func(r *Request) {
			f.write("other.gpg", "other keys")
			r.Debian.Keyring = f.path("other.gpg")
		},
	} {
		f.req = base
		change(&f.req)
		res := f.debian()
		if other, ok := seen[res.Key]; ok || res.FromCache {
			t.Errorf("%s and %s share a tree", name, other)
		}
		seen[res.Key] = name
	}
}

func TestRefresh(t *testing.T) {
	f := newFake(t)
	first := f.debian()
	if n := f.lines("downloads"); n != 2 {
		t.Errorf("cold: %d downloads, want 2", n)
	}
	f.opts.Refresh = true
	if same := f.debian(); !same.FromCache || same.Key != first.Key {
		t.Errorf("an archive that did not change gave %+v", same)
	}
	f.write("archive/InRelease", "state 2")
	f.write("archive/a_2_amd64.deb", "package a, newer")
	os.Remove(f.path("archive/a_1_amd64.deb"))
	next := f.debian()
	if next.FromCache || next.Key == first.Key {
		t.Errorf("an archive that changed gave %+v", next)
	}
	if n := f.lines("downloads"); n != 3 {
		t.Errorf("%d downloads in all, want 3: b is cached", n)
	}
	f.opts.Refresh = false
	if again := f.debian(); again.Key != next.Key || !again.FromCache {
		t.Errorf("after a refresh, got %+v, want the newer tree", again)
	}
}

func TestDamagedCacheIsMadeGood(t *testing.T) {
	f := newFake(t)
	first := f.debian()
	record := strings.TrimSuffix(first.Tar, ".tar") + ".json"
	debs, err := filepath.Glob(f.path("cache/debs/*.deb"))
	if err != nil || len(debs) != 2 {
		t.Fatalf("cached packages %q, %v", debs, err)
	}
	for name, damage := range map[string]func() error{
		"tar cut short":  func() error { return os.Truncate(first.Tar, 512) },
		"no tar":         func() error { return os.Remove(first.Tar) },
		"no record":      func() error { return os.Remove(record) },
		"a bad record":   func() error { return os.WriteFile(record, []byte("{"), 0o644) },
		"a lost request": func() error { return os.RemoveAll(f.path("cache/requests")) },
		"a bad package":  func() error { return errors.Join(os.Remove(record), os.WriteFile(debs[0], []byte("x"), 0o644)) },
		"no packages":    func() error { return errors.Join(os.Remove(record), os.RemoveAll(f.path("cache/debs"))) },
		"bad indices": func() error {
			lists, err := filepath.Glob(f.path("cache/lists/*.zst"))
			return errors.Join(err, os.Remove(record), os.WriteFile(lists[0], []byte("x"), 0o644))
		},
		"no indices":     func() error { return errors.Join(os.Remove(record), os.RemoveAll(f.path("cache/lists"))) },
		"nothing at all": func() error { return os.RemoveAll(f.path("cache")) },
		"a foreign entry": func() error {
			return os.WriteFile(record, []byte(`{"key":"sha256:`+strings.Repeat("0", 64)+`"}`), 0o644)
		},
	} {
		if err := damage(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if res := f.debian(); res.Key != first.Key || res.Digest != first.Digest {
			t.Errorf("after %s: %+v, want the same tree", name, res)
		}
	}
}

func TestConcurrentBuildsShareOneRun(t *testing.T) {
	f := newFake(t)
	var wg sync.WaitGroup
	keys := make([]diskimage.Digest, 4)
	for i := range keys {
		wg.Go(func() {
			res, err := Debian(t.Context(), f.req, f.opts)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = res.Key
		})
	}
	wg.Wait()
	if n := f.lines("runs"); n != 1 || len(slices.Compact(keys)) != 1 {
		t.Errorf("%d runs, keys %v; want one", n, keys)
	}
}

// The fake's clean-up asserts that nothing is left behind.
func TestCancelLeavesNothing(t *testing.T) {
	f := newFake(t)
	f.write("hang", "")
	ctx, cancel := context.WithCancel(t.Context())
	f.opts.Progress = func(e Event) {
		if e.Item == "b" {
			cancel()
		}
	}
	_, err := Debian(ctx, f.req, f.opts)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	if roots, _ := os.ReadDir(f.path("cache/roots")); len(roots) > 0 {
		t.Errorf("%d files in roots", len(roots))
	}
	os.Remove(f.path("hang"))
	f.opts.Progress = nil
	f.debian()
}

// The fake's clean-up asserts that nothing is left behind.
func TestNextBuildSweepsWhatAKilledOneLeft(t *testing.T) {
	f := newFake(t)
	f.write("work/imgpipe-root-1/lock", "")
	f.write("work/imgpipe-root-1/mmdebstrap.x/etc/passwd", "x")
	f.write("cache/tmp/root.1", "half a tar")
	f.write("work/imgpipe-root-2/lock", "")
	f.write("cache/tmp/root.2", "being written")
	var held []*os.File
	for _, name := range []string{"work/imgpipe-root-2/lock", "cache/tmp/root.2"} {
		h, err := os.Open(f.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if !workdir.Flock(h) {
			t.Fatalf("%s is held", name)
		}
		held = append(held, h)
	}
	f.debian()
	for _, h := range held {
		if _, err := os.Stat(h.Name()); err != nil {
			t.Errorf("what another build holds is gone: %v", err)
		}
		h.Close()
	}
	f.opts.Refresh = true
	f.debian()
}

func TestErrorsNameTheFix(t *testing.T) {
	const fetch = "E: Failed to fetch http://m.example/debian/dists/stable/InRelease  "
	for _, tc := range []struct{ name, apt, want string }{
		{"unknown packages", "E: Unable to locate package nosuch\nE: Version '7' for 'bash' was not found\n",
			"debian: package \"nosuch\" is not in stable with the components asked for\npackage \"bash=7\" is not in stable with the components asked for"},
		{"no candidate", "E: Package 'virtual' has no installation candidate\n",
			`debian: package "virtual" is not in stable with the components asked for`},
		{"no name", fetch + "Could not resolve 'm.example'\nE: Some index files failed to download. They have been ignored, or old ones used instead.\n",
			"debian: archive http://m.example/debian/dists/stable/InRelease: Could not resolve 'm.example' (check the network, a proxy, or base.debian.mirrors)"},
		{"no suite", "E: The repository 'http://m.example/debian stable Release' does not have a Release file.\n",
			"debian: archive http://m.example/debian: it has no suite stable (check base.debian.suite and mirrors)"},
		{"other keys", fetch + "The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 6ED0E7B82643E131\n",
			"debian: archive http://m.example/debian/dists/stable/InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 6ED0E7B82643E131 (" + keyHint + ")"},
		{"not signed", "E: The repository 'http://m.example/debian stable InRelease' is not signed.\n",
			"debian: archive http://m.example/debian: it is not signed (" + keyHint + ")"},
		{"clock", "E: Release file for http://m.example/debian/dists/stable/InRelease is not valid yet (invalid for another 3h). Updates for this repository will not be applied.\n",
			"debian: archive http://m.example/debian/dists/stable/InRelease: its Release file is not valid yet (check this machine's clock, or the mirror's age)"},
		{"something else", "E: the sky is falling\n",
			"debian: mmdebstrap: exit status 1; its last lines:\n\tE: the sky is falling\n\tE: command failed: "},
	} {
		f := newFake(t)
		f.write("apt-fails", tc.apt)
		_, err := Debian(t.Context(), f.req, f.opts)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: error\n%v\nwant\n%s", tc.name, err, tc.want)
		}
	}
	f := newFake(t)
	f.write("apt-fails", "cp: cannot create x: No space left on device\n")
	_, err := Debian(t.Context(), f.req, f.opts)
	full, ok := errors.AsType[*NoSpaceError](err)
	if !ok || full.Dir != f.opts.WorkDir {
		t.Errorf("error %v, want %s to be full", err, f.opts.WorkDir)
	}
}

func TestEpochOfTomorrowIsRefused(t *testing.T) {
	f := newFake(t)
	f.req.Epoch = time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC)
	_, err := Debian(t.Context(), f.req, f.opts)
	if want := "debian: epoch 2500-01-01T00:00:00Z is later than this machine's clock"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestMissingToolNamesItsPackage(t *testing.T) {
	f := newFake(t)
	t.Setenv("PATH", f.dir)
	_, err := Debian(t.Context(), f.req, f.opts)
	if tool, ok := errors.AsType[*MissingToolError](err); !ok || tool.Package != "mmdebstrap" {
		t.Errorf("error %v, want one that names package mmdebstrap", err)
	}
}

func TestBadRequestsRunNothing(t *testing.T) {
	f := newFake(t)
	base := f.req
	for want, change := range map[string]func(*Request){
		"suite":        func(r *Request) { r.Debian.Suite = "--help" },
		"variant":      func(r *Request) { r.Debian.Variant = "tiny" },
		"component":    func(r *Request) { r.Debian.Components = []string{"main contrib"} },
		"package":      func(r *Request) { r.Packages = []string{"a,b"} },
		"package \"/":  func(r *Request) { r.Packages = []string{"/etc/passwd"} },
		"package \"?":  func(r *Request) { r.Packages = []string{"?obsolete"} },
		"architecture": func(r *Request) { r.Arch = "" },
		"mirror":       func(r *Request) { r.Debian.Mirrors = []string{"/etc/apt/sources.list"} },
		"keyring":      func(r *Request) { r.Debian.Keyring = "/etc/passwd" },
		"epoch":        func(r *Request) { r.Epoch = time.Unix(-1, 0) },
	} {
		f.req = base
		change(&f.req)
		_, err := Debian(t.Context(), f.req, f.opts)
		if err == nil || !strings.HasPrefix(err.Error(), "debian: "+want) {
			t.Errorf("error %v, want it to be about %s", err, want)
		}
	}
	if n := f.lines("runs"); n != 0 {
		t.Errorf("%d runs", n)
	}
}

func TestTreeThatDoesNotFitIsNotTried(t *testing.T) {
	plan := []uri{{Size: 100 << 20}, {Size: 20 << 20}}
	if got, want := estimate(plan), int64(512<<20+600<<20); got != want {
		t.Errorf("estimate %d, want %d", got, want)
	}
	f := newFake(t)
	out := &output{}
	out.Write([]byte("dpkg: error: No space left on device\n"))
	err := out.explain(f.req, "/tmp/x/imgpipe-1", 600<<20, errors.New("exit status 2"))
	if want := "no space left in /tmp/x (about 600 MiB are needed): free some, or name another work directory"; fmt.Sprint(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestCleaningUpIsNotWhyItFailed(t *testing.T) {
	f := newFake(t)
	const ids = "E: newuidmap 31435 0 1073741824 65536 failed\n"
	out := &output{}
	out.Write([]byte(ids))
	if err := out.explain(f.req, "/tmp/x", 0, errors.New("exit status 2")); !errors.Is(err, ErrNoSubordinateIDs) {
		t.Errorf("error %v, want one of subordinate ids", err)
	}
	out = &output{}
	out.plan(3, 0)
	out.Write([]byte("E: setup failed: E: command failed\n" + strings.Repeat("Setting up x\n", 2*tailLines) + ids))
	err := out.explain(f.req, "/tmp/x", 0, errors.New("exit status 2"))
	failed, ok := errors.AsType[*RunError](err)
	if !ok || errors.Is(err, ErrNoSubordinateIDs) {
		t.Fatalf("error %v, want one of mmdebstrap's", err)
	}
	if lines := strings.Split(failed.Tail, "\n"); lines[0] != "E: setup failed: E: command failed" || lines[len(lines)-1] != strings.TrimSpace(ids) || len(lines) != 1+tailLines {
		t.Errorf("last lines %q, want the first error and then those", lines)
	}
}

func TestSuitesOfSources(t *testing.T) {
	for name, want := range map[string]string{
		"deb.example.org_debian_dists_bookworm_InRelease":                   "bookworm",
		"deb.example.org_debian-security_dists_bookworm-security_InRelease": "bookworm-security",
		"_srv_mirror_dists_stable_Release":                                  "stable",
		"localhost_flat_._InRelease":                                        "",
	} {
		if got := (Source{Name: name}).Suite(); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestDebNamesAreApts(t *testing.T) {
	if got, want := debName("g++", "4:12.2.0-3", "amd64"), "g++_4%3a12.2.0-3_amd64.deb"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
