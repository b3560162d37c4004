package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// A build of which the layout has not all is no build to which nothing changed.
func TestJudgesNothingChangedNeedsTheWholeImage(t *testing.T) {
	if os.Getenv("IMGPIPE_JUDGES") == "" {
		t.Skip("IMGPIPE_JUDGES is not set")
	}
	a := newArchive(t)
	a.put("aa", "1")
	a.index()
	recipe, layout, cache := a.recipe("aa"), filepath.Join(t.TempDir(), "images"), t.TempDir()
	build := func(what string) (digest string, shortcut bool) {
		out, said, err := imgbuild(t, "build", recipe, "--cache", cache, "-o", "oci:"+layout+":small")
		if err != nil {
			t.Fatalf("%s: %v\n%s", what, err, said)
		}
		line, _, _ := strings.Cut(out, "\n")
		_, digest, _ = strings.Cut(line, "@")
		return digest, strings.Contains(said, "nothing changed")
	}
	want, _ := build("first")
	if got, shortcut := build("again"); got != want || !shortcut {
		t.Fatalf("again: %s, want %s; nothing changed: %v", got, want, shortcut)
	}
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil || len(blobs) < 4 {
		t.Fatalf("%d blobs, %v", len(blobs), err)
	}
	damaged := func(blob, how string, damage func(string) error) {
		what := how + ": " + filepath.Base(blob)
		if err := damage(blob); err != nil {
			t.Fatal(err)
		}
		if got, shortcut := build(what); got != want || shortcut {
			t.Errorf("%s: %s, want %s; nothing changed: %v", what, got, want, shortcut)
		}
		wholeImage(t, what, layout, want)
	}
	for _, blob := range blobs {
		damaged(blob, "gone", os.Remove)
	}
	damaged(blobs[0], "cut", cutByOne)
	damaged(blobs[1], "longer", longerByOne)
	if got, shortcut := build("in the end"); got != want || !shortcut {
		t.Errorf("in the end: %s, want %s; nothing changed: %v", got, want, shortcut)
	}
}

func cutByOne(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if err := os.Chmod(name, 0o644); err != nil {
		return err
	}
	return os.Truncate(name, info.Size()-1)
}

func longerByOne(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := os.Remove(name); err != nil {
		return err
	}
	return os.WriteFile(name, append(b, 0), 0o644)
}

// wholeImage compares every blob of an image with its digest.
func wholeImage(t *testing.T, what, layout, digest string) {
	t.Helper()
	dir, err := oci.OpenDir(t.Context(), layout)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer dir.Close()
	d, err := diskimage.ParseDigest(digest)
	if err != nil {
		t.Fatal(err)
	}
	a, err := dir.Open(t.Context(), oci.Ref{Digest: d})
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer a.Close()
	if err := a.VerifyBlobs(t.Context()); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}
