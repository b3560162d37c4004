package initramfs_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// sample is a tree of all kinds, with sizes around the padding of four bytes.
func sample(t testing.TB) *tree.Tree {
	t.Helper()
	out := tree.New()
	for p, n := range map[string]*tree.Inode{
		"/dev/console": {Kind: tree.CharDevice, Mode: 0o600, Major: 5, Minor: 1},
		"/bin/sh":      {Kind: tree.Symlink, Mode: 0o777, Target: "busybox"},
		"/empty":       {Mode: 0o600},
		"/proc":        {Kind: tree.Dir, Mode: 0o555},
		"/init":        {Mode: 0o755, Data: diskimage.Bytes([]byte("#!/bin/sh\n"))},
		"/fifo":        {Kind: tree.Fifo, Mode: 0o644},
	} {
		if err := out.Put(p, n); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 9 {
		name := "/etc/" + strings.Repeat("n", i+1)
		if err := out.Put(name, &tree.Inode{Mode: 0o640, UID: 7, GID: 8, Data: diskimage.Bytes(bytes.Repeat([]byte{'x'}, i))}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func written(t testing.TB, tr *tree.Tree, first ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := initramfs.Write(&b, tr, first...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entry is what a reader of the format, written for this test alone from cpio(5),
// finds.
type entry struct {
	name                               string
	ino, mode, uid, gid, mtime, ma, mi uint32
	data                               string
}

func parse(b []byte) (out []entry, err error) {
	for at := 0; ; {
		if at+110 > len(b) || string(b[at:at+6]) != "070701" {
			return out, fmt.Errorf("no header at %d", at)
		}
		var f [13]uint32
		for i := range f {
			if _, err := fmt.Sscanf(string(b[at+6+8*i:at+14+8*i]), "%08X", &f[i]); err != nil {
				return out, err
			}
		}
		name := at + 110
		data := (name + int(f[11]) + 3) &^ 3
		end := data + int(f[6])
		if end > len(b) || f[11] == 0 || b[name+int(f[11])-1] != 0 {
			return out, fmt.Errorf("entry at %d does not end", at)
		}
		e := entry{string(b[name : name+int(f[11])-1]), f[0], f[1], f[2], f[3], f[5], f[9], f[10], string(b[data:end])}
		if e.name == "TRAILER!!!" {
			return out, nil
		}
		out, at = append(out, e), (end+3)&^3
	}
}

func TestArchiveHasWhatTheTreeHas(t *testing.T) {
	tr := sample(t)
	entries, err := parse(written(t, tr, "/etc/nnn", "/init"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, e := range entries {
		names = append(names, e.name)
		n := tr.Get("/" + e.name)
		want := n.Target
		if n.Kind == tree.Regular && n.Data != nil {
			b, err := tr.ReadFile("/"+e.name, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			want = string(b)
		}
		if int(e.ino) != i+1 || e.mode&0o7777 != uint32(n.Mode) || e.uid != n.UID || e.gid != n.GID || e.mtime != 0 || e.ma != n.Major || e.mi != n.Minor || e.data != want {
			t.Errorf("entry %d: %+v, tree has %+v", i, e, n)
		}
		if dir, _, ok := cutLast(e.name); ok && !slices.Contains(names, dir) {
			t.Errorf("%s comes before its folder", e.name)
		}
	}
	if len(entries) != 18 {
		t.Errorf("%d entries", len(entries))
	}
	if got, want := strings.Join(names[:5], " "), "dev dev/console etc etc/nnn init"; got != want {
		t.Errorf("first come %s, want %s", got, want)
	}
}

func cutLast(p string) (dir, name string, ok bool) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return "", p, false
	}
	return p[:i], p[i+1:], true
}

// TestCpioJudges has GNU cpio read the archive.
func TestCpioJudges(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio is not installed (apt-get install cpio)")
	}
	cmd := exec.Command("cpio", "-itv", "--numeric-uid-gid")
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=/usr/bin:/bin"}
	cmd.Stdin = bytes.NewReader(written(t, sample(t)))
	var talk bytes.Buffer
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, talk.Bytes())
	}
	for _, want := range []string{"crw-------   1 0        0          5,   1 Jan  1  1970 dev/console", "bin/sh -> busybox",
		"-rw-r-----   1 7        8               8 Jan  1  1970 etc/nnnnnnnnn", "dr-xr-xr-x   2 0        0               0 Jan  1  1970 proc"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestWriteRefusals(t *testing.T) {
	for want, change := range map[string]func(*tree.Tree) error{
		"no /dev/console":     func(tr *tree.Tree) error { tr.Remove("/dev/console"); return nil },
		"extended attributes": func(tr *tree.Tree) error { return tr.Put("/x", &tree.Inode{Xattrs: map[string]string{"user.a": "b"}}) },
		"unexpected EOF": func(tr *tree.Tree) error {
			return tr.Put("/x", &tree.Inode{Data: diskimage.Section(diskimage.Bytes([]byte("ab")), 0, 10)})
		},
		"at most 4294967295": func(tr *tree.Tree) error { return tr.Put("/x", &tree.Inode{Data: diskimage.Section(nil, 0, 1<<32)}) },
	} {
		tr := sample(t)
		if err := change(tr); err != nil {
			t.Fatal(err)
		}
		if err := initramfs.Write(new(bytes.Buffer), tr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := initramfs.Write(new(bytes.Buffer), sample(t), "/nowhere"); err == nil {
		t.Error("a file that is not there came first")
	}
}

// TestPackFitsTheKernel: one frame, and no larger a window than was meant, since
// the kernel allocates it (lib/decompress_unzstd.c).
func TestPackFitsTheKernel(t *testing.T) {
	tr := sample(t)
	noise := make([]byte, 20<<20)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		noise[i] = byte(x >> 24)
	}
	if err := tr.Put("/noise", &tree.Inode{Data: diskimage.Bytes(noise)}); err != nil {
		t.Fatal(err)
	}
	b, err := initramfs.Pack(tr)
	if err != nil {
		t.Fatal(err)
	}
	var h zstd.Header
	if err := h.Decode(b); err != nil || h.SingleSegment || h.WindowSize > 8<<20 {
		t.Errorf("%+v, %v", h, err)
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	plain, err := d.DecodeAll(b, nil)
	if err != nil || !bytes.Equal(plain, written(t, tr)) {
		t.Errorf("unpacked: %d bytes, %v", len(plain), err)
	}
	again, err := initramfs.Pack(tr)
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("not the same twice: %v", err)
	}
}

func FuzzArchive(f *testing.F) {
	f.Add("/a/b", []byte("x"), uint16(0o644))
	f.Add("/dev/console", []byte(""), uint16(0o1777))
	f.Fuzz(func(t *testing.T, p string, data []byte, mode uint16) {
		tr := tree.New()
		if tr.Put("/dev/console", &tree.Inode{Kind: tree.CharDevice, Major: 5, Minor: 1}) != nil ||
			tr.Put(p, &tree.Inode{Mode: mode & 0o7777, Data: diskimage.Bytes(data)}) != nil {
			return
		}
		var b bytes.Buffer
		if err := initramfs.Write(&b, tr); err != nil {
			return
		}
		entries, err := parse(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		clean, _ := tree.CleanPath(p)
		if !slices.ContainsFunc(entries, func(e entry) bool { return "/"+e.name == clean && e.data == string(data) }) {
			t.Errorf("%q is not in %+v", clean, entries)
		}
	})
}
