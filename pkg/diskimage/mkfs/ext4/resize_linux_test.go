package ext4

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

func TestFeatures(t *testing.T) {
	image := disktest.Save(t, mustNew(t, smallTree(t), options(1<<30)))
	out := disktest.Tool(t, "dumpe2fs", image)
	for _, want := range []string{
		`Filesystem volume name: +root\n`,
		`Filesystem UUID: +` + testUUID.String(),
		`Filesystem features: +has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum\n`,
		`Filesystem state: +clean\n`,
		`Block size: +4096\n`,
		`Inode size:\s+256\n`,
		`Filesystem created: +Fri Nov +1 00:00:00 2024\n`,
		`Journal inode: +8\n`,
		`Journal backup: +inode blocks\n`,
		`Journal start: +0\n`,
		`Default directory hash: +half_md4\n`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("dumpe2fs does not say %s in\n%.3000s", want, out)
		}
	}
	if groups := regexp.MustCompile(`(?m)^Group \d+:.*$`).FindAllString(out, -1); len(groups) != 8 {
		t.Errorf("groups %q", groups)
	} else {
		for _, g := range groups {
			if !strings.Contains(g, "ITABLE_ZEROED") {
				t.Errorf("%s: the kernel would zero its inode table", g)
			}
		}
	}
}

// Growing uses the blocks that the resize inode keeps, and a second flex group.
func TestResizeOffline(t *testing.T) {
	tr := hardTree(t)
	for _, from := range []int64{16 << 20, 200 << 20} {
		image := disktest.Save(t, mustNew(t, tr, options(roundUp(from+Used(tr), 1<<20))))
		for _, to := range []int64{500 << 20, 9 << 30} {
			if err := os.Truncate(image, to); err != nil {
				t.Fatal(err)
			}
			disktest.Tool(t, "resize2fs", image)
			check(t, image)
		}
		compare(t, image, tr)
	}
}

func TestResizeMounted(t *testing.T) {
	if !mayResize(t) {
		t.Skip("growing a mounted ext4 needs CAP_SYS_RESOURCE")
	}
	tr := hardTree(t)
	image := disktest.Save(t, mustNew(t, tr, options(200<<20)))
	for _, to := range []int64{900 << 20, 12 << 30} {
		if err := os.Truncate(image, to); err != nil {
			t.Fatal(err)
		}
		dev, detach := disktest.Loop(t, image, disktest.LoopOptions{})
		dir, unmount := disktest.Mount(t, dev, "ext4", 0, "")
		disktest.Tool(t, "resize2fs", dev)
		if err := os.WriteFile(fmt.Sprintf("%s/new-%d", dir, to), make([]byte, 5<<20), 0o644); err != nil {
			t.Error(err)
		}
		unmount()
		detach()
		check(t, image)
	}
	out := disktest.Tool(t, "dumpe2fs", "-h", image)
	if want := fmt.Sprintf("Block count: +%d\n", int64(12<<30/blockSize)); !regexp.MustCompile(want).MatchString(out) {
		t.Errorf("want %q in\n%s", want, out)
	}
}

// mayResize reports whether the process has the capability that the kernel asks
// for (linux/capability.h: CAP_SYS_RESOURCE is 24).
func mayResize(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`CapEff:\s+([0-9a-f]+)`).FindSubmatch(status)
	caps, err := strconv.ParseUint(string(m[1]), 16, 64)
	return err == nil && caps>>24&1 == 1
}

// Mounting read-write and doing nothing changes the superblock, the journal's
// and nothing else.
func TestMountingChangesNothing(t *testing.T) {
	fs := mustNew(t, hardTree(t), options(1<<30))
	image := disktest.Save(t, fs)
	dev, detach := disktest.Loop(t, image, disktest.LoopOptions{})
	_, unmount := disktest.Mount(t, dev, "ext4", 0, "")
	unmount()
	detach()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var blocks []int64
	a, b := make([]byte, blockSize), make([]byte, blockSize)
	for _, e := range diskimage.MergeExtents(append(metadataOnly{fs}.Extents(), diskimage.Extent{Off: 0, Len: 64 << 20})) {
		for off := e.Off; off < e.End(); off += blockSize {
			if _, err := fs.ReadAt(a, off); err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(b, off); err != nil {
				t.Fatal(err)
			}
			if string(a) != string(b) {
				blocks = append(blocks, off/blockSize)
			}
		}
	}
	g, _ := newGeometry(1<<30, 1000)
	for _, block := range blocks {
		if block != 0 && (block < g.journal.start || block >= g.journal.end()) {
			t.Errorf("mounting changed block %d; all: %v", block, blocks)
		}
	}
	if len(blocks) > 12 {
		t.Errorf("mounting changed %d blocks: %v", len(blocks), blocks)
	}
	t.Logf("mounting changed blocks %v", blocks)
}

// The kernel uses the filesystem like any other: it fills directories with and
// without an index, uninitialised groups, attribute blocks and holes.
func TestWriting(t *testing.T) {
	tr := hardTree(t)
	image := disktest.Save(t, mustNew(t, tr, options(300<<20)))
	dev, detach := disktest.Loop(t, image, disktest.LoopOptions{})
	dir, unmount := disktest.Mount(t, dev, "ext4", 0, "")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3000 {
		must(os.WriteFile(fmt.Sprintf("%s/names/b/new-%d", dir, i), []byte("new"), 0o644))
	}
	for i := range 40 {
		must(os.MkdirAll(fmt.Sprintf("%s/new/%d/%d", dir, i, i), 0o755))
		must(os.WriteFile(fmt.Sprintf("%s/new/%d/large", dir, i), make([]byte, 4<<20), 0o644))
	}
	must(os.RemoveAll(dir + "/size"))
	must(os.RemoveAll(dir + "/new/7"))
	must(unix.Setxattr(dir+"/x/both", "user.large", []byte("shorter"), 0))
	must(unix.Setxattr(dir+"/x/capability", "user.more", make([]byte, 500), 0))
	must(unix.Removexattr(dir+"/x/dir", "user.d"))
	must(os.Truncate(dir+"/hard/0", 1<<20))
	unmount()
	detach()
	check(t, image)
}
