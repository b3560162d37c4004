package oci

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
)

const killHelper = "IMGPIPE_TEST_PUBLISH_INTO"

// killDisk is what the helper publishes in its round.
func killDisk(round int) []byte { return randomDisk(uint64(round%4), 500<<10) }

// TestPublishForever is not a test but the process that the next one kills.
func TestPublishForever(t *testing.T) {
	path := os.Getenv(killHelper)
	if path == "" {
		t.Skip("runs only as the process that TestKilledPublisherLeavesAWholeImage kills")
	}
	ctx := context.Background()
	for round := 0; ; round++ {
		d, err := CreateDir(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		o := small()
		o.Progress = func(done, total int64) { fmt.Println("packed", done, "of", total) }
		mustPack(t, d, sparse(killDisk(round), 4096), o, "v1")
		fmt.Println("published")
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A real process with the real filesystem, killed at random moments, leaves a
// whole image under the tag, no lock, and nothing that GC does not remove.
func TestKilledPublisherLeavesAWholeImage(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "layout")
	rnd := rand.New(rand.NewPCG(5, 5))
	for kill := range 8 {
		p := ocitest.Start(t, "TestPublishForever", killHelper+"="+path)
		p.After(t, "published")
		for range rnd.IntN(8) {
			p.Lines.Scan()
		}
		p.Kill(t)
		_ = p.Wait() // it was killed
		a, err := Open(ctx, Ref{Dir: path, Tag: "v1"})
		if err != nil {
			t.Fatalf("kill %d: %v", kill, err)
		}
		got := readAll(t, a.Disk(ctx))
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		whole := false
		for round := range 4 {
			whole = whole || bytes.Equal(got, killDisk(round))
		}
		if !whole {
			t.Errorf("kill %d: the tag names none of the images", kill)
		}
		checkCollects(t, path)
	}
}
