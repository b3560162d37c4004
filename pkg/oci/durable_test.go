package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// noLinks is a filesystem that has no hard links.
type noLinks struct{ atomicfile.FS }

func (noLinks) Link(string, string) error { return errors.ErrUnsupported }

// slowFS waits in each SyncDir until it is let go.
type slowFS struct {
	atomicfile.FS
	begun chan struct{}
	let   chan struct{}
}

func (s *slowFS) SyncDir(dir string) error {
	if strings.HasSuffix(dir, "sha256") {
		s.begun <- struct{}{}
		<-s.let
	}
	return s.FS.SyncDir(dir)
}

// A blob that gets its name while another's sync runs is not durable by that.
func TestSyncCoversWhatWasNamedBeforeItBegan(t *testing.T) {
	d := newDir(t)
	slow := &slowFS{FS: d.fs, begun: make(chan struct{}, 8), let: make(chan struct{})}
	d.fs = slow
	put := func(text string) {
		t.Helper()
		if _, err := d.PutBlob([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	put("first")
	ended := make(chan error, 8)
	sync := func() { ended <- d.Sync() }
	go sync()
	<-slow.begun
	put("second")
	for range 4 {
		go sync()
	}
	slow.let <- struct{}{}
	if err := <-ended; err != nil { // the first, whose sync it was
		t.Fatal(err)
	}
	select {
	case <-slow.begun: // a second one is needed
	case err := <-ended:
		t.Fatalf("a sync ended without one that began after the blob was named: %v", err)
	}
	slow.let <- struct{}{}
	for range 4 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if err := d.Sync(); err != nil || len(slow.begun) != 0 {
		t.Errorf("a sync of nothing: %v, begun %d", err, len(slow.begun))
	}
}

// syncedDirs remembers which directories were synced.
type syncedDirs struct {
	unsynced
	dirs map[string]bool
}

func (s syncedDirs) SyncDir(dir string) error { s.dirs[dir] = true; return nil }

func TestNewDirectoriesAreDurable(t *testing.T) {
	root := t.TempDir()
	s := syncedDirs{unsynced{atomicfile.OS}, map[string]bool{}}
	d, err := createDir(t.Context(), filepath.Join(root, "a/b/c"), s)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, dir := range []string{"", "a", "a/b", "a/b/c", "a/b/c/blobs"} {
		if !s.dirs[filepath.Join(root, dir)] {
			t.Errorf("%q was not synced: %v", dir, s.dirs)
		}
	}
}

// What a registry acknowledges survives, at whatever operation it stops and
// whatever a power loss then undoes; and index.json names nothing incomplete.
func TestAcknowledgedSurvivesCrashes(t *testing.T) {
	ctx := context.Background()
	steps := func(root string, fsys atomicfile.FS) (acked map[string][]diskimage.Digest, err error) {
		acked = map[string][]diskimage.Digest{}
		from, err := createLayout(ctx, filepath.Join(root, "a"), fsys, func(e fs.DirEntry) bool { return e.IsDir() })
		if err != nil {
			return acked, err
		}
		defer from.Close()
		first, err := from.PutBlob([]byte("first"))
		if err == nil {
			err = from.Sync()
		}
		if err != nil {
			return acked, err
		}
		acked["a"] = append(acked["a"], first)
		to, err := createLayout(ctx, filepath.Join(root, "a/b/c"), fsys, func(e fs.DirEntry) bool { return e.IsDir() })
		if err != nil {
			return acked, err
		}
		defer to.Close()
		if _, err = to.LinkBlob(ctx, from, first); err == nil {
			err = to.Sync()
		}
		if err != nil {
			return acked, err
		}
		acked["a/b/c"] = append(acked["a/b/c"], first)
		for i := range 3 {
			body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"text/plain","digest":"%v","size":5},"layers":[],"annotations":{"n":"%d"}}`, first, i)
			desc, err := to.PushManifest(ctx, "v1", "application/vnd.oci.image.manifest.v1+json", []byte(body))
			if err != nil {
				return acked, err
			}
			digest, err := digestOf(desc.Digest)
			if err != nil {
				return acked, err
			}
			acked["tag"] = []diskimage.Digest{digest}
			acked["a/b/c"] = append(acked["a/b/c"], digest)
		}
		return acked, nil
	}
	var root string
	var acked map[string][]diskimage.Digest
	everyCrash(t, func(fsys atomicfile.FS) (err error) {
		root = t.TempDir()
		acked, err = steps(root, fsys)
		return err
	}, func(when string, _ error) {
		for _, repo := range []string{"a", "a/b/c"} {
			checkAcknowledged(t, filepath.Join(root, repo), acked[repo], acked["tag"], repo == "a/b/c")
		}
		if t.Failed() {
			t.Fatal(when)
		}
	})
}

func checkAcknowledged(t *testing.T, path string, blobs, tag []diskimage.Digest, tagged bool) {
	t.Helper()
	ctx := context.Background()
	// What was begun can be gone on with.
	d, err := createLayout(ctx, path, unsynced{atomicfile.OS}, func(e fs.DirEntry) bool { return e.IsDir() })
	if err != nil {
		t.Error(err)
		return
	}
	defer d.Close()
	for _, b := range blobs {
		if err := d.VerifyBlob(ctx, b); err != nil {
			t.Errorf("%s: acknowledged: %v", path, err)
		}
	}
	l, err := d.Listing()
	if err != nil || l.Err() != nil {
		t.Errorf("%s: %v, %v", path, err, l)
		return
	}
	desc, ok := l.Tag("v1")
	if tagged && len(tag) > 0 && !ok {
		t.Errorf("%s: the tag is lost", path)
	}
	if !ok {
		return
	}
	digest, err := digestOf(desc.Digest)
	if err != nil || d.VerifyBlob(ctx, digest) != nil || d.VerifyBlob(ctx, diskimage.DigestOf([]byte("first"))) != nil {
		t.Errorf("%s: the tag names %v, which is not whole", path, desc.Digest)
	}
	_, err = os.Stat(filepath.Join(path, "oci-layout"))
	if err != nil {
		t.Error(err)
	}
}
