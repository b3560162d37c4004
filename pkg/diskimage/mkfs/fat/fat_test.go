package fat_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const mib = 1 << 20

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// put adds a file of n bytes that follow from its path.
func put(t testing.TB, tr *tree.Tree, path string, n int) {
	t.Helper()
	seed := diskimage.DigestOf([]byte(path))
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b)
	err := tr.Put(path, &tree.Inode{Mode: 0o644, MTime: epoch.Add(-time.Hour), Data: diskimage.Bytes(b)})
	if err != nil {
		t.Fatal(err)
	}
}

// hardTree has every shape of name, size and directory that FAT can hold.
func hardTree(t testing.TB) *tree.Tree {
	tr := tree.New()
	put(t, tr, "/EFI/BOOT/BOOTX64.EFI", 1*mib+17)
	put(t, tr, "/empty", 0)
	put(t, tr, "/one", 1)
	put(t, tr, "/loader/loader.conf", 100)
	put(t, tr, "/loader/entries/a name with spaces.conf", 4096)
	put(t, tr, "/loader/entries/a name with spaces too.conf", 4097)
	put(t, tr, "/A NAME~1.CON", 3)
	put(t, tr, "/dots/.hidden", 5)
	put(t, tr, "/dots/a.b.c.d", 5)
	put(t, tr, "/dots/+,;=[]", 5)
	put(t, tr, "/names/grüße.txt", 7)
	put(t, tr, "/names/日本語.dat", 8)
	put(t, tr, "/names/exactly13char", 9) // a long name without a terminator
	put(t, tr, "/names/"+strings.Repeat("n", 255), 10)
	put(t, tr, "/names/meta~1.txt", 1)
	put(t, tr, "/names/meta-data.txt", 2) // its alias is not META-D~1.TXT by luck alone
	put(t, tr, "/names/META-D~1.TXT", 3)
	for i := range 100 {
		put(t, tr, fmt.Sprintf("/many/file number %03d", i), i)
	}
	if err := tr.Put("/emptydir", &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: epoch.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	return tr
}

func build(t testing.TB, tr *tree.Tree, o fat.Options) *fat.FS {
	t.Helper()
	if o.Epoch.IsZero() {
		o.Epoch = epoch
	}
	f, err := fat.New(tr, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func readAll(t testing.TB, d diskimage.Disk) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSameBytesTwiceAndInPieces(t *testing.T) {
	for _, kind := range []fat.Type{fat.FAT12, fat.FAT16, fat.FAT32} {
		size := map[fat.Type]int64{fat.FAT12: 8 * mib, fat.FAT16: 32 * mib, fat.FAT32: 40 * mib}[kind]
		o := fat.Options{Size: size, SectorSize: 512, Label: "TWICE", VolumeID: 1, Type: kind}
		f := build(t, hardTree(t), o)
		whole := readAll(t, f)
		if !bytes.Equal(whole, readAll(t, build(t, hardTree(t), o))) {
			t.Errorf("%v: a second build gives other bytes", kind)
		}
		// Every byte outside the extents is zero, and they have the promised form.
		end, seen := int64(-1), make([]byte, len(whole))
		for _, e := range f.Extents() {
			if e.Off <= end || e.Len <= 0 || e.End() > size {
				t.Fatalf("%v: extent %v after %d", kind, e, end)
			}
			end = e.End()
			copy(seen[e.Off:e.End()], whole[e.Off:e.End()])
		}
		if !bytes.Equal(seen, whole) {
			t.Errorf("%v: there is data outside the extents", kind)
		}
		// Reads of any place and length agree with the whole.
		r := rand.New(rand.NewPCG(1, 2))
		for range 2000 {
			off := r.Int64N(size)
			if r.IntN(2) == 0 {
				off = r.Int64N(300 << 10) // where the tables are
			}
			b := make([]byte, r.IntN(5000))
			n, err := f.ReadAt(b, off)
			if want := int(min(int64(len(b)), size-off)); n != want || (err != nil && (err != io.EOF || n == len(b))) {
				t.Fatalf("%v: ReadAt(%d, %d) = %d, %v, want %d", kind, len(b), off, n, err, want)
			}
			if !bytes.Equal(b[:n], whole[off:off+int64(n)]) {
				t.Fatalf("%v: ReadAt(%d, %d) differs from the whole", kind, len(b), off)
			}
		}
	}
}

func TestTypeAndUUID(t *testing.T) {
	for _, c := range []struct {
		size, sector int64
		want         string
	}{
		{64 << 10, 512, "fat12"},
		{1 * mib, 512, "fat12"},
		{4 * mib, 512, "fat16"},
		{8 * mib, 512, "fat16"},
		{4 * mib, 4096, "fat12"},
		{8 * mib, 4096, "fat12"},
		{4100 * 4096, 4096, "fat12"}, // around the limit of 4085 clusters
		{64 * mib, 512, "fat16"},
		{511 * mib, 512, "fat16"},
		{512 * mib, 512, "fat32"},
		{512 * mib, 4096, "fat32"},
		{100 << 30, 512, "fat32"},
	} {
		f := build(t, tree.New(), fat.Options{Size: c.size, SectorSize: c.sector, VolumeID: 0xabcd1234})
		if f.Type() != c.want {
			t.Errorf("%d bytes, sectors of %d: %s, want %s", c.size, c.sector, f.Type(), c.want)
		}
		if f.UUID() != "ABCD-1234" || f.Size() != c.size {
			t.Errorf("UUID %q, size %d", f.UUID(), f.Size())
		}
	}
}

func TestErrors(t *testing.T) {
	with := func(path string, n *tree.Inode) *tree.Tree {
		tr := tree.New()
		if err := tr.Put(path, n); err != nil {
			t.Fatal(err)
		}
		return tr
	}
	cases := with("/d/File", &tree.Inode{})
	put(t, cases, "/d/fILE", 1)
	greek := with("/Ωmega", &tree.Inode{})
	put(t, greek, "/ωmega", 1)
	full := tree.New()
	put(t, full, "/big", 8*mib)
	root := tree.New()
	for i := range 13050 {
		put(t, root, fmt.Sprintf("/a name that takes three more slots %05d", i), 0)
	}
	small := fat.Options{Size: 8 * mib, SectorSize: 512}
	for name, c := range map[string]struct {
		tr   *tree.Tree
		o    fat.Options
		want string
	}{
		"symlink":       {with("/etc/x", &tree.Inode{Kind: tree.Symlink, Target: "y"}), small, "/etc/x: FAT cannot hold a symlink"},
		"device":        {with("/dev/x", &tree.Inode{Kind: tree.CharDevice}), small, "/dev/x: FAT cannot hold a character device"},
		"xattr":         {with("/x", &tree.Inode{Xattrs: map[string]string{"user.a": "b"}}), small, "/x: FAT cannot hold extended attributes"},
		"case":          {cases, small, `/d/fILE: differs from "File" only in case`},
		"other case":    {greek, small, `differs from "Ωmega" only in case`},
		"bytes":         {with("/a\xff", &tree.Inode{}), small, "not UTF-8"},
		"sign":          {with("/a:b", &tree.Inode{}), small, `/a:b: FAT allows no ':'`},
		"dot at end":    {with("/a.", &tree.Inode{}), small, "drops a dot"},
		"space at end":  {with("/a ", &tree.Inode{}), small, "drops a dot or space"},
		"4 GiB":         {with("/a", &tree.Inode{Data: diskimage.Section(nil, 0, 1<<32)}), small, "/a: 4294967296 bytes"},
		"full":          {full, small, "missing"},
		"root full":     {root, fat.Options{Size: 64 * mib, SectorSize: 512}, "has at most 65024 in its root"},
		"sector":        {tree.New(), fat.Options{Size: 8 * mib, SectorSize: 520}, "sector size 520"},
		"odd size":      {tree.New(), fat.Options{Size: 8*mib + 512, SectorSize: 4096}, "not a positive multiple"},
		"no size":       {tree.New(), fat.Options{SectorSize: 4096}, "not a positive multiple"},
		"too large":     {tree.New(), fat.Options{Size: 3 << 40, SectorSize: 512}, "at most 4294967295 sectors"},
		"tiny":          {tree.New(), fat.Options{Size: 4096, SectorSize: 512}, "no cluster size"},
		"fat32 at 4096": {tree.New(), fat.Options{Size: 256 * mib, SectorSize: 4096, Type: fat.FAT32}, "(260 MiB) with 4096-byte sectors"},
		"fat32 at 512":  {tree.New(), fat.Options{Size: 32 * mib, SectorSize: 512, Type: fat.FAT32}, "(33 MiB) with 512-byte sectors"},
		"fat16 small":   {tree.New(), fat.Options{Size: 8 * mib, SectorSize: 4096, Type: fat.FAT16}, "4101 to 65508 clusters"},
		"label long":    {tree.New(), fat.Options{Size: 8 * mib, SectorSize: 512, Label: "TWELVE CHARS"}, "at most 11"},
		"label case":    {tree.New(), fat.Options{Size: 8 * mib, SectorSize: 512, Label: "cidata"}, "upper-case"},
		"label sign":    {tree.New(), fat.Options{Size: 8 * mib, SectorSize: 512, Label: "A.B"}, "'.' is not allowed"},
		"label none":    {tree.New(), fat.Options{Size: 8 * mib, SectorSize: 512, Label: "NO NAME"}, "means that there is none"},
	} {
		if _, err := fat.New(c.tr, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	// The least sizes that the errors name are enough.
	for size, sector := range map[int64]int64{260 * mib: 4096, 33 * mib: 512} {
		build(t, tree.New(), fat.Options{Size: size, SectorSize: sector, Type: fat.FAT32})
	}
}

// TestWideCharacters has names beyond 16 bits, which fsck.fat can judge and
// mtools cannot read.
func TestWideCharacters(t *testing.T) {
	tr := tree.New()
	put(t, tr, "/🐧", 9)
	f := build(t, tr, fat.Options{Size: 8 * mib, SectorSize: 512})
	fsck(t, disktest.Save(t, f))
	// One long entry, in its last one: U+1F427 is D83D DC27, then the end.
	want := []byte("\x41\x3d\xd8\x27\xdc\x00\x00\xff\xff\xff\xff\x0f\x00")
	if !bytes.Contains(readAll(t, f), want) {
		t.Errorf("no long entry of a surrogate pair: % x", want)
	}
}

type broken struct{ diskimage.Disk }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }

func TestReadErrorNamesThePath(t *testing.T) {
	tr := tree.New()
	if err := tr.Put("/d/file", &tree.Inode{Data: broken{diskimage.Bytes(make([]byte, 10))}}); err != nil {
		t.Fatal(err)
	}
	f := build(t, tr, fat.Options{Size: 8 * mib, SectorSize: 512})
	_, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err == nil || !strings.Contains(err.Error(), "/d/file: input/output error") {
		t.Errorf("got %v, want the path in it", err)
	}
}

// changed returns how many 64 KiB blocks differ between two volumes.
func changed(t *testing.T, a, b *fat.FS) (n int) {
	t.Helper()
	x, y := readAll(t, a), readAll(t, b)
	for i := 0; i < len(x); i += 64 << 10 {
		if !bytes.Equal(x[i:i+64<<10], y[i:i+64<<10]) {
			n++
		}
	}
	return n
}

func TestGrownFileLeavesOthersInPlace(t *testing.T) {
	make := func(grown int, more bool) *fat.FS {
		tr := tree.New()
		put(t, tr, "/EFI/BOOT/BOOTX64.EFI", 12*mib)
		put(t, tr, "/EFI/Linux/a.efi", 3*mib+grown)
		put(t, tr, "/EFI/Linux/b.efi", 5*mib)
		put(t, tr, "/loader/loader.conf", 200+grown/1000)
		if more {
			put(t, tr, "/EFI/Linux/aa.efi", 1*mib)
		}
		return build(t, tr, fat.Options{Size: 64 * mib, SectorSize: 512})
	}
	before := make(0, false)
	// The tail of the grown file, its neighbour's padding, the directory, the small file and two FATs.
	if n := changed(t, before, make(20_000, false)); n > 6 {
		t.Errorf("20 KB more in one file change %d blocks, want at most 6", n)
	}
	if n := changed(t, before, make(0, true)); n > 16+4 {
		t.Errorf("a new file of 16 blocks changes %d, want at most 20", n)
	}
}
