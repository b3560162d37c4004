package oci

import (
	"errors"
	"sync"
	"testing"
)

// TestCollectorsDoNotCollectFromEachOther has two who use a layout collect at
// the same time, over and over: one that is refused keeps its lock, and what it
// wrote and did not publish yet.
func TestCollectorsDoNotCollectFromEachOther(t *testing.T) {
	path := t.TempDir()
	ctx := t.Context()
	a, err := CreateDir(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := OpenDir(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	digest, err := a.PutBlob([]byte("not published yet"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		var wg sync.WaitGroup
		for _, d := range []*Dir{a, b} {
			wg.Go(func() {
				if _, err := d.GC(); !errors.Is(err, ErrInUse) {
					t.Errorf("collected while the other has the layout open: %v", err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			break
		}
	}
	if _, err := a.ReadBlob(digest, 17, 17); err != nil {
		t.Error(err)
	}
}
