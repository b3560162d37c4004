package fatfs

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// random is a tree as FAT can hold it.
func random(t testing.TB, seed uint64) *tree.Tree {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	tr := tree.New()
	if err := tr.Put("/", &tree.Inode{Kind: tree.Dir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	dirs := []string{""}
	for i := range 120 {
		p := fmt.Sprintf("%s/%0*d%s", dirs[rnd.IntN(len(dirs))], 1+rnd.IntN(40), i, []string{"", ".EFI", ".Conf", " ü€𝄞"}[rnd.IntN(4)])
		in := &tree.Inode{Mode: 0o755, MTime: epoch.Add(-2 * time.Second * time.Duration(rnd.IntN(1e6)))}
		if rnd.IntN(6) == 0 {
			in.Kind = tree.Dir
			dirs = append(dirs, p)
		} else if rnd.IntN(8) > 0 {
			b := make([]byte, rnd.IntN(1+rnd.IntN(60_000)))
			for j := range b {
				b[j] = byte(rnd.Uint32())
			}
			in.Data = diskimage.Bytes(b)
		}
		if err := tr.Put(p, in); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func image(t testing.TB, tr *tree.Tree, kind fat.Type, size, sector int64) []byte {
	t.Helper()
	fs, err := fat.New(tr, fat.Options{Size: size, SectorSize: sector, Label: "SOME NAME", VolumeID: 0x1234abcd, Epoch: epoch, Type: kind})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := fs.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return b
}

func TestReadsOurOwn(t *testing.T) {
	for i, c := range []struct {
		kind   fat.Type
		size   int64
		sector int64
	}{{fat.FAT12, 15 << 20, 512}, {fat.FAT12, 8 << 20, 4096}, {fat.FAT16, 32 << 20, 512}, {fat.FAT32, 40 << 20, 512}} {
		want := random(t, uint64(i))
		if i == 0 { // a chain longer than a page of the table, with an entry across its end
			large := make([]byte, 13<<20)
			for j := range large {
				large[j] = byte(j >> 12)
			}
			want = tree.New()
			for p, in := range map[string]*tree.Inode{"/": {Kind: tree.Dir, Mode: 0o755}, "/large": {Mode: 0o755, MTime: epoch, Data: diskimage.Bytes(large)}} {
				if err := want.Put(p, in); err != nil {
					t.Fatal(err)
				}
			}
		}
		fs, err := Open(bytes.NewReader(image(t, want, c.kind, c.size, c.sector)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.Tree()
		if err != nil {
			t.Fatal(err)
		}
		if diff := tree.DiffContents(want, got); len(diff) > 0 {
			t.Errorf("%v: differences:\n%s", c.kind, strings.Join(diff, "\n"))
		}
		if id := fs.Type() + " " + fs.Label() + " " + fs.UUID(); id != c.kind.String()+" SOME NAME 1234-ABCD" {
			t.Errorf("identity %q", id)
		}
	}
}

// TestReadsWhatOthersWrote has mtools fill volumes of mkfs.fat's.
func TestReadsWhatOthersWrote(t *testing.T) {
	for _, name := range []string{"mkfs.fat", "mcopy", "mmd"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C.UTF-8", "MTOOLS_SKIP_CHECK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	src := t.TempDir()
	for i, name := range []string{"UPPER.EFI", "lower.efi", "Mixed Case.conf", "x", "größe", strings.Repeat("n", 200)} {
		p := filepath.Join(src, "dir", "sub", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, bytes.Repeat([]byte{byte(i + 1)}, i*i*5000), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, epoch, epoch.Add(-time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := tree.FromDir(src, tree.DirOptions{Owner: &[2]uint32{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ width, size, cluster string }{{"12", "4M", "4"}, {"16", "20M", "2"}, {"32", "40M", "1"}} {
		vol := filepath.Join(t.TempDir(), "vol")
		run("truncate", "-s", c.size, vol)
		run("mkfs.fat", "-F", c.width, "-s", c.cluster, "-n", "SOME NAME", "-i", "1234abcd", vol)
		run("mcopy", "-i", vol, "-s", "-m", filepath.Join(src, "dir"), "::/")
		f, err := os.Open(vol)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fs, err := Open(f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.Tree()
		if err != nil {
			t.Fatal(err)
		}
		diff := slices.DeleteFunc(tree.DiffContents(want, got), func(line string) bool {
			return strings.Contains(line, ": mode 0644, now 0755") || strings.HasPrefix(line, "/: ") || strings.Contains(line, "dir: mtime ") || strings.Contains(line, "sub: mtime ")
		})
		if len(diff) > 0 {
			t.Errorf("FAT%s: differences:\n%s", c.width, strings.Join(diff, "\n"))
		}
		if id := fs.Type() + " " + fs.Label() + " " + fs.UUID(); id != "fat"+c.width+" SOME NAME 1234-ABCD" {
			t.Errorf("identity %q", id)
		}
	}
}

// TestLongNamesBelongToTheirShortOnes: a long name whose file an older system
// removed or renamed is nobody's.
func TestLongNamesBelongToTheirShortOnes(t *testing.T) {
	tr := tree.New()
	if err := tr.Put("/A long name.txt", &tree.Inode{Mode: 0o755, MTime: epoch}); err != nil {
		t.Fatal(err)
	}
	b := image(t, tr, fat.FAT12, 2<<20, 512)
	short := bytes.Index(b, []byte("ALONGN~1TXT"))
	if short < 0 {
		t.Fatal("there is no short name")
	}
	for name, c := range map[string]struct {
		at   int
		to   byte
		want string
	}{
		"as it was":           {short, 'A', "/A long name.txt"},
		"another short name":  {short, 'B', "/BLONGN~1.TXT"},
		"a part out of order": {short - slot, 0x05, "/ALONGN~1.TXT"},
		"a part of another":   {short - slot + 13, 1, "/ALONGN~1.TXT"},
		"a part removed":      {short - slot, 0xe5, "/ALONGN~1.TXT"},
		"the file removed":    {short, 0xe5, ""},
	} {
		old := b[c.at]
		b[c.at] = c.to
		fs, err := Open(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.Tree()
		if err != nil {
			t.Fatal(err)
		}
		if want := 1 + min(1, len(c.want)); got.Len() != want || c.want != "" && got.Get(c.want) == nil {
			t.Errorf("%s: %v", name, got.Children("/"))
		}
		b[c.at] = old
	}
}

// everything reads all that a filesystem has.
func everything(image []byte) {
	if fs, err := Open(bytes.NewReader(image)); err == nil {
		if tr, err := fs.Tree(); err == nil {
			disktest.ReadAll(tr)
		}
	}
}

// TestDamage overwrites bytes of metadata, thousands of times.
func TestDamage(t *testing.T) {
	for _, kind := range []fat.Type{fat.FAT12, fat.FAT16, fat.FAT32} {
		b := image(t, random(t, 9), kind, 36<<20>>(3*(fat.FAT32-kind)/2), 512)
		fs, err := Open(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		var used []int
		for i := range int(min(fs.data+200_000, int64(len(b)))) {
			if b[i] != 0 {
				used = append(used, i)
			}
		}
		disktest.Damage(b, 700, everything, func(rnd *rand.Rand) int {
			if rnd.IntN(2) == 0 {
				return rnd.IntN(64)
			}
			return used[rnd.IntN(len(used))]
		})
	}
}

func FuzzRead(f *testing.F) {
	disktest.FuzzPatches(f, image(f, random(f, 2), fat.FAT12, 2<<20, 512), everything, []byte{13, 0, 0, 2})
}

// TestClustersAreOnceInUse: a chain that loops, one that ends early, one that leaves.
func TestClustersAreOnceInUse(t *testing.T) {
	tr := tree.New()
	if err := tr.Put("/a", &tree.Inode{Mode: 0o755, MTime: epoch, Data: diskimage.Bytes(bytes.Repeat([]byte("x"), 1<<20))}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		to int64
		ok bool
	}{"as it was": {1, true}, "a loop": {-3, false}, "its own end": {0xffff, false}, "a free cluster": {0, false}, "out of the volume": {0xfff0, false}} {
		b := image(t, tr, fat.FAT16, 32<<20, 512)
		fs, err := Open(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		cluster := (int64(bytes.Index(b, []byte("xxxxxxxx")))-fs.data)/fs.cluster + 2 + 5
		if c.to <= 1 && c.to != 0 {
			c.to += cluster
		}
		le.PutUint16(b[fs.fat.Off+2*cluster:], uint16(c.to))
		got, err := fs.Tree()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := got.Get("/a").Data.(*mapped.File).Runs(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
