package diff

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// memory is a disk that counts what is read of it, and breaks where it is told to.
type memory struct {
	data  []byte
	read  int64 // bytes
	fails diskimage.Extent
}

var errBroken = errors.New("broken")

// chunks is an Image's Read.
func (m *memory) chunks(x *diskimage.Index) func([]int, func(int, []byte)) error {
	return func(numbers []int, keep func(int, []byte)) error {
		if !slices.IsSorted(numbers) {
			return errors.New("not in order")
		}
		for _, n := range numbers {
			c := x.Chunks[n]
			if m.fails.Overlaps(c.Extent) {
				return errBroken
			}
			m.read += c.Len
			keep(n, bytes.Clone(m.data[c.Off:c.End()]))
		}
		return nil
	}
}

// part is a filesystem to be laid onto a disk.
type part struct {
	name, kind string
	fs         diskimage.Disk
}

// imageWith is a disk of partitions, at multiples of 1 MiB, and its index.
func imageWith(t testing.TB, parts ...part) (Image, *memory) {
	t.Helper()
	m := &memory{data: make([]byte, 1<<20)}
	table := &diskimage.Table{}
	for _, p := range parts {
		at := int64(len(m.data))
		m.data = append(m.data, make([]byte, (p.fs.Size()+1<<20-1)>>20<<20)...)
		for _, e := range p.fs.Extents() {
			if _, err := p.fs.ReadAt(m.data[at+e.Off:at+e.End()], e.Off); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		table.Partitions = append(table.Partitions, diskimage.Partition{Name: p.name, GUID: guid(p.name),
			Extent: diskimage.Extent{Off: at, Len: p.fs.Size()}, Filesystem: diskimage.Filesystem{Type: p.kind}})
	}
	x := indexOf(t, m.data, 64<<10)
	return Image{Index: x, Table: table, Read: m.chunks(x)}, m
}

func ext4Of(t testing.TB, tr *tree.Tree, size int64) part {
	t.Helper()
	fs, err := ext4.New(tr, ext4.Options{Size: size, Epoch: epoch, Label: "root"})
	if err != nil {
		t.Fatal(err)
	}
	return part{"root", "ext4", fs}
}

func randomBytes(rnd *rand.Rand, n int) diskimage.Disk {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return diskimage.Bytes(b)
}

// randomTree has files of many sizes, hard links, attributes.
func randomTree(t testing.TB, rnd *rand.Rand, files int) *tree.Tree {
	t.Helper()
	tr := tree.New()
	put := func(p string, in *tree.Inode) *tree.Inode {
		in.MTime = epoch.Add(-time.Duration(1+rnd.IntN(1000)) * time.Hour)
		if err := tr.Put(p, in); err != nil {
			t.Fatal(err)
		}
		return in
	}
	put("/", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	put("/lost+found", &tree.Inode{Kind: tree.Dir, Mode: 0o700})
	for d := range 12 {
		put(fmt.Sprintf("/d%d", d), &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	}
	for i := range files {
		p := fmt.Sprintf("/d%d/%d", rnd.IntN(12), i)
		switch rnd.IntN(12) {
		case 0:
			put(p, &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: fmt.Sprint("t", i)})
		case 1:
			put(p, &tree.Inode{Kind: tree.CharDevice, Mode: 0o600, Minor: uint32(i)})
		case 2:
			in := put(p, &tree.Inode{Mode: 0o644, Data: randomBytes(rnd, rnd.IntN(9000))})
			put(p+"-link", in)
		default:
			put(p, &tree.Inode{Mode: 0o644, Data: randomBytes(rnd, rnd.IntN(1+rnd.IntN(200_000))), Xattrs: map[string]string{"user.a": "1"}})
		}
	}
	return tr
}

// mutate changes some of a tree in every way that is reported.
func mutate(t testing.TB, rnd *rand.Rand, tr *tree.Tree, share int) *tree.Tree {
	t.Helper()
	out := tr.Clone()
	for e := range tr.All() {
		if e.Path == "/" || e.Path == "/lost+found" || rnd.IntN(share) > 0 {
			continue
		}
		in := e.Inode.Clone()
		if in.Kind == tree.Dir {
			in.Mode ^= 0o020
			if err := out.Put(e.Path, in); err != nil {
				t.Fatal(err)
			}
			continue
		}
		switch rnd.IntN(11) {
		case 0:
			out.Remove(e.Path)
			continue
		case 1:
			in.Mode ^= 0o111
		case 2:
			in.UID++
		case 3:
			in.Xattrs = map[string]string{"user.a": "2"}
		case 4:
			in = &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "elsewhere", MTime: in.MTime}
		case 5:
			in.MTime = in.MTime.Add(time.Minute)
		case 6: // of another size
			in = &tree.Inode{Mode: 0o644, MTime: in.MTime, Data: randomBytes(rnd, rnd.IntN(100_000))}
		case 7, 8: // one byte
			if in.Kind == tree.Regular && in.Size() > 0 {
				b := make([]byte, in.Size())
				if _, err := in.Data.ReadAt(b, 0); err != nil {
					t.Fatal(err)
				}
				b[rnd.IntN(len(b))]++
				in.Data = diskimage.Bytes(b)
			}
		case 9: // one name more
			if err := out.Put(e.Path+"+", e.Inode); err != nil {
				t.Fatal(err)
			}
			continue
		case 10: // the same again, no hard link any more
		}
		if err := out.Put(e.Path, in); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// expected is what tree.DiffContents says, by path: what differs.
func expected(a, b *tree.Tree) (all map[string]string, touched map[string]bool) {
	all, touched = map[string]string{}, map[string]bool{}
	lines := map[string][]string{}
	for _, line := range tree.DiffContents(a, b) {
		path, what, _ := strings.Cut(line, ": ")
		word, _, _ := strings.Cut(what, " ")
		switch {
		case word == "new":
			word = Added
		case strings.HasSuffix(what, " is gone"):
			word = Removed
		case word == "hard":
			continue // it compares with names that are new, too
		case strings.Contains(what, ", now ") && !slices.Contains([]string{"mode", "owner", "mtime", "xattr", "target", "device", "size"}, word):
			word = "kind"
		}
		lines[path] = append(lines[path], word)
	}
	for path, words := range lines {
		if slices.Equal(words, []string{"mtime"}) {
			touched[path] = true
			continue
		}
		all[path] = words[0]
	}
	return all, touched
}

// asExpected compares a report with what the trees say.
func asExpected(t *testing.T, fs Filesystem, a, b *tree.Tree) {
	t.Helper()
	want, touched := expected(a, b)
	for _, f := range fs.Files {
		delete(touched, f.Path) // what else differs is its hard links
	}
	if fs.Problem != "" || fs.Touched != len(touched) {
		t.Fatalf("problem %q, %d touched, want %v", fs.Problem, fs.Touched, touched)
	}
	got := map[string]string{}
	counts := map[string]int{}
	for _, f := range fs.Files {
		counts[f.Change]++
		what := slices.DeleteFunc(slices.Clone(f.What), func(w string) bool { return w == "links" || w == "time" })
		if f.Change == Changed && len(what) == 0 {
			continue // hard links: below
		}
		got[f.Path] = f.Change
		if f.Change == Changed {
			if slices.Contains(what, "contents") != (f.Before.Kind == "file" && f.After.Kind == "file" && !sameData(a.Get(f.Path), b.Get(f.Path))) {
				t.Errorf("%s: %v", f.Path, what)
			}
		}
	}
	for path, word := range want {
		if word != Added && word != Removed {
			want[path] = Changed
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if counts[Added] != fs.Added || counts[Removed] != fs.Removed || counts[Changed] != fs.Changed {
		t.Errorf("counts %+v, listed %v", fs, counts)
	}
	if !slices.IsSortedFunc(fs.Files, func(x, y FileChange) int { return comparePaths(x.Path, y.Path) }) {
		t.Error("not sorted")
	}
}

func sameData(a, b *tree.Inode) bool {
	x, y := tree.New(), tree.New()
	_ = x.Put("/f", &tree.Inode{Data: a.Data})
	_ = y.Put("/f", &tree.Inode{Data: b.Data})
	return tree.Equal(x, y)
}

// TestFilesAgreeWithTheTrees compares images of trees with what the trees
// themselves say, and counts what that took.
func TestFilesAgreeWithTheTrees(t *testing.T) {
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		before := randomTree(t, rnd, 160)
		after := mutate(t, rnd, before, 3+int(seed)*40)
		sizeB := int64(32 << 20)
		if seed == 3 { // next to no free space: packed in path order, so that all files move
			sizeB = (ext4.Used(after) + 5<<20) &^ 4095
		}
		a, diskA := imageWith(t, ext4Of(t, before, 32<<20))
		b, diskB := imageWith(t, ext4Of(t, after, sizeB))
		got, read, err := Files(a, b, nil)
		if err != nil || len(got) != 1 {
			t.Fatal(err)
		}
		asExpected(t, got[0], before, after)
		plain := diskA.read + diskB.read
		all := a.Index.DataSize() + b.Index.DataSize()
		t.Logf("seed %d: read %d of %d bytes in %d chunks, changed %d", seed, plain, all, read.Chunks, Indexes(a.Index, b.Index).Count(b.Index).Plain)
		if read.Chunks == 0 || plain > all {
			t.Errorf("read %d bytes of %d, says %+v", plain, all, read)
		}
		for i := range got[0].Files { // they are JSON
			if _, err := json.Marshal(got[0].Files[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// hole is contents with holes.
type hole struct {
	*bytes.Reader
	extents []diskimage.Extent
}

func (h hole) Extents() []diskimage.Extent { return h.extents }

// TestFilesSayWhat changes one thing at a time.
func TestFilesSayWhat(t *testing.T) {
	data := func(text string) diskimage.Disk { return diskimage.Bytes([]byte(text)) }
	file := func(f func(*tree.Inode)) *tree.Inode {
		in := &tree.Inode{Mode: 0o644, MTime: epoch, Data: data("contents"), Xattrs: map[string]string{"user.a": "1"}}
		f(in)
		return in
	}
	was := file(func(*tree.Inode) {})
	holey := func(last byte) *tree.Inode { // all of it a hole, or all but the last block
		d := hole{bytes.NewReader(append(make([]byte, 1<<20-1), last)), nil}
		if last != 0 {
			d.extents = []diskimage.Extent{{Off: 1<<20 - 4096, Len: 4096}}
		}
		return &tree.Inode{Mode: 0o644, MTime: epoch, Data: d}
	}
	link := &tree.Inode{Kind: tree.Symlink, Mode: 0o777, MTime: epoch, Target: "a"}
	device := &tree.Inode{Kind: tree.CharDevice, Mode: 0o600, MTime: epoch, Major: 1}
	treeOf := func(f *tree.Inode, names ...string) *tree.Tree {
		tr := tree.New()
		for _, p := range append([]string{"/f"}, names...) {
			if err := tr.Put(p, f); err != nil {
				t.Fatal(err)
			}
		}
		return tr
	}
	for _, c := range []struct {
		a, b *tree.Tree
		want string
	}{
		{treeOf(was), treeOf(was), ""},
		{treeOf(was), treeOf(file(func(n *tree.Inode) { n.Mode = 0o4755 })), "/f changed [mode]"},
		{treeOf(was), treeOf(file(func(n *tree.Inode) { n.GID = 9 })), "/f changed [owner]"},
		{treeOf(was), treeOf(file(func(n *tree.Inode) { n.Xattrs = nil })), "/f changed [xattrs]"},
		{treeOf(was), treeOf(file(func(n *tree.Inode) { n.Data = data("contentt") })), "/f changed [contents]"},
		{treeOf(was), treeOf(file(func(n *tree.Inode) { n.Data = data("content") })), "/f changed [size contents]"},
		{treeOf(was), treeOf(file(func(n *tree.Inode) { n.Data = nil })), "/f changed [size contents]"},
		{treeOf(was), treeOf(file(func(n *tree.Inode) { n.MTime = epoch.Add(-1); n.UID = 1 })), "/f changed [owner time]"},
		{treeOf(holey(0)), treeOf(holey(0)), ""},
		{treeOf(holey(0)), treeOf(file(func(n *tree.Inode) { n.Data = diskimage.Bytes(make([]byte, 1<<20)); n.Xattrs = nil })), ""}, // zeros are zeros
		{treeOf(holey(0)), treeOf(holey(7)), "/f changed [contents]"},
		{treeOf(holey(7)), treeOf(holey(0)), "/f changed [contents]"},
		{treeOf(was), treeOf(link), "/f changed [kind mode xattrs]"},
		{treeOf(link), treeOf(&tree.Inode{Kind: tree.Symlink, Mode: 0o777, MTime: epoch, Target: "b"}), "/f changed [target]"},
		{treeOf(device), treeOf(&tree.Inode{Kind: tree.CharDevice, Mode: 0o600, MTime: epoch, Minor: 1}), "/f changed [device]"},
		{treeOf(was, "/g"), treeOf(was, "/g"), ""},
		{treeOf(was, "/g"), treeOf(was), "/g removed []"},
		{treeOf(was), treeOf(was, "/g"), "/g added []"},
		{treeOf(was, "/g", "/h"), treeOf(file(func(n *tree.Inode) { n.Data = data("another") }), "/g", "/h"),
			"/f changed [size contents], /g changed [size contents], /h changed [size contents]"},
		{treeOf(was, "/g", "/h"), treeOf(file(func(n *tree.Inode) { n.Data = data("contentt") }), "/g", "/h"),
			"/f changed [contents], /g changed [contents], /h changed [contents]"},
		{treeOf(was, "/g"), func() *tree.Tree {
			tr := treeOf(was)
			if err := tr.Put("/g", was.Clone()); err != nil {
				t.Fatal(err)
			}
			return tr
		}(), "/g changed [links]"},
	} {
		a, _ := imageWith(t, ext4Of(t, c.a, 16<<20))
		b, _ := imageWith(t, ext4Of(t, c.b, 16<<20))
		got, _, err := Files(a, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		for _, f := range got[0].Files {
			text = append(text, fmt.Sprint(f.Path, " ", f.Change, " ", f.What))
		}
		if joined := strings.Join(text, ", "); joined != c.want || got[0].Problem != "" {
			t.Errorf("got %s, want %s (%s)", joined, c.want, got[0].Problem)
		}
	}
}

// TestFilesSayWhichPackage: by dpkg's lists, merged-/usr or not, of the side that has the file.
func TestFilesSayWhichPackage(t *testing.T) {
	treeOf := func(files ...string) *tree.Tree {
		tr := tree.New()
		put := func(p string, in *tree.Inode) {
			in.MTime = epoch
			if err := tr.Put(p, in); err != nil {
				t.Fatal(err)
			}
		}
		put("/lib", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "usr/lib"})
		for _, f := range files {
			p, text, _ := strings.Cut(f, "=")
			put(p, &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte(text))})
		}
		return tr
	}
	before := treeOf("/usr/lib/a=1", "/usr/lib/old=1", "/etc/motd=1", "/etc/same=1",
		dpkgInfo+"/a:amd64.list=/.\n/lib\n/lib/a\n/lib/old\n", dpkgInfo+"/b.list=/etc/motd\n", dpkgInfo+"/b.md5sums=1", dpkgInfo+"/format=1")
	after := treeOf("/usr/lib/a=2", "/usr/bin/new=1", "/etc/motd=2", "/etc/same=1", "/etc/c.conf=1",
		dpkgInfo+"/a:amd64.list=/.\n/lib/a\n/usr/bin/new\n", dpkgInfo+"/b.list=/etc/motd\n", dpkgInfo+"/b.md5sums=2",
		dpkgInfo+"/c.list=/etc/c.conf\n", dpkgInfo+"/format=2")
	a, _ := imageWith(t, ext4Of(t, before, 16<<20))
	b, _ := imageWith(t, ext4Of(t, after, 16<<20))
	packages := Packages([]Package{{"a", "1", "amd64"}, {"b", "1", "all"}}, []Package{{"a", "2", "amd64"}, {"b", "1", "all"}, {"c", "1", "amd64"}})
	got, _, err := Files(a, b, packages)
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, f := range got[0].Files {
		text += f.Path + "=" + f.Package + " "
	}
	want := "/etc/c.conf=c /etc/motd= /usr/bin= /usr/bin/new=a /usr/lib/a=a /usr/lib/old=a " +
		dpkgInfo + "/a:amd64.list=a " + dpkgInfo + "/b.md5sums= " + dpkgInfo + "/c.list=c " + dpkgInfo + "/format= "
	if text != want {
		t.Errorf("got %s\nwant %s (%s)", text, want, got[0].Problem)
	}
}

// TestFilesReadLittle: one small change, in an image full of data.
func TestFilesReadLittle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	before := randomTree(t, rnd, 300)
	for i := range 5 {
		if err := before.Put(fmt.Sprintf("/large%d", i), &tree.Inode{Mode: 0o644, MTime: epoch, Data: randomBytes(rnd, 3<<20)}); err != nil {
			t.Fatal(err)
		}
	}
	esp := func(text string) part {
		tr := tree.New()
		for name, data := range map[string]diskimage.Disk{"/EFI/BOOT/BOOTX64.EFI": randomBytes(rand.New(rand.NewPCG(3, 3)), 2<<20), "/x": diskimage.Bytes([]byte(text))} {
			if err := tr.Put(name, &tree.Inode{Mode: 0o755, MTime: epoch, Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		fs, err := fat.New(tr, fat.Options{Size: 8 << 20, SectorSize: 512, Epoch: epoch})
		if err != nil {
			t.Fatal(err)
		}
		return part{"esp", fs.Type(), fs}
	}
	after := before.Clone()
	large := make([]byte, 3<<20)
	if _, err := before.Get("/large3").Data.ReadAt(large, 0); err != nil {
		t.Fatal(err)
	}
	large[1<<20]++
	for path, data := range map[string][]byte{"/large3": large, "/new": []byte("new")} {
		if err := after.Put(path, &tree.Inode{Mode: 0o644, MTime: epoch, Data: diskimage.Bytes(data)}); err != nil {
			t.Fatal(err)
		}
	}
	a, diskA := imageWith(t, esp("one"), ext4Of(t, before, 48<<20))
	for _, c := range []struct {
		b       part
		esp     string
		percent int64
		want    string
	}{
		{ext4Of(t, before, 48<<20), "one", 0, "esp same 0, root same 0"},
		{ext4Of(t, before, 48<<20), "two", 2, "esp changed 1, root same 0"},
		{ext4Of(t, after, 48<<20), "one", 12, "esp same 0, root changed 2"},
	} {
		b, diskB := imageWith(t, esp(c.esp), c.b)
		diskA.read = 0
		got, read, err := Files(a, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for i, fs := range got {
			text += fmt.Sprintf("%s%s %s %d", []string{"", ", "}[min(i, 1)], fs.Partition, fs.Change, len(fs.Files))
		}
		plain := diskA.read + diskB.read
		all := a.Index.DataSize() + b.Index.DataSize()
		if text != c.want || plain > all*c.percent/100 {
			t.Errorf("%s (want %s): read %d of %d bytes, %+v", text, c.want, plain, all, read)
		}
	}
}

// TestFilesTellWhatIsBroken: a disk that cannot be read is an error, a damaged
// filesystem is a problem of that filesystem alone.
func TestFilesTellWhatIsBroken(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 2))
	before := randomTree(t, rnd, 50)
	after := mutate(t, rnd, before, 4)
	a, _ := imageWith(t, ext4Of(t, before, 32<<20))
	b, disk := imageWith(t, ext4Of(t, after, 32<<20))
	for _, at := range []int64{1 << 20, 1<<20 + 1<<16, 2 << 20, 3 << 20} {
		disk.fails = diskimage.Extent{Off: at, Len: 20 << 20}
		if _, _, err := Files(a, b, nil); !errors.Is(err, errBroken) {
			t.Errorf("broken from %d on: %v", at, err)
		}
	}
	disk.fails = diskimage.Extent{}
	root := b.Table.Partitions[0].Extent
	copy(disk.data[root.Off+1024:], make([]byte, 1024))
	b.Index = indexOf(t, disk.data, 64<<10)
	b.Read = disk.chunks(b.Index)
	got, _, err := Files(a, b, nil)
	if err != nil || len(got) != 1 || !strings.Contains(got[0].Problem, "no ext2, ext3 or ext4") {
		t.Errorf("%+v, %v", got, err)
	}
	b.Table.Partitions[0].Filesystem.Type = "btrfs"
	if got, _, err = Files(a, b, nil); err != nil || got[0].Problem != `"btrfs": no reader for this filesystem` {
		t.Errorf("%+v, %v", got, err)
	}
	b.Table.Partitions[0].Filesystem.Type = ""
	if got, _, err = Files(a, b, nil); err != nil || !strings.Contains(got[0].Problem, "no filesystem is known") {
		t.Errorf("%+v, %v", got, err)
	}
	b.Table = nil
	if got, _, err = Files(a, b, nil); err != nil || got[0].Change != Removed || got[0].Removed != before.Len() {
		t.Errorf("%+v, %v", got, err)
	}
	if got, _, err = Files(Image{Index: b.Index, Read: b.Read}, a, nil); err != nil || got[0].Change != Added || got[0].Added != before.Len() || got[0].Files != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestStoreKeepsWithinItsBound reads with room for three chunks.
func TestStoreKeepsWithinItsBound(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 6))
	before := randomTree(t, rnd, 120)
	after := mutate(t, rnd, before, 5)
	a, _ := imageWith(t, ext4Of(t, before, 64<<20))
	b, _ := imageWith(t, ext4Of(t, after, 64<<20))
	s := newStore(3 * 64 << 10)
	fs := s.partition(a, b, Tables(a.Table, b.Table)[0], nil)
	asExpected(t, fs, before, after)
	if s.size > s.keep || s.order.Len() > 3 || len(s.cache) != s.order.Len() {
		t.Errorf("keeps %d bytes in %d chunks", s.size, s.order.Len())
	}
}

func TestComparePaths(t *testing.T) {
	ordered := []string{"/", "/a", "/a/b", "/a/b/c", "/a/c", "/a!", "/a-b", "/a.b", "/ab"}
	for i, x := range ordered {
		for j, y := range ordered {
			if got := comparePaths(x, y); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s and %s: %d", x, y, got)
			}
		}
	}
}

func TestPathsThatAreNotUTF8(t *testing.T) {
	b, err := json.Marshal(FileChange{Path: "/\xff", Change: Added})
	if err != nil || !strings.Contains(string(b), `"raw":"L/8="`) {
		t.Errorf("%s, %v", b, err)
	}
	if b, err = json.Marshal(FileChange{Path: "/ä", Change: Added}); err != nil || strings.Contains(string(b), "raw") {
		t.Errorf("%s, %v", b, err)
	}
}
