package squashfs_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/squashfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// source is a folder with all that a root has.
func source(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, b []byte, mode os.FileMode) {
		t.Helper()
		check(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		check(os.WriteFile(filepath.Join(dir, name), b, 0o600))
		check(os.Chmod(filepath.Join(dir, name), mode))
	}
	noise := make([]byte, 700_001)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	write("usr/bin/su", []byte("su"), 0o755|os.ModeSetuid)
	write("usr/bin/noise", noise, 0o755)
	write("usr/share/text", bytes.Repeat([]byte("text\n"), 100_000), 0o644)
	write("usr/share/exact", bytes.Repeat([]byte("x"), 128<<10), 0o644)
	write("empty", nil, 0o644)
	for i := range 700 {
		write(fmt.Sprintf("many/%03d-%s", i, strings.Repeat("n", i%200)), []byte(strings.Repeat("small ", i)), 0o640)
	}
	check(os.Link(filepath.Join(dir, "usr/bin/su"), filepath.Join(dir, "su2")))
	check(os.Symlink("../../nowhere", filepath.Join(dir, "usr/link")))
	check(os.MkdirAll(filepath.Join(dir, "tmp"), 0o755))
	check(os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	check(err)
	_, err = sparse.WriteAt([]byte("end"), 5<<20)
	check(err)
	check(sparse.Close())
	check(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	if os.Getuid() == 0 {
		check(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		check(unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
		check(os.Lchown(filepath.Join(dir, "usr/share/text"), 1234, 70000))
		_ = unix.Setxattr(filepath.Join(dir, "usr/bin/noise"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
	}
	return dir
}

func mksquashfs(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "root.squashfs")
	path, err := exec.LookPath("mksquashfs")
	if err != nil {
		t.Skip("apt-get install squashfs-tools: ", err)
	}
	if b, err := exec.Command(path, append([]string{dir, out, "-no-progress", "-quiet"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs %q: %v\n%s", args, err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(b []byte) (*tree.Tree, error) {
	fs, err := squashfs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	return fs.Tree()
}

// What mksquashfs made of a folder is that folder.
func TestTree(t *testing.T) {
	dir := source(t)
	want, err := tree.FromDir(dir, tree.DirOptions{Xattrs: true})
	if err != nil {
		t.Fatal(err)
	}
	for e := range want.All() {
		e.Inode.MTime = e.Inode.MTime.Truncate(1e9) // squashfs has whole seconds
	}
	for _, args := range []string{"-comp gzip", "-comp xz", "-comp zstd -Xcompression-level 1 -b 1M", "-comp gzip -b 4K", "-comp gzip -noI -noD -noF -noX", "-comp gzip -no-fragments", "-comp zstd -Xcompression-level 1 -always-use-fragments -no-exports -nopad"} {
		t.Run(args, func(t *testing.T) {
			got, err := open(mksquashfs(t, dir, strings.Fields(args)...))
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range tree.DiffContents(want, got) {
				if i < 10 {
					t.Error(d)
				}
			}
			if holes := got.Get("/sparse").Data.Extents(); len(holes) != 1 || holes[0].Off < 4<<20 {
				t.Errorf("sparse has data at %v", holes)
			}
		})
	}
}

func TestReadersAtOnce(t *testing.T) {
	got, err := open(mksquashfs(t, source(t), "-comp", "zstd", "-Xcompression-level", "1"))
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("text\n"), 100_000)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			b := make([]byte, 1000)
			for off := i * 1000; off+len(b) <= len(want); off += 8000 {
				if n, err := got.Get("/usr/share/text").Data.ReadAt(b, int64(off)); n != len(b) || !bytes.Equal(b, want[off:off+n]) {
					t.Errorf("at %d: %d bytes, %v", off, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), bytes.Repeat([]byte("a"), 9000), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, comp := range []string{"lz4", "lzo"} {
		if _, err := open(mksquashfs(t, dir, "-comp", comp)); err == nil || !strings.Contains(err.Error(), "compressed with "+comp+", which is not read here") {
			t.Errorf("%s: %v", comp, err)
		}
	}
	b := mksquashfs(t, dir, "-nopad")
	if _, err := open(b[:len(b)-1]); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("cut: %v", err)
	}
	if _, err := open(b[:50]); err == nil {
		t.Error("a superblock cut short is taken")
	}
}

// readAll reads everything that can be read.
func readAll(b []byte) {
	got, err := open(b)
	if err != nil {
		return
	}
	buf, left := make([]byte, 64<<10), 16<<20
	for e := range got.All() {
		if d := e.Inode.Data; d != nil && left > 0 {
			for _, x := range d.Extents() {
				n, _ := d.ReadAt(buf[:min(int64(len(buf)), x.Len)], x.Off)
				left -= n
			}
		}
	}
}

// Damage anywhere ends in an error or a tree.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, i*1000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"-comp", "gzip", "-nopad"}, {"-comp", "zstd", "-nopad", "-noI", "-noX"}} {
		b := mksquashfs(t, dir, args...)
		r := rand.New(rand.NewPCG(3, 4))
		for i := 0; i < len(b); i += 1 + i/200 { // every byte of the superblock
			damaged := bytes.Clone(b)
			damaged[i] ^= byte(1 + r.IntN(255))
			readAll(damaged)
		}
	}
}

func FuzzTree(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("content "), 2000), 0o644); err != nil {
		f.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
		f.Fatal(err)
	}
	f.Add(mksquashfs(f, dir, "-nopad", "-noI", "-noX"))
	f.Add(mksquashfs(f, dir, "-nopad", "-comp", "zstd"))
	f.Fuzz(func(t *testing.T, b []byte) { readAll(b) })
}
