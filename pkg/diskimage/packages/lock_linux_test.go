package packages

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// deb makes a package of just a control file.
func deb(t *testing.T, control string) []byte {
	t.Helper()
	var plain, packed, out bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, name := range []string{"./md5sums", "./control"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(control))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, control); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	out.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"odd", []byte("x")}, {"control.tar.zst", packed.Bytes()}} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.body))
		out.Write(m.body)
		if len(m.body)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

func TestControlOfAPackage(t *testing.T) {
	const control = "Package: a\nVersion: 1\nPriority: extra\nDescription: x\n more\n"
	whole := deb(t, control)
	got, err := readControl(bytes.NewReader(whole))
	if err != nil || string(got) != control {
		t.Errorf("got %q, %v", got, err)
	}
	for n := range len(whole) - 1 {
		if got, err := readControl(bytes.NewReader(whole[:n])); err == nil && string(got) != control {
			t.Errorf("of the first %d bytes: %q", n, got)
		}
	}
	var b bytes.Buffer
	p := Locked{Name: "a", Version: "1", Arch: "all", Digest: diskimage.DigestOf(whole), Size: int64(len(whole)), Priority: "required"}
	writeStanza(&b, got, p)
	want := fmt.Sprintf("Package: a\nVersion: 1\nDescription: x\n more\nPriority: required\nFilename: ./a_1_all.deb\nSize: %d\nSHA256: %s\n\n", p.Size, p.Digest.Hex())
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func FuzzReadControl(f *testing.F) {
	f.Add([]byte("!<arch>\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = readControl(bytes.NewReader(b)) })
}

func TestPrioritiesOfAnIndex(t *testing.T) {
	a, b := diskimage.DigestOf([]byte("a")), diskimage.DigestOf([]byte("b"))
	index := "Package: a\nPriority: required\nSHA256: " + a.Hex() + "\n\nPackage: b\nSHA256: " + b.Hex() + "\nPriority: optional\n"
	got := map[diskimage.Digest]string{}
	if err := readPriorities(strings.NewReader(index), map[diskimage.Digest]bool{a: true, b: true}, got); err != nil {
		t.Fatal(err)
	}
	if got[a] != "required" || got[b] != "optional" || len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

func TestInstalledHasToBeTheLock(t *testing.T) {
	l := &Lock{Packages: []Locked{{Name: "a", Version: "1", Arch: "all"}, {Name: "b", Version: "1", Arch: "amd64"}}}
	same := []Package{{Name: "b", Version: "1", Arch: "amd64"}, {Name: "a", Version: "1", Arch: "all"}}
	if err := l.compareInstalled(same); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]struct {
		installed     []Package
		other, unused []string
	}{
		"one more":        {append(slices.Clone(same), Package{Name: "c", Version: "2", Arch: "all"}), []string{"c 2"}, nil},
		"one less":        {same[:1], nil, []string{"a 1"}},
		"another version": {[]Package{same[0], {Name: "a", Version: "2", Arch: "all"}}, []string{"a 2"}, []string{"a 1"}},
	} {
		e, ok := errors.AsType[*NotLockedError](l.compareInstalled(c.installed))
		if !ok || !slices.Equal(e.Other, c.other) || !slices.Equal(e.Unused, c.unused) {
			t.Errorf("%s: %v", what, e)
		}
	}
}

// What cannot be had, or is not what the lock says, ends a locked run before the
// package manager starts.
func TestObtain(t *testing.T) {
	file := deb(t, "Package: a\nVersion: 1\n")
	p := Locked{Name: "a", Version: "1", Arch: "all", Digest: diskimage.DigestOf(file), Size: int64(len(file)), URL: "copy:" + filepath.Join(t.TempDir(), "gone.deb")}
	give := func(b []byte, err error) func(context.Context, Locked) (io.ReadCloser, error) {
		return func(context.Context, Locked) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), err }
	}
	onDisk := filepath.Join(t.TempDir(), "a.deb")
	if err := os.WriteFile(onDisk, file, 0o644); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		fetch func(context.Context, Locked) (io.ReadCloser, error)
		url   string
		ok    bool
	}{
		"a mirror that has it":       {give(file, nil), "", true},
		"a mirror with another":      {give(append([]byte("x"), file[1:]...), nil), "", false},
		"a mirror that is short":     {give(file[:9], nil), "", false},
		"a mirror that is long":      {give(append(slices.Clone(file), 0), nil), "", false},
		"no mirror, a URL":           {nil, "copy:" + onDisk, true},
		"a broken mirror, and a URL": {give(nil, errors.New("down")), "file://" + onDisk, true},
		"neither":                    {give(nil, errors.New("down")), "", false},
	} {
		c2, err := openCache(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		q := p
		if c.url != "" {
			q.URL = c.url
		}
		err = c2.obtain(t.Context(), &Lock{Packages: []Locked{q}, Fetch: c.fetch})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
		if e, ok := errors.AsType[*NotLockedError](err); err != nil && (!ok || !slices.Equal(e.Missing, []string{"a 1"})) {
			t.Errorf("%s: %v", what, err)
		}
		if has := c2.hasDeb(q.uri()); has != c.ok {
			t.Errorf("%s: in the cache: %v", what, has)
		}
	}
}

// The real package manager: a lock gives the same tree in a cache that knows only
// the packages, without a network; what is not in it is not installed.
func TestLockedTreeIsTheSame(t *testing.T) {
	if os.Getenv("IMGPIPE_NETWORK") != "1" {
		t.Skip("needs a Debian archive: IMGPIPE_NETWORK=1")
	}
	req := Request{Debian: recipe.DebianBase{Suite: "bookworm", Variant: "apt"}, Arch: "amd64", Packages: []string{"netbase"},
		Epoch: time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)}
	first := t.TempDir()
	free, err := Debian(t.Context(), req, Options{CacheDir: first})
	if err != nil {
		t.Fatal(err)
	}
	packages := slices.Clone(free.Locked)
	for i := range packages {
		packages[i].URL = ""
	}
	lock := &Lock{Packages: packages, Sources: free.Sources, Fetch: func(_ context.Context, p Locked) (io.ReadCloser, error) { return os.Open(CachedPath(first, p.Digest)) }}
	locked, err := Debian(t.Context(), req, Options{CacheDir: t.TempDir(), Lock: lock})
	if err != nil {
		t.Fatal(err)
	}
	if locked.Digest != free.Digest {
		t.Errorf("the tar of the locked tree is %v, of the free one %v", locked.Digest, free.Digest)
	}
	if !slices.Equal(locked.Sources, free.Sources) {
		t.Errorf("sources %v, want %v", locked.Sources, free.Sources)
	}
	less := *lock
	less.Packages = slices.DeleteFunc(slices.Clone(packages), func(p Locked) bool { return p.Name == "netbase" })
	if _, err := Debian(t.Context(), req, Options{CacheDir: first, Lock: &less}); err == nil {
		t.Error("a package that is not in the lock was installed")
	}
}

// What apt says of unmet dependencies frees those that are held, and no others.
func TestWhatIsFreedBesides(t *testing.T) {
	l := &Lock{Pin: true, Free: []string{"curl"}}
	for _, name := range []string{"curl", "libcurl4", "libssl3", "wget", "git", "bash"} {
		l.Packages = append(l.Packages, Locked{Name: name})
	}
	for tail, want := range map[string][]string{
		" curl : Depends: libcurl4 (= 2) but 1 is to be installed":                                                               {"libcurl4"},
		" curl:amd64 : PreDepends: libcurl4 (= 2) but 1 is to be installed\n        Breaks: wget (< 2) but 1 is to be installed": {"libcurl4", "wget"},
		" git : Depends: curl (= 1) but 2 is to be installed":                                                                    {"git"},
		" curl : Depends: libssl3:amd64 (>= 3) but it is not going to be installed":                                              {"libssl3"},
		" curl : Depends: nowhere (>= 2) but it is not installable":                                                              nil,
		" curl : Depends: curl-data (>= 2) but it is not going to be installed":                                                  nil,
		"E: Unable to correct problems, you have held broken packages.":                                                          nil,
	} {
		err := fmt.Errorf("debian: %w", &RunError{Tail: "Reading…\n" + tail + "\nE: Unable"})
		if got := l.free(err); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", tail, got, want)
		}
		strict := *l
		strict.Pin = false
		if got := strict.free(err); got != nil {
			t.Errorf("a strict lock frees %q", got)
		}
	}
	if got := l.free(errors.New("another")); got != nil {
		t.Errorf("another error frees %q", got)
	}
}
