//go:build linux

package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// sparse is a file of the given size with synthetic contents in some extents.
type sparse struct {
	synthetic
	extents []diskimage.Extent
}

func (s sparse) Extents() []diskimage.Extent { return s.extents }

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	want := diskimage.Extent{Off: off, Len: int64(len(p))}
	for _, e := range s.extents {
		if x := e.Intersect(want); x.Len > 0 {
			if _, err := s.synthetic.ReadAt(p[x.Off-off:x.End()-off], x.Off); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

// acl encodes a POSIX ACL as setfacl does: tag, permissions, id.
func acl(entries ...[3]uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

const noID = 0xffffffff

var someACL = acl([3]uint32{1, 6, noID}, [3]uint32{2, 7, 1000}, [3]uint32{2, 4, 70000}, [3]uint32{4, 4, noID},
	[3]uint32{8, 5, 50}, [3]uint32{0x10, 7, noID}, [3]uint32{0x20, 4, noID})

// netRaw is the file capability of ping: cap_net_raw+ep, revision 2.
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// hardTree has one of everything that is easy to get wrong.
func hardTree(t *testing.T) *tree.Tree {
	tr := tree.New()
	at := func(path string, in *tree.Inode) *tree.Inode { t.Helper(); return put(t, tr, path, in) }
	at("/", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	at("/sticky", &tree.Inode{Kind: tree.Dir, Mode: 0o1777, UID: 1, GID: 4000000000})
	at("/empty-dir", &tree.Inode{Kind: tree.Dir, Mode: 0o700})
	at("/empty", &tree.Inode{Mode: 0o4755})
	for _, n := range []int{1, 59, 60, 4095} {
		at(fmt.Sprintf("/links/%d", n), &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: strings.Repeat("t", n)})
	}
	at("/names/"+strings.Repeat("n", 255), &tree.Inode{Mode: 0o600, Data: diskimage.Bytes([]byte("long name"))})
	at("/names/\xff\x01 \n\"\\\xc3\x28", &tree.Inode{Mode: 0o600})
	for i := range 1000 {
		at(fmt.Sprintf("/names/b/%c%c%0*d", 1+i%46, 0xe4+i, i%200, i), &tree.Inode{Mode: 0o600})
	}
	at("/dev/null", &tree.Inode{Kind: tree.CharDevice, Mode: 0o666, Major: 1, Minor: 3})
	at("/dev/far", &tree.Inode{Kind: tree.BlockDevice, Mode: 0o660, Major: 4095, Minor: 1048575})
	at("/dev/minor", &tree.Inode{Kind: tree.BlockDevice, Mode: 0o660, Major: 8, Minor: 300})
	at("/dev/fifo", &tree.Inode{Kind: tree.Fifo, Mode: 0o600})
	at("/dev/socket", &tree.Inode{Kind: tree.Socket, Mode: 0o755})
	at("/x/capability", &tree.Inode{Mode: 0o755, Xattrs: map[string]string{"security.capability": netRaw}})
	at("/x/both", &tree.Inode{Mode: 0o755, Data: diskimage.Bytes([]byte("both")), Xattrs: map[string]string{
		"security.selinux": "system_u:object_r:bin_t:s0\x00", "user.large": strings.Repeat("v", 3001), "trusted.t": "", "user.b": "bb"}})
	at("/x/acl", &tree.Inode{Mode: 0o674, Xattrs: map[string]string{"system.posix_acl_access": someACL}})
	at("/x/dir", &tree.Inode{Kind: tree.Dir, Mode: 0o755, Xattrs: map[string]string{"system.posix_acl_default": someACL, "user.d": strings.Repeat("d", 200)}})
	at("/x/dir/link", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "short", Xattrs: map[string]string{"trusted.l": strings.Repeat("l", 300)}})
	at("/x/full", &tree.Inode{Mode: 0o644, Xattrs: map[string]string{"user.x": strings.Repeat("f", blockSize-xattrHeader-4-xattrEntry-4)}})
	at("/times/old", &tree.Inode{MTime: time.Date(1935, 1, 2, 3, 4, 5, 6, time.UTC)})
	at("/times/ns", &tree.Inode{MTime: time.Date(2009, 1, 2, 3, 4, 5, 999999999, time.UTC)})
	at("/times/late", &tree.Inode{MTime: testEpoch.Add(time.Hour)})
	at("/size/mib", &tree.Inode{Mode: 0o644, Data: synthetic{5, 1 << 20}})
	at("/size/odd", &tree.Inode{Mode: 0o644, Data: synthetic{6, 5<<20 + 4097}})
	at("/size/sparse", &tree.Inode{Mode: 0o644, Data: sparse{synthetic{7, 1 << 40}, []diskimage.Extent{{Off: 5000, Len: 10}, {Off: 1 << 30, Len: 70000}, {Off: 1<<40 - 1, Len: 1}}}})
	at("/size/hole", &tree.Inode{Mode: 0o644, Data: sparse{synthetic{8, 1<<20 + 1}, nil}})
	var comb []diskimage.Extent // 3000 extents: an extent tree of two levels
	for i := range int64(3000) {
		comb = append(comb, diskimage.Extent{Off: i * 3 * blockSize, Len: blockSize + i%2*100})
	}
	at("/size/comb", &tree.Inode{Mode: 0o644, Data: sparse{synthetic{9, 3000 * 3 * blockSize}, comb}})
	linked := at("/hard/0", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte("linked"))})
	at("/hard/1", linked)
	at("/elsewhere", linked)
	return tr
}

func TestHardCases(t *testing.T) {
	tr := hardTree(t)
	fs := mustNew(t, tr, options(0))
	image := disktest.Save(t, fs)
	check(t, image)
	compare(t, image, tr)
}

func TestLargeDirectory(t *testing.T) {
	tr := tree.New()
	in := &tree.Inode{Mode: 0o644, MTime: testEpoch}
	for i := range 100_000 {
		if i%60000 == 0 {
			in = in.Clone() // at most 65,000 links each
		}
		put(t, tr, fmt.Sprintf("/d/a-file-with-a-longer-name-%06d", i), in)
	}
	fs := mustNew(t, tr, options(0))
	image := disktest.Save(t, fs)
	check(t, image)
	if out := disktest.Tool(t, "debugfs", "-R", "htree_dump /d", image); !strings.Contains(out, "Indirect levels: 1") {
		t.Fatalf("not an index of two levels: %.500s", out)
	}
	compare(t, image, tr)
}

func TestLargeFile(t *testing.T) {
	tr := tree.New()
	put(t, tr, "/var/large", &tree.Inode{Mode: 0o644, Data: synthetic{1, 3<<30 + 5}})
	fs := mustNew(t, tr, options(0))
	if used := Used(tr); used < 3<<30 || used > 3<<30+1<<20 {
		t.Errorf("used %d", used)
	}
	seen := map[int64]bool{}
	var sum int64
	for _, r := range fs.regions {
		if r.node != nil {
			if seen[r.src] || r.off%blockSize != 0 || r.src%blockSize != 0 {
				t.Fatalf("region %+v", r)
			}
			seen[r.src] = true
			sum += r.n
		}
	}
	if sum != 3<<30+5 {
		t.Errorf("%d bytes are mapped", sum)
	}
	// The metadata alone is enough for e2fsck, and 3 GiB need not be written.
	tr.Get("/var/large").Data = zeroContents{3<<30 + 5}
	check(t, disktest.Save(t, metadataOnly{fs}))
}

// zeroContents claims an extent of zeros.
type zeroContents struct{ size int64 }

func (z zeroContents) Size() int64                 { return z.size }
func (z zeroContents) Extents() []diskimage.Extent { return []diskimage.Extent{{Off: 0, Len: z.size}} }
func (z zeroContents) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// metadataOnly is a filesystem whose files are all zeros.
type metadataOnly struct{ *FS }

func (m metadataOnly) Extents() (out []diskimage.Extent) {
	for _, r := range m.regions {
		if r.node == nil {
			out = append(out, diskimage.Extent{Off: r.off, Len: r.n})
		}
	}
	return diskimage.MergeExtents(out)
}

func TestHardLinkLimit(t *testing.T) {
	tr := tree.New()
	in := put(t, tr, "/l/0", &tree.Inode{Mode: 0o644})
	for i := 1; i < maxLinks; i++ {
		put(t, tr, fmt.Sprintf("/l/%d", i), in)
	}
	check(t, disktest.Save(t, mustNew(t, tr, options(0))))
	put(t, tr, "/l/x", in)
	wantError(t, tr, options(0), `"/l/x"`, "65001", "65000")
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		in   *tree.Inode
		want string
	}{
		"xattr too large":  {&tree.Inode{Xattrs: map[string]string{"user.x": strings.Repeat("f", blockSize-xattrHeader-xattrEntry-4)}}, "user.x"},
		"xattr namespace":  {&tree.Inode{Xattrs: map[string]string{"other.x": ""}}, "other.x"},
		"bad ACL":          {&tree.Inode{Xattrs: map[string]string{"system.posix_acl_access": "\x02\x00\x00\x00\x01"}}, "ACL"},
		"long target":      {&tree.Inode{Kind: tree.Symlink, Target: strings.Repeat("t", 4096)}, "4095"},
		"empty target":     {&tree.Inode{Kind: tree.Symlink}, "empty"},
		"large major":      {&tree.Inode{Kind: tree.CharDevice, Major: 4096}, "4096"},
		"large file":       {&tree.Inode{Data: sparse{synthetic{0, 1 << 45}, nil}}, "bytes"},
		"extent past end":  {&tree.Inode{Data: sparse{synthetic{0, 10}, []diskimage.Extent{{Off: 5, Len: 10}}}}, "outside"},
		"unsorted extents": {&tree.Inode{Data: sparse{synthetic{0, 1 << 20}, []diskimage.Extent{{Off: 1 << 19, Len: 10}, {Off: 5, Len: 10}}}}, "sorted"},
	} {
		tr := tree.New()
		put(t, tr, "/a/file", c.in)
		t.Run(name, func(t *testing.T) { wantError(t, tr, options(0), `"/a/file"`, c.want) })
	}
	wantError(t, tree.New(), Options{Size: 64<<20 + 1}, "multiple")
	wantError(t, tree.New(), Options{Size: 1 << 20}, "missing")
	wantError(t, tree.New(), Options{Size: 1 << 50}, "at most")
	wantError(t, tree.New(), Options{Label: strings.Repeat("l", 17)}, "label")
}

func wantError(t *testing.T, tr *tree.Tree, o Options, words ...string) {
	t.Helper()
	_, err := New(tr, o)
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %s", err, w)
		}
	}
}

// The smallest filesystem that holds a tree is full to the last block, and one
// block less is an error that says that one block is missing.
func TestFullToTheLastBlock(t *testing.T) {
	for _, files := range []int{1, 300} {
		tr := tree.New()
		for i := range files {
			size := int64(150<<20) / int64(files)
			put(t, tr, fmt.Sprintf("/data/%d/f", i), &tree.Inode{Mode: 0o644, Data: synthetic{uint64(i), size - 3000}})
		}
		lo, hi := Used(tr)/blockSize, Used(tr)/blockSize*2
		for lo < hi { // the first size that fits
			if _, err := New(tr, options((lo+hi)/2*blockSize)); err == nil {
				hi = (lo + hi) / 2
			} else {
				lo = (lo+hi)/2 + 1
			}
		}
		fs := mustNew(t, tr, options(lo*blockSize))
		if free := fs.Stats().FreeBlocks; free != 0 {
			t.Errorf("%d files: %d blocks are free in the smallest filesystem", files, free)
		}
		check(t, disktest.Save(t, fs))
		_, err := New(tr, options((lo-1)*blockSize))
		var small *TooSmallError
		if !errors.As(err, &small) || small.Missing != blockSize {
			t.Errorf("one block less: %v", err)
		}
	}
}

// randomTree is a tree of every kind of thing.
func randomTree(t *testing.T, rnd *rand.Rand) *tree.Tree {
	tr := tree.New()
	dirs := []string{""}
	for range rnd.IntN(400) {
		p := dirs[rnd.IntN(len(dirs))] + "/"
		for range 1 + rnd.IntN(1+rnd.IntN(60)) {
			p += string(rune('a' + rnd.IntN(26)))
		}
		if tr.Get(p) != nil {
			continue
		}
		in := &tree.Inode{Kind: tree.Kind(rnd.IntN(7)), Mode: uint16(rnd.IntN(0o10000)), UID: rnd.Uint32(), GID: rnd.Uint32(),
			MTime: time.Unix(rnd.Int64N(3e9)-2e9, rnd.Int64N(1e9)).UTC(), Xattrs: map[string]string{}}
		for range rnd.IntN(3) * rnd.IntN(3) {
			in.Xattrs["trusted."+string(rune('a'+rnd.IntN(26)))] = strings.Repeat("v", rnd.IntN(1+rnd.IntN(900)))
		}
		switch in.Kind {
		case tree.Dir:
			dirs = append(dirs, p)
		case tree.Symlink:
			in.Target, in.Mode = strings.Repeat("t", 1+rnd.IntN(100)), 0o777
		case tree.CharDevice, tree.BlockDevice:
			in.Major, in.Minor = rnd.Uint32N(4096), rnd.Uint32N(1<<20)
		case tree.Regular:
			size := rnd.Int64N(1 + rnd.Int64N(1<<18))
			if rnd.IntN(4) > 0 {
				in.Data = synthetic{rnd.Uint64(), size}
				break
			}
			var extents []diskimage.Extent
			for off := rnd.Int64N(30000); off < size; off += 1 + rnd.Int64N(30000) {
				n := min(size-off, 1+rnd.Int64N(20000))
				extents = append(extents, diskimage.Extent{Off: off, Len: n})
				off += n
			}
			in.Data = sparse{synthetic{rnd.Uint64(), size}, extents}
		}
		put(t, tr, p, in)
		if in.Kind != tree.Dir && rnd.IntN(9) == 0 {
			put(t, tr, p+"~", in)
		}
	}
	return tr
}

func TestRandomTrees(t *testing.T) {
	for seed := range uint64(12) {
		tr := randomTree(t, rand.New(rand.NewPCG(seed, 1)))
		size := int64(0)
		if seed%3 == 1 { // little room
			size = roundUp(Used(tr)*11/10+9<<20, blockSize)
		}
		fs := mustNew(t, tr, options(size))
		image := disktest.Save(t, fs)
		check(t, image)
		compare(t, image, tr)
		again := mustNew(t, tr, options(size))
		if !equalDisks(t, fs, again) {
			t.Errorf("seed %d: the same tree gave other bytes", seed)
		}
	}
}
