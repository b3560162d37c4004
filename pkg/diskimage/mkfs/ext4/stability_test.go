package ext4

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/internal/place"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const chunk = chunkBlocks * blockSize

var sumSeed = maphash.MakeSeed()

// chunkSums returns a sum for each 64 KiB in use: of the bytes of metadata, and
// of which bytes of which contents lie where. Synthetic contents are equal where
// seed and offset are, so nothing has to be read; TestChunkSums holds it to that.
func chunkSums(fs *FS) map[int64]uint64 {
	sums := map[int64]uint64{}
	add := func(at int64, v ...uint64) {
		h := sums[at/chunk]
		for _, x := range v {
			h = place.Mix(h*31 + x + 1)
		}
		sums[at/chunk] = h
	}
	for _, r := range fs.regions {
		if r.node == nil {
			add(r.off, uint64(r.off%chunk), maphash.Bytes(sumSeed, r.meta))
			continue
		}
		for r.n > 0 {
			n := min(r.n, chunk-r.off%chunk)
			add(r.off, uint64(r.off%chunk), uint64(n), r.node.in.Data.(synthetic).seed, uint64(r.src))
			r.off, r.src, r.n = r.off+n, r.src+n, r.n-n
		}
	}
	return sums
}

// changed returns the bytes of the chunks in use that differ from what was there.
func changed(was, is map[int64]uint64) (bytes int64) {
	for at, sum := range is {
		if was[at] != sum {
			bytes += chunk
		}
	}
	return bytes
}

// pick returns packages with about the given share of all bytes.
func pick(d *debian, share float64, seed uint64) (names []string) {
	want := int64(share * float64(d.bytes(d.names...)))
	rnd := rand.New(rand.NewPCG(seed, seed))
	for _, i := range rnd.Perm(len(d.names)) {
		n := d.bytes(d.names[i])
		if n < want/3 && d.bytes(names...)+n < want*102/100 {
			names = append(names, d.names[i])
		}
	}
	return names
}

// update is a change of a Debian and the bytes of the files it is about.
type update struct {
	name  string
	tree  *tree.Tree
	bytes int64
}

func replaced(d *debian, share float64) update {
	c := d.clone()
	names := pick(d, share, 1)
	for _, name := range names {
		c.replace(name)
	}
	return update{fmt.Sprintf("%d packages replaced", len(names)), c.tree(), c.bytes(names...)}
}

func removed(d *debian, share float64) update {
	c := d.clone()
	names := pick(d, share, 2)
	for _, name := range names {
		delete(c.packages, name)
	}
	c.names = slices.DeleteFunc(c.names, func(name string) bool { return slices.Contains(names, name) })
	return update{fmt.Sprintf("%d packages removed", len(names)), c.tree(), d.bytes(names...)}
}

// changedFile gives one file 20 KB more, or adds one of 20 KB.
func changedFile(d *debian, name string, file int, add bool) update {
	c := d.clone()
	files := c.packages[name]
	if add {
		c.packages[name] = append(files, debFile{path: files[file].path + "-added", size: 20 << 10, seed: 99})
		return update{"a file added", c.tree(), 20 << 10}
	}
	files[file].size += 20 << 10
	files[file].seed++
	return update{"a file grown", c.tree(), files[file].size}
}

// The acceptance figures: what a change moves at the default size, where the
// tree is about as large as that size allows, and where it has just outgrown it.
func TestStability(t *testing.T) {
	d := newDebian()
	size := AutoSize(d.tree(), 100)
	more := d.clone()
	more.packages[d.names[0]] = append(more.packages[d.names[0]], debFile{path: "/boot/more", size: 20 << 20})
	if AutoSize(more.tree(), 100) == size {
		t.Errorf("the tree is not just under a step: 20 MiB more fit into %d bytes", size)
	}
	for where, size := range map[string]int64{"just under a step": size, "just over it": quantise(size + 1)} {
		fs := mustNew(t, d.tree(), options(size))
		was := chunkSums(fs)
		inUse := int64(len(was)) * chunk
		large, small := d.names[3], d.names[100]
		for _, c := range []struct {
			update
			limit int64
		}{
			{changedFile(d, small, 0, false), inUse / 200},
			{changedFile(d, large, 700, false), inUse / 200},
			{changedFile(d, small, 0, true), inUse / 200},
			{changedFile(d, large, 700, true), inUse / 200},
			{replaced(d, 0.06), -1},
			{removed(d, 0.06), -1},
		} {
			if c.limit < 0 {
				c.limit = c.bytes * 3 / 2
			}
			got := changed(was, chunkSums(mustNew(t, c.tree, options(size))))
			t.Logf("%s: %s (%.1f MB): %.2f MB of %d MB in use changed", where, c.name, float64(c.bytes)/1e6, float64(got)/1e6, inUse/1e6)
			if got > c.limit {
				t.Errorf("%s: %s: %d bytes changed, at most %d", where, c.name, got, c.limit)
			}
		}
	}
}

// The table of docs/ext4.md.
func TestStabilityTable(t *testing.T) {
	d := newDebian()
	base := d.tree()
	updates := []update{replaced(d, 0.06), replaced(d, 0.23)}
	var out strings.Builder
	for _, room := range []int64{125, 150, 200} {
		g, err := newGeometry(roundUp(Used(base)*room/100, blockSize), 30000)
		if err != nil {
			t.Fatal(err)
		}
		size := roundUp(Used(base)*room/100+g.overhead()*blockSize, 1<<20)
		was := chunkSums(mustNew(t, base, options(size)))
		fmt.Fprintf(&out, "\n%.2f x used, %d MB in use:", float64(room)/100, len(was)*chunk/1e6)
		for _, u := range updates {
			got := changed(was, chunkSums(mustNew(t, u.tree, options(size))))
			fmt.Fprintf(&out, " %.1f of %.1f MB (%.2f)", float64(got)/1e6, float64(u.bytes)/1e6, float64(got)/float64(u.bytes))
		}
	}
	t.Log(out.String())
}

// A larger geometry moves a share of the places, not all of them.
func TestStabilityAcrossSteps(t *testing.T) {
	d := newDebian()
	base := d.tree()
	size := AutoSize(base, 100)
	was := chunkSums(mustNew(t, base, options(size)))
	is := chunkSums(mustNew(t, base, options(quantise(size+1))))
	got := changed(was, is)
	t.Logf("%d to %d MiB: %d of %d MB in use changed", size>>20, quantise(size+1)>>20, got/1e6, len(is)*chunk/1e6)
	if got > int64(len(is))*chunk/2 {
		t.Errorf("%d bytes changed", got)
	}
}

// chunkSums says that two chunks are equal exactly if their bytes are.
func TestChunkSums(t *testing.T) {
	d := newDebian()
	for i, name := range d.names {
		if i < 6 || i%4 != 0 {
			delete(d.packages, name)
		}
	}
	d.names = slices.DeleteFunc(d.names, func(name string) bool { return d.packages[name] == nil })
	a := mustNew(t, d.tree(), options(1<<30))
	b := mustNew(t, replaced(d, 0.2).tree, options(1<<30))
	x, y := chunkSums(a), chunkSums(b)
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	for _, e := range diskimage.AlignExtents(append(slices.Clone(a.Extents()), b.Extents()...), chunk, a.Size()) {
		for at := e.Off / chunk; at < e.End()/chunk; at++ {
			for fs, buf := range map[*FS][]byte{a: bufA, b: bufB} {
				if _, err := fs.ReadAt(buf, at*chunk); err != nil {
					t.Fatal(err)
				}
			}
			if (x[at] == y[at]) != (string(bufA) == string(bufB)) {
				t.Fatalf("chunk %d: sums %x %x", at, x[at], y[at])
			}
		}
	}
}

func BenchmarkNew(b *testing.B) {
	tr := newDebian().tree()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New(tr, options(0)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadAt(b *testing.B) {
	fs, err := New(newDebian().tree(), options(0))
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, chunk)
	b.SetBytes(chunk)
	at := int64(0)
	for b.Loop() {
		e := fs.extents[at%int64(len(fs.extents))]
		at += 7
		if _, err := fs.ReadAt(buf, e.Off/chunk*chunk); err != nil {
			b.Fatal(err)
		}
	}
}
