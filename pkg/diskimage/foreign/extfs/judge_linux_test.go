package extfs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// hostTree fills a directory with everything that may be made there.
func hostTree(t *testing.T, dir string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(3, 4))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, size int) string {
		p := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		must(os.WriteFile(p, b, 0o644))
		return p
	}
	for _, size := range []int{0, 1, 59, 60, 61, 100, 140, 1023, 1024, 4096, 12 << 10, 70_000, 300_001, 5 << 20} {
		write(fmt.Sprintf("size/%d", size), size)
	}
	for i := range 300 { // an index of leaves with blocks of 1 KiB
		write(fmt.Sprintf("many/%0*d", 1+i%120, i), i%3*40)
	}
	f, err := os.Create(filepath.Join(dir, "size/sparse"))
	must(err)
	for i := range int64(60) { // an extent tree, and three levels of the old map
		_, err = f.WriteAt([]byte("island"), i*i*20_000+5)
		must(err)
	}
	must(f.Truncate(80_000_000))
	must(f.Close())
	must(os.Link(filepath.Join(dir, "size/70000"), filepath.Join(dir, "linked")))
	for _, n := range []int{1, 59, 60, 100, 900} {
		must(os.Symlink(strings.Repeat("t", n), filepath.Join(dir, fmt.Sprintf("link-%d", n))))
	}
	must(os.MkdirAll(filepath.Join(dir, "empty/deep/er"), 0o700))
	must(os.Chmod(filepath.Join(dir, "empty"), 0o711|os.ModeSticky|os.ModeSetgid))
	must(os.Chtimes(filepath.Join(dir, "size/100"), time.Unix(1, 0), time.Unix(-1234567, 987654321)))
	must(os.Chtimes(filepath.Join(dir, "size/1023"), time.Unix(1, 0), time.Unix(1<<31+5, 123456789)))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	if os.Getuid() != 0 {
		return
	}
	must(os.Lchown(filepath.Join(dir, "linked"), 70_000, 3_000_000_000))
	must(unix.Mknod(filepath.Join(dir, "tty"), unix.S_IFCHR|0o620, int(unix.Mkdev(5, 1))))
	must(unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70_000))))
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(unix.Setxattr(filepath.Join(dir, "size/60"), "security.capability", []byte(capability), 0))
	disktest.Tool(t, "setfacl", "-m", "u:1000:rwx,g:50:r", filepath.Join(dir, "size/1024"))
	disktest.Tool(t, "setfacl", "-d", "-m", "u:7:rwx", filepath.Join(dir, "empty"))
}

// fromKernel is what the kernel reads.
func fromKernel(t *testing.T, dir string) *tree.Tree {
	t.Helper()
	want, err := tree.FromDir(dir, tree.DirOptions{Xattrs: true})
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// compare reads an image and compares it with a tree. Where mtimes are not the
// matter, lines about them are passed over.
func compare(t *testing.T, image string, want *tree.Tree, pass ...string) {
	t.Helper()
	f, err := os.Open(image)
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
		return slices.ContainsFunc(pass, func(p string) bool { return strings.Contains(line, p) })
	})
	if len(diff) > 0 {
		t.Errorf("%d differences:\n%s", len(diff), strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

// TestReadsWhatOthersWrote lets mke2fs and the kernel write filesystems of many
// kinds; the kernel says what is in them.
func TestReadsWhatOthersWrote(t *testing.T) {
	for name, c := range map[string]struct{ kind, args string }{
		"ext4":        {"ext4", "-t ext4"},
		"small block": {"ext4", "-t ext4 -b 1024"},
		"ext3":        {"ext3", "-t ext3"},
		"ext2":        {"ext2", "-t ext2 -b 1024"},
		"old":         {"ext2", "-t ext2 -I 128 -O none"},
		"no extents":  {"ext4", "-t ext4 -O ^extent,^64bit"},
		"inline":      {"ext4", "-t ext4 -O inline_data -I 512"},
		"clusters":    {"ext4", "-t ext4 -O bigalloc -C 16384"},
		"small clust": {"ext4", "-t ext4 -O bigalloc -b 1024 -C 8192"},
		"meta groups": {"ext4", "-t ext4 -b 1024 -O meta_bg,^resize_inode"},
		"meta, 32bit": {"ext4", "-t ext4 -b 1024 -O meta_bg,^resize_inode,^64bit,^flex_bg,^sparse_super"},
		"few supers":  {"ext4", "-t ext4 -b 1024 -O sparse_super2,meta_bg,^resize_inode"},
		"large attrs": {"ext4", "-t ext4 -O ea_inode"},
		"large block": {"ext4", "-t ext4 -b 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(t.TempDir(), "image")
			make := append([]string{"-q", "-F", "-L", "a label", "-U", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}, strings.Fields(c.args)...)
			if mountable := os.Getuid() == 0 && name != "large block"; mountable {
				fillByKernel(t, image, c.kind, make)
			} else {
				src := t.TempDir()
				hostTree(t, src)
				disktest.Tool(t, "mke2fs", append(make, "-d", src, image, "160M")...)
				compare(t, image, fromKernel(t, src), ": mtime ", "/lost+found: new")
			}
			fs := compareGroups(t, image)
			if got := fs.Type() + " " + fs.Label() + " " + fs.UUID().String(); got != c.kind+" a label 6ba7b810-9dad-11d1-80b4-00c04fd430c8" {
				t.Errorf("identity %s", got)
			}
		})
	}
}

// TestReadsWhatMke2fsCopied: mke2fs makes directories and attributes of its own kind.
func TestReadsWhatMke2fsCopied(t *testing.T) {
	src := t.TempDir()
	hostTree(t, src)
	for _, args := range []string{"-t ext4", "-t ext4 -O inline_data -I 512", "-t ext3 -b 1024"} {
		image := filepath.Join(t.TempDir(), "image")
		disktest.Tool(t, "mke2fs", append(strings.Fields(args), "-q", "-F", "-d", src, image, "160M")...)
		if os.Getuid() == 0 {
			dev, _ := disktest.Loop(t, image, disktest.LoopOptions{ReadOnly: true})
			dir, _ := disktest.Mount(t, dev, strings.Fields(args)[1], unix.MS_RDONLY, "")
			compare(t, image, fromKernel(t, dir))
		} else {
			compare(t, image, fromKernel(t, src), ": mtime ", "/lost+found: new")
		}
	}
}

// fillByKernel makes a filesystem that the kernel writes, and compares.
func fillByKernel(t *testing.T, image, kind string, make []string) {
	t.Helper()
	disktest.Tool(t, "mke2fs", append(make, image, "160M")...)
	dev, _ := disktest.Loop(t, image, disktest.LoopOptions{})
	dir, unmount := disktest.Mount(t, dev, kind, 0, "user_xattr,acl")
	hostTree(t, dir)
	if slices.Contains(make, "ea_inode") {
		if err := unix.Setxattr(filepath.Join(dir, "size/1"), "security.large", bytes.Repeat([]byte("large"), 10_000), 0); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	dir, _ = disktest.Mount(t, dev, kind, unix.MS_RDONLY, "")
	compare(t, image, fromKernel(t, dir))
}

var groupLine = regexp.MustCompile(`(?s)Group (\d+): .*?Inode table at (\d+)-`)

// compareGroups compares where the inode tables lie with what dumpe2fs says.
func compareGroups(t *testing.T, image string) *FS {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	groups := groupLine.FindAllStringSubmatch(disktest.Tool(t, "dumpe2fs", image), -1)
	if int64(len(groups)) != fs.groups() {
		t.Errorf("%d groups, dumpe2fs says %d", fs.groups(), len(groups))
	}
	for i, g := range groups {
		if table, err := fs.inodeTable(int64(i)); err != nil || g[1] != fmt.Sprint(i) || g[2] != fmt.Sprint(table) {
			t.Errorf("group %d: inode table at %d, dumpe2fs says %s: %v", i, table, g[2], err)
		}
	}
	return fs
}

func TestRefusesAJournalToReplay(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	disktest.Tool(t, "mke2fs", "-q", "-F", "-t", "ext4", image, "16M")
	disktest.Tool(t, "debugfs", "-w", "-R", "feature needs_recovery", image)
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Open(f); err != ErrDirty {
		t.Errorf("got %v", err)
	}
}
