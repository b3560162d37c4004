package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/lock"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// imgbuild runs a command, and returns what it prints.
func imgbuild(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, said bytes.Buffer
	a := app()
	a.Writer, a.ErrWriter = &out, &said
	err = ui.Run(t.Context(), a, append([]string{"imgbuild"}, args...))
	return out.String(), said.String(), err
}

// locking is a recipe whose lock is made and obeyed.
type locking struct {
	*testing.T
	recipe string
}

// lock runs imgbuild lock, and returns what it prints.
func (l *locking) lock(args ...string) string {
	l.Helper()
	out, said, err := imgbuild(l.T, append([]string{"lock", l.recipe}, args...)...)
	if err != nil {
		l.Fatalf("lock %q: %v\n%s", args, err, said)
	}
	return out
}

// build builds by the lock into a layout of its own, and returns the digest.
func (l *locking) build(cache string, args ...string) (string, error) {
	l.Helper()
	layout := filepath.Join(l.TempDir(), "images")
	out, _, err := imgbuild(l.T, append([]string{"build", l.recipe, "--json", "--cache", cache, "-o", "oci:" + layout}, args...)...)
	if err != nil {
		if index, readErr := os.ReadFile(filepath.Join(layout, "index.json")); readErr == nil && bytes.Contains(index, []byte("sha256:")) {
			l.Errorf("build %q: the layout has an image after %v", args, err)
		}
		return "", err
	}
	var result struct {
		Digest string `json:"digest"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || result.Digest == "" {
		l.Fatalf("build %q: %v: %s", args, err, out)
	}
	return result.Digest, nil
}

func (l *locking) mustBuild(cache string, args ...string) string {
	l.Helper()
	digest, err := l.build(cache, args...)
	if err != nil {
		l.Fatalf("build %q: %v", args, err)
	}
	return digest
}

// file is the lock.
func (l *locking) file() *lock.File {
	l.Helper()
	f, err := readLock(strings.TrimSuffix(l.recipe, ".yaml") + ".lock.json")
	if err != nil || f == nil {
		l.Fatalf("lock: %v", err)
	}
	return f
}

// has compares the versions of some packages, "aa 2 bb 1", with the lock's.
func (l *locking) has(what, want string) {
	l.Helper()
	var got []string
	for _, p := range l.file().Packages {
		if p.Name != "base" {
			got = append(got, p.Name+" "+p.Version)
		}
	}
	if strings.Join(got, " ") != want {
		l.Errorf("%s: the lock has %q, want %q", what, got, want)
	}
}

// packageMirror is a registry for packages.
func packageMirror(t *testing.T) (ref string, faults *ocitest.Faults) {
	faults = ocitest.NewFaults(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	server := httptest.NewServer(faults)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/packages", faults
}

// An archive moves on. What was locked builds from the cache, from a mirror, or not
// at all; and of the lock moves what is told to.
func TestJudgesLockOutlivesItsArchive(t *testing.T) {
	if os.Getenv("IMGPIPE_JUDGES") == "" {
		t.Skip("IMGPIPE_JUDGES is not set")
	}
	a := newArchive(t)
	a.put("aa", "1")
	a.put("bb", "1")
	a.put("cc", "1")
	a.put("dd", "1")
	a.index()
	l := &locking{t, a.recipe("aa", "bb", "cc", "dd")}
	cache := t.TempDir()
	l.lock("--cache", cache)
	l.has("at first", "aa 1 bb 1 cc 1 dd 1")
	plain, err := os.ReadFile(strings.TrimSuffix(l.recipe, ".yaml") + ".lock.json")
	if err != nil {
		t.Fatal(err)
	}
	mirror, faults := packageMirror(t)
	l.lock("--cache", t.TempDir(), "--mirror-to", mirror) // a machine that has none of them
	want := l.mustBuild(cache, "--locked")

	a.put("aa", "2")
	a.put("bb", "2")
	a.index()
	asked := a.asks.Load()
	if got := l.mustBuild(cache, "--locked"); got != want {
		t.Errorf("from the cache: %s, want %s", got, want)
	}
	if a.asks.Load() != asked {
		t.Error("with everything in the cache the archive was asked")
	}
	if got := l.mustBuild(t.TempDir(), "--locked"); got != want {
		t.Errorf("from the mirror: %s, want %s", got, want)
	}
	if got := l.mustBuild(t.TempDir()); got == want {
		t.Error("the archive has not moved")
	}
	l.failsClosed(plain, faults)

	diff := l.lock("--cache", t.TempDir(), "--diff")
	for _, line := range []string{"aa:all 1 → 2\n", "bb:all 1 → 2\n", "2 lines would change"} {
		if !strings.Contains(diff, line) {
			t.Errorf("--diff does not say %q:\n%s", line, diff)
		}
	}
	l.has("after --diff", "aa 1 bb 1 cc 1 dd 1")

	mixed := t.TempDir()
	if said := l.lock("--cache", mixed, "--update", "aa"); !strings.Contains(said, "aa:all 1 → 2\n") || !strings.Contains(said, "1 lines changed") {
		t.Errorf("--update says %s", said)
	}
	l.has("--update aa", "aa 2 bb 1 cc 1 dd 1")
	if m := l.file().Mirrors; len(m) != 1 || m[0] != mirror {
		t.Errorf("--update: mirrors are %q", m)
	}
	want = l.mustBuild(mixed, "--locked")
	if got := l.mustBuild(t.TempDir(), "--locked"); got != want { // aa from the archive, bb from the mirror
		t.Errorf("after --update, in another cache: %s, want %s", got, want)
	}

	a.put("aa", "3", "Depends: bb (>= 3)")
	a.put("bb", "3", "Depends: dd (>= 3)")
	a.put("cc", "3")
	a.put("dd", "3")
	a.index()
	l.lock("--cache", mixed, "--update", "aa")
	l.has("--update with what it needs", "aa 3 bb 3 cc 1 dd 3")
	l.lock("--cache", mixed, "--upgrade", "--mirror-to", mirror)
	l.has("--upgrade", "aa 3 bb 3 cc 3 dd 3")
	for _, name := range []string{"aa", "bb", "cc", "dd"} {
		a.remove(name)
	}
	l.mustBuild(t.TempDir(), "--locked")
}

// failsClosed builds without a mirror, or with one that lies, where the archive has
// moved on; plain is the lock without its mirror.
func (l *locking) failsClosed(plain []byte, faults *ocitest.Faults) {
	name := strings.TrimSuffix(l.recipe, ".yaml") + ".lock.json"
	mirrored, err := os.ReadFile(name)
	if err != nil {
		l.Fatal(err)
	}
	for _, p := range l.file().Packages[:1] { // aa
		faults.Add(ocitest.Fault{Kind: ocitest.Blob, Method: "GET", Path: p.Digest.Hex(), Do: ocitest.WrongByte(ocitest.Middle), Times: -1})
	}
	for what, text := range map[string][]byte{"a mirror that lies": mirrored, "no mirror": plain} {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			l.Fatal(err)
		}
		_, err := l.build(l.TempDir(), "--locked")
		if ui.Code(err) != ui.ExitSource || !strings.Contains(err.Error(), "cannot be had: aa 1") {
			l.Errorf("%s: exit code %d, want %d: %v", what, ui.Code(err), ui.ExitSource, err)
		}
	}
	faults.Reset()
	if err := os.WriteFile(name, mirrored, 0o644); err != nil {
		l.Fatal(err)
	}
}

// A server of packages that accepts and then says nothing, at once or in the middle of
// a package, is given up, and not waited for again for the next package.
func TestASilentServerOfPackages(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path == "/half.deb" {
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(make([]byte, 500000))
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}))
	defer server.Close()
	for name, quote := range map[string]string{"/nothing.deb": `"`, "/half.deb": ""} { // net/http's errors quote it
		l := &openedLock{client: &http.Client{Transport: remote.NewTransport(remote.Options{Stall: 100 * time.Millisecond})}}
		p := packages.Locked{Name: "silent", Version: "1", Digest: diskimage.DigestOf([]byte(name)), Size: 1000000, URL: server.URL + name}
		for _, want := range []string{p.URL + quote + ": stalled: no progress for 100ms", p.URL + " is not asked: "} {
			before := asked.Load()
			err := baseError(packages.Obtain(t.Context(), t.TempDir(), []packages.Locked{p}, l.fetch))
			e, ok := errors.AsType[*ui.Error](err)
			if !ok || e.Code != ui.ExitSource || !strings.Contains(e.Hint, "mirror") || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "silent 1") {
				t.Errorf("%s: want %q, got %#v: %v", name, want, e, err)
			}
			if again := strings.Contains(want, "not asked"); again != (asked.Load() == before) {
				t.Errorf("%s: %d requests, before that %d", want, asked.Load(), before)
			}
		}
	}
}
