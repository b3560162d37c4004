package base_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func write(t testing.TB, name string, b []byte) string {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(t.TempDir(), name)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTar(t *testing.T) {
	plain := pack(t, "etc/", "etc/a=1", "bin -> usr/bin")
	want := open(t)(base.Tar(t.Context(), write(t, "root.tar", plain), base.Options{}))
	bz2 := exec.Command("bzip2")
	bz2.Stdin = bytes.NewReader(plain)
	squeezed, err := bz2.Output()
	if err != nil {
		t.Fatal(err)
	}
	for format, stored := range map[string][]byte{"gzip": compress(t, "gzip", plain), "zstd": compress(t, "zstd", plain), "xz": compress(t, "xz", plain), "bzip2": squeezed} {
		cache, name := t.TempDir(), write(t, "root", stored)
		for range 2 { // the second time from the cache
			b := open(t)(base.Tar(t.Context(), name, base.Options{CacheDir: cache}))
			if diff := tree.DiffContents(want.Tree, b.Tree); len(diff) > 0 {
				t.Errorf("%s: %q", format, diff)
			}
			if b.Digest == want.Digest || b.Digest.IsZero() {
				t.Errorf("%s: digest %v", format, b.Digest)
			}
		}
	}
}

func TestTarRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"empty": {nil, "is empty"}, "noise": {bytes.Repeat([]byte{7}, 2000), "tar:"}, "cut gzip": {compress(t, "gzip", pack(t, "a=1"))[:40], "decompress gzip"},
		"twice": {compress(t, "gzip", compress(t, "gzip", pack(t, "a=1"))), "compressed with gzip"},
	} {
		path := write(t, name, c.b)
		cache := t.TempDir()
		_, err := base.Tar(t.Context(), path, base.Options{CacheDir: cache})
		wantError(t, err, c.want, path)
	}
	_, err := base.Tar(t.Context(), t.TempDir(), base.Options{})
	wantError(t, err, "not a regular file")
}

// A tar that changes after it was listed gives no bytes.
func TestChangedTar(t *testing.T) {
	name := write(t, "root.tar", pack(t, "etc/a=1"))
	b := open(t)(base.Tar(t.Context(), name, base.Options{}))
	if err := os.Chtimes(name, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Tree.ReadFile("/etc/a", 10); !errors.Is(err, tree.ErrChanged) {
		t.Errorf("got %v", err)
	}
}

func TestDir(t *testing.T) {
	dir, epoch := t.TempDir(), time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	file := write(t, filepath.Join(dir, "etc/a"), []byte("1"))
	if err := errors.Join(os.Symlink("/nowhere", filepath.Join(dir, "link")), os.Link(file, filepath.Join(dir, "hard")),
		os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(file), 0o755)); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(file, 1234, 1234); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(file, 0o755|os.ModeSetuid); err != nil { // chown took the bit away
		t.Fatal(err)
	}
	b := open(t)(base.Dir(dir, epoch))
	for e := range b.Tree.All() {
		if n := e.Inode; n.UID != 0 || n.GID != 0 || !n.MTime.Equal(epoch) {
			t.Errorf("%s: %d:%d at %v", e.Path, n.UID, n.GID, n.MTime)
		}
	}
	if n := b.Tree.Get("/etc/a"); n.Mode != 0o4755 || n != b.Tree.Get("/hard") || b.Tree.Get("/link").Target != "/nowhere" {
		t.Errorf("a %+v", n)
	}
	digest := func() string { return open(t)(base.Dir(dir, epoch)).Digest.String() }
	before := digest()
	if err := os.Chtimes(file, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if digest() != before {
		t.Error("another time of the host's file makes another tree")
	}
	for what, change := range map[string]func() error{
		"mode":    func() error { return os.Chmod(file, 0o644) },
		"content": func() error { return os.WriteFile(file, []byte("2"), 0o644) },
		"target": func() error {
			return errors.Join(os.Remove(filepath.Join(dir, "link")), os.Symlink("/x", filepath.Join(dir, "link")))
		},
		"name": func() error { return os.Rename(filepath.Join(dir, "hard"), filepath.Join(dir, "harder")) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		after := digest()
		if after == before {
			t.Errorf("another %s makes the same digest", what)
		}
		before = after
	}
}
