package erofs_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/erofs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// packaged is a tree of the shape of a distribution's in small. The packages in updated have other
// contents, a little longer or shorter, and one file more.
func packaged(t testing.TB, packages int, updated map[int]bool) (tr *tree.Tree, changed int64) {
	t.Helper()
	tr = tree.New()
	for p := range packages {
		rnd := rand.New(rand.NewPCG(uint64(p), 7))
		files := 5 + rnd.IntN(60)
		for f := range files {
			size := int(math.Exp(8+1.6*rnd.NormFloat64())) % (3 << 20)
			name := fmt.Sprintf("/usr/%s/pkg%d/f%d", []string{"bin", "lib", "share"}[f%3], p, f)
			seed := uint64(p*1000 + f)
			if updated[p] {
				size += size/50 + 100 - rnd.IntN(150)
				seed += 1 << 32
				changed += int64(size)
			}
			b := make([]byte, max(size, 1))
			fill := rand.New(rand.NewPCG(seed, 3))
			for i := range b {
				b[i] = byte(fill.Uint32())
			}
			put(t, tr, name, &tree.Inode{Mode: 0o644, Cluster: fmt.Sprintf("pkg%d", p), Data: diskimage.Bytes(b)})
		}
		if updated[p] {
			put(t, tr, fmt.Sprintf("/usr/share/pkg%d/new", p), &tree.Inode{Cluster: fmt.Sprintf("pkg%d", p)})
		}
	}
	return tr, changed
}

// TestUpdatesMoveLittle: what changes on the disk, in chunks of 64 KiB, is not much more than what changed.
func TestUpdatesMoveLittle(t *testing.T) {
	const chunk, packages = 64 << 10, 120
	before, _ := packaged(t, packages, nil)
	after, changed := packaged(t, packages, map[int]bool{3: true, 40: true, 77: true, 101: true, 110: true})
	o := options
	o.FreePercent = 100
	o.Size = erofs.AutoSize(before, o.FreePercent)
	a, b := mustNew(t, before, o), mustNew(t, after, o)
	x, y := make([]byte, chunk), make([]byte, chunk)
	moved, used := int64(0), int64(0)
	for off := int64(0); off < o.Size; off += chunk {
		n, _ := a.ReadAt(x, off)
		m, _ := b.ReadAt(y, off)
		if len(bytes.Trim(y[:m], "\x00")) == 0 {
			continue // zeros cost nothing
		}
		if used += chunk; !bytes.Equal(x[:n], y[:m]) {
			moved += chunk
		}
	}
	t.Logf("%.1f MB of files changed, %.1f of %.1f MB of chunks; %.1f MB of files on %.1f MB", float64(changed)/1e6, float64(moved)/1e6, float64(used)/1e6, float64(b.Used())/1e6, float64(o.Size)/1e6)
	if moved > 5*changed || changed == 0 {
		t.Errorf("%d bytes of files changed, %d of chunks", changed, moved)
	}
}
