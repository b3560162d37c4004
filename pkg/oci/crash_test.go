package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// crashFS stops at the operation with number stop: it and all later ones do
// nothing but fail, as if the process had been killed. powerLoss then undoes
// what was not synced.
type crashFS struct {
	mu      sync.Mutex
	stop, n int
	renames []rename            // since their directory was synced
	dirty   map[string]struct{} // files written since
}

type rename struct {
	dir, name string
	before    []byte // nil if there was none
	existed   bool
}

var errCrash = errors.New("crashed here")

func newCrashFS(stop int) *crashFS {
	return &crashFS{stop: stop, dirty: map[string]struct{}{}}
}

func (c *crashFS) step() error {
	c.n++
	if c.n-1 >= c.stop {
		return errCrash
	}
	return nil
}

type crashFile struct {
	atomicfile.TempFile
	c *crashFS
}

func (c *crashFS) CreateTemp(dir, pattern string) (atomicfile.TempFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.step(); err != nil {
		return nil, err
	}
	f, err := atomicfile.OS.CreateTemp(dir, pattern)
	if err != nil {
		return nil, err
	}
	return &crashFile{f, c}, nil
}

func (f *crashFile) Write(p []byte) (int, error) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if err := f.c.step(); err != nil {
		n, _ := f.TempFile.Write(p[:len(p)/2]) // a torn write
		return n, err
	}
	f.c.dirty[f.Name()] = struct{}{}
	return f.TempFile.Write(p)
}

func (f *crashFile) Sync() error {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if err := f.c.step(); err != nil {
		return err
	}
	delete(f.c.dirty, f.Name())
	return nil
}

func (c *crashFS) Rename(old, new string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.step(); err != nil {
		return err
	}
	r := rename{dir: filepath.Dir(new), name: new}
	if b, err := os.ReadFile(new); err == nil {
		r.before, r.existed = b, true
	}
	c.renames = append(c.renames, r)
	if _, ok := c.dirty[old]; ok {
		c.dirty[new] = struct{}{}
	}
	return os.Rename(old, new)
}

func (c *crashFS) Link(old, new string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.step(); err != nil {
		return err
	}
	if err := os.Link(old, new); err != nil {
		return err
	}
	c.renames = append(c.renames, rename{dir: filepath.Dir(new), name: new})
	return nil
}

func (c *crashFS) Remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.step(); err != nil {
		return err
	}
	return os.Remove(name)
}

func (c *crashFS) SyncDir(dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.step(); err != nil {
		return err
	}
	kept := c.renames[:0]
	for _, r := range c.renames {
		if r.dir != dir {
			kept = append(kept, r)
		}
	}
	c.renames = kept
	return nil
}

// powerLoss loses each rename that no directory sync covered if lose says so,
// and the content of files that were not synced.
func (c *crashFS) powerLoss(t *testing.T, lose func() bool) {
	t.Helper()
	for i := len(c.renames) - 1; i >= 0; i-- {
		r := c.renames[i]
		if !lose() {
			continue
		}
		err := os.Remove(r.name)
		if r.existed {
			err = os.WriteFile(r.name, r.before, 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	for name := range c.dirty {
		if err := os.Truncate(name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// everyCrash has act stop at each of its operations, until it does not stop any more, three
// times: killed, with a power loss that undoes all it can, and with one that undoes some.
// judge looks at what is left, and is told when that was and what act returned.
func everyCrash(t *testing.T, act func(atomicfile.FS) error, judge func(when string, err error)) {
	t.Helper()
	for stop, finished := 0, false; !finished; stop++ {
		for variant := range 3 {
			fsys := newCrashFS(stop)
			err := act(fsys)
			finished = err == nil
			if err != nil && !errors.Is(err, errCrash) {
				t.Fatalf("operation %d: %v", stop, err)
			}
			rnd := rand.New(rand.NewPCG(uint64(stop), uint64(variant)))
			switch variant {
			case 1:
				fsys.powerLoss(t, func() bool { return true })
			case 2:
				fsys.powerLoss(t, func() bool { return rnd.IntN(2) == 0 })
			}
			judge(fmt.Sprintf("operation %d, variant %d (%v)", stop, variant, err), err)
		}
	}
}

// At whatever operation packing and publishing stops, and whatever a power
// loss then undoes, the tag names the old image or the new one, whole.
func TestCrashLeavesTheOldOrTheNewImage(t *testing.T) {
	ctx := context.Background()
	disks := [][]byte{randomDisk(1, 120<<10), randomDisk(2, 120<<10)}
	o := PackOptions{Workers: 1, chunkSize: 16 << 10, segmentSize: 64 << 10}
	base := filepath.Join(t.TempDir(), "base")
	d, err := createDir(ctx, base, unsynced{atomicfile.OS})
	if err != nil {
		t.Fatal(err)
	}
	mustPack(t, d, sparse(disks[0], 4096), o, "v1")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	sawOld, sawNew := 0, 0
	var dir string
	everyCrash(t, func(fsys atomicfile.FS) error {
		dir = filepath.Join(t.TempDir(), "layout")
		if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		d, err := createDir(ctx, dir, fsys)
		if err != nil {
			return err
		}
		defer d.Close()
		p, err := Pack(ctx, sparse(disks[1], 4096), testConfig(), d, o)
		if err != nil {
			return err
		}
		return d.Publish(ctx, p.Descriptor, "v1")
	}, func(when string, err error) {
		a := mustOpen(t, &Dir{path: dir}, "v1")
		got := readAll(t, a.Disk(ctx))
		switch {
		case bytes.Equal(got, disks[1]):
			sawNew++
		case bytes.Equal(got, disks[0]) && err != nil:
			sawOld++
		default:
			t.Fatalf("%s: the tag names neither the old nor the new image", when)
		}
		if err := a.VerifyBlobs(ctx); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		checkCollects(t, dir)
	})
	if sawOld < 10 || sawNew == 0 {
		t.Errorf("saw the old image %d times and the new one %d times", sawOld, sawNew)
	}
}

// checkCollects runs GC and expects one image and nothing else to be left.
func checkCollects(t *testing.T, dir string) {
	t.Helper()
	ctx := context.Background()
	d, err := OpenDir(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.GC(); err != nil {
		t.Fatal(err)
	}
	a := mustOpen(t, d, "v1")
	distinct := map[string]bool{a.Digest().Hex(): true, a.manifest.config.Digest.Hex: true,
		a.manifest.index.Digest.Hex: true, a.manifest.blockMap.Digest.Hex: true}
	for _, s := range a.index.Segments {
		distinct[s.Digest.Hex()] = true
	}
	var extra []string
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !distinct[e.Name()] && e.Name() != layoutFile && e.Name() != indexFile {
			extra = append(extra, path)
		}
		return err
	})
	if err != nil || len(extra) > 0 {
		t.Errorf("left after GC: %v, %v", extra, err)
	}
	if err := a.VerifyBlobs(ctx); err != nil {
		t.Errorf("after GC: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCrashWhileMakingALayoutCanBeRepeated(t *testing.T) {
	ctx := context.Background()
	for stop, finished := 0, false; !finished; stop++ {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(stop))
		fsys := newCrashFS(stop)
		d, err := createDir(ctx, dir, fsys)
		if finished = err == nil; finished {
			_ = d.Close()
		}
		fsys.powerLoss(t, func() bool { return true })
		if d, err = CreateDir(ctx, dir); err != nil {
			t.Fatalf("operation %d: %v", stop, err)
		}
		if _, err := d.Index(); err != nil {
			t.Errorf("operation %d: %v", stop, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
