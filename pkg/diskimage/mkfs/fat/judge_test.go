package fat_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// tool skips the test where a judge is not to be had.
func tool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("the judge %s is not installed", name)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var clean = regexp.MustCompile(`^fsck\.fat [0-9.]+ \([0-9-]+\)\n[^\n]*: [0-9]+ files, [0-9]+/[0-9]+ clusters\n$`)

// fsck asserts that fsck.fat says nothing but its version and its count.
func fsck(t *testing.T, path string) {
	t.Helper()
	tool(t, "fsck.fat")
	if out := run(t, "fsck.fat", "-n", path); !clean.MatchString(out) {
		t.Errorf("fsck.fat remarks:\n%s", out)
	}
}

// mount mounts a volume read-only and returns where.
func mount(t *testing.T, path string, sector int64) string {
	t.Helper()
	dev, _ := disktest.Loop(t, path, disktest.LoopOptions{ReadOnly: true, Sector: uint32(sector)})
	dir, _ := disktest.Mount(t, dev, "vfat", unix.MS_RDONLY, "utf8,tz=UTC")
	return dir
}

// extract has mtools copy all of a volume to a directory.
func extract(t *testing.T, path string) string {
	t.Helper()
	tool(t, "mcopy")
	dir := t.TempDir()
	cmd := exec.Command("mcopy", "-s", "-m", "-n", "-i", path, "::/", dir)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C.UTF-8", "MTOOLS_SKIP_CHECK=0")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("mcopy: %v\n%s", err, out)
	}
	return dir
}

// sameTree asserts that a mounted or extracted volume and a tree say the same.
func sameTree(t *testing.T, dir string, tr *tree.Tree) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		got = append(got, name)
		want := tr.Get(name)
		if want == nil || d.IsDir() != (want.Kind == tree.Dir) {
			t.Errorf("%s: on the volume, but not in the tree as such", name)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mtime := want.MTime.UTC()
		if mtime.After(epoch) {
			mtime = epoch
		}
		if first := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC); mtime.Before(first) {
			mtime = first
		}
		if mtime = mtime.Truncate(2 * time.Second); name != "/" && !info.ModTime().Equal(mtime) {
			t.Errorf("%s: time %v, want %v", name, info.ModTime().UTC(), mtime)
		}
		if d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		content, err := tr.ReadFile(name, 1<<30)
		if err != nil {
			return err
		}
		if !bytes.Equal(b, content) {
			t.Errorf("%s: %d bytes, want other %d", name, len(b), len(content))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	var want []string
	for e := range tr.All() {
		want = append(want, e.Path)
	}
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("%s: in the tree, but not on the volume", name)
		}
	}
}

func TestJudges(t *testing.T) {
	for _, c := range []struct {
		size, sector int64
		kind         fat.Type
	}{
		{3 * mib, 512, fat.FAT12},
		{12 * mib, 4096, fat.FAT12},
		{12 * mib, 512, fat.FAT16},
		{100 * mib, 4096, fat.FAT16},
		{36 * mib, 512, fat.FAT32},
		{512 * mib, 512, fat.Auto},
		{300 * mib, 4096, fat.FAT32},
		{512 * mib, 2048, fat.Auto},
	} {
		t.Run(fmt.Sprintf("%v of %d MiB in %d", c.kind, c.size/mib, c.sector), func(t *testing.T) {
			tr := hardTree(t)
			f := build(t, tr, fat.Options{Size: c.size, SectorSize: c.sector, Type: c.kind, Label: "A LABEL", VolumeID: 0xabcd1234})
			path := disktest.Save(t, f)
			fsck(t, path)
			out := run(t, "blkid", "-p", "-o", "export", path)
			for _, want := range []string{"LABEL=A LABEL", "UUID=ABCD-1234", "TYPE=vfat", "VERSION=" + strings.ToUpper(f.Type())} {
				if !strings.Contains(strings.ReplaceAll(out, `\ `, " "), want+"\n") {
					t.Errorf("blkid does not say %s:\n%s", want, out)
				}
			}
			sameTree(t, extract(t, path), tr)
		})
	}
}

func TestKernelMount(t *testing.T) {
	for _, c := range []struct {
		size, sector int64
		kind         fat.Type
	}{{12 * mib, 4096, fat.FAT12}, {12 * mib, 512, fat.FAT16}, {36 * mib, 512, fat.FAT32}, {300 * mib, 4096, fat.FAT32}} {
		tr := hardTree(t)
		put(t, tr, "/names/🐧", 9) // beyond 16 bits: mtools cannot read it
		f := build(t, tr, fat.Options{Size: c.size, SectorSize: c.sector, Type: c.kind, Label: "A LABEL"})
		sameTree(t, mount(t, disktest.Save(t, f), c.sector), tr)
	}
}

// TestLimits judges volumes whose number of clusters would lie near a limit.
func TestLimits(t *testing.T) {
	tr := tree.New()
	put(t, tr, "/some file", 5000)
	for _, size := range []int64{4085 * 4096, 4100 * 4096, 4085 * 512, 4110 * 512, 65525 * 4096, 65600 * 4096, 64 << 10} {
		for _, sector := range []int64{512, 4096} {
			if size%sector != 0 {
				continue
			}
			for k := range int64(3) {
				f, err := fat.New(tr, fat.Options{Size: size + k*8*sector, SectorSize: sector, Epoch: epoch})
				if err != nil {
					if size > 64<<10 {
						t.Error(err)
					}
					continue
				}
				fsck(t, disktest.Save(t, f))
			}
		}
	}
}

func TestMtoolsReadIt(t *testing.T) {
	tool(t, "mcopy")
	tr := hardTree(t)
	path := disktest.Save(t, build(t, tr, fat.Options{Size: 36 * mib, SectorSize: 512, Label: "M", Type: fat.FAT32}))
	want, err := tr.ReadFile("/loader/entries/a name with spaces too.conf", mib)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"::/loader/entries/a name with spaces too.conf", "::/LOADER/ENTRIES/ANAMEW~1.CON"} {
		out, err := exec.Command("mtype", "-i", path, name).Output()
		if err != nil || !bytes.Equal(out, want) {
			t.Errorf("mtype %s: %v, %d bytes, want %d", name, err, len(out), len(want))
		}
	}
	if out := run(t, "minfo", "-i", path, "::"); !strings.Contains(out, "disk type=\"FAT32   \"") {
		t.Errorf("minfo:\n%s", out)
	}
}

// TestFilled packs a volume to its last cluster: one byte more does not fit.
func TestFilled(t *testing.T) {
	for _, kind := range []fat.Type{fat.FAT12, fat.FAT16, fat.FAT32} {
		size := map[fat.Type]int64{fat.FAT12: 1 * mib, fat.FAT16: 4 * mib, fat.FAT32: 33 * mib}[kind]
		o := fat.Options{Size: size, SectorSize: 512, Type: kind, Epoch: epoch}
		tr := tree.New()
		put(t, tr, "/b", 1000)
		lo, hi := 0, int(size)
		for lo < hi {
			mid := (lo + hi + 1) / 2
			probe := &tree.Inode{Data: diskimage.Section(nil, 0, int64(mid))} // New reads no contents
			if err := tr.Put("/a", probe); err != nil {
				t.Fatal(err)
			}
			if _, err := fat.New(tr, o); err == nil {
				lo = mid
			} else {
				hi = mid - 1
			}
		}
		put(t, tr, "/a", lo)
		path := disktest.Save(t, build(t, tr, o))
		fsck(t, path)
		used := regexp.MustCompile(`([0-9]+)/([0-9]+) clusters`).FindStringSubmatch(run(t, "fsck.fat", "-n", path))
		if used == nil || used[1] != used[2] {
			t.Errorf("%v: %v clusters used, want all", kind, used)
		}
	}
}

// TestRandomTrees has fsck and the kernel judge trees of any shape.
func TestRandomTrees(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			tr := tree.New()
			dirs := []string{""}
			for range 60 + r.IntN(200) {
				name := make([]rune, 1+r.IntN(30))
				for i := range name {
					name[i] = []rune("abcXYZ019~_-+ .äß日")[r.IntN(18)]
				}
				p := dirs[r.IntN(len(dirs))] + "/" + strings.Trim(string(name), ". ") + fmt.Sprint("#", r.IntN(1e6))
				if tr.Get(p) != nil {
					continue
				}
				at := time.Unix(r.Int64N(1<<31), r.Int64N(1e9))
				if r.IntN(6) == 0 {
					dirs = append(dirs, p)
					if err := tr.Put(p, &tree.Inode{Kind: tree.Dir, MTime: at}); err != nil {
						t.Fatal(err)
					}
					continue
				}
				put(t, tr, p, int(r.ExpFloat64()*20000))
				tr.Get(p).MTime = at
			}
			sector := []int64{512, 4096}[seed%2]
			f := build(t, tr, fat.Options{Size: 64*mib + r.Int64N(1000)*8192, SectorSize: sector})
			path := disktest.Save(t, f)
			fsck(t, path)
			sameTree(t, extract(t, path), tr)
		})
	}
}
