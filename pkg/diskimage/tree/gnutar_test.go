package tree_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// hostDir makes what a directory of an ordinary user can hold, and as root
// devices and capabilities too. Times are whole seconds: not every tar has more.
func hostDir(t *testing.T) string {
	t.Helper()
	d := t.TempDir()
	put := func(name, content string, mode os.FileMode) string {
		p := filepath.Join(d, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put("etc/motd", "golden\n", 0o644)
	put("bin/su", "su", 0o755|os.ModeSetuid)
	put("empty", "", 0o600)
	long := strings.Repeat("long-directory-name/", 6) + strings.Repeat("f", 200)
	check(os.Link(put(long, "long", 0o640), filepath.Join(d, "linked")))
	check(os.Symlink(strings.Repeat("../target/", 30), filepath.Join(d, "symlink")))
	check(exec.Command("touch", "-h", "-d", "@1600000000", filepath.Join(d, "symlink")).Run())
	check(os.MkdirAll(filepath.Join(d, "emptydir"), 0o755))
	check(os.Chmod(filepath.Join(d, "emptydir"), 0o777|os.ModeSticky))
	for name, pieces := range map[string][]int64{
		"sparse/few": {0, 1 << 20, 3 << 20}, "sparse/hole": nil, "sparse/end": {4<<20 - 4096}, "sparse/big": {5 << 33},
		"sparse/many": func() (x []int64) {
			for i := range int64(60) {
				x = append(x, i<<16)
			}
			return x
		}(),
	} {
		f, err := os.Create(func() string { return put(name, "", 0o644) }())
		check(err)
		size := int64(4 << 20)
		for i, off := range pieces {
			_, err := f.WriteAt(bytes.Repeat([]byte{byte('a' + i%26)}, 4096), off)
			check(err)
			size = max(size, off+4096)
		}
		check(f.Truncate(size))
		check(f.Close())
	}
	if os.Getuid() == 0 {
		for _, args := range [][]string{{"mknod", "null", "c", "1", "3"}, {"mknod", "disk", "b", "259", "70000"}, {"mkfifo", "pipe"},
			{"setfattr", "-n", "security.capability", "-v", "0x0100000200040000000000000000000000000000", "etc/motd"}, {"chown", "70000:3000000", "bin/su"}, {"chmod", "4755", "bin/su"}} {
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Dir = d
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", args, err, out)
			}
		}
	}
	var all []string
	check(filepath.WalkDir(d, func(p string, _ os.DirEntry, err error) error { all = append(all, p); return err }))
	slices.Reverse(all) // children first
	for i, p := range all {
		if fi, err := os.Lstat(p); err == nil && fi.Mode()&os.ModeSymlink == 0 {
			check(os.Chtimes(p, time.Time{}, time.Unix(1_700_000_000+int64(i), 0)))
		}
	}
	return d
}

// The tool that most archives come from judges: what it writes, in each of its
// formats, is the tree that the directory itself gives, holes included.
func TestTarOfGNUTarIsTheDirectory(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("no tar: ", err)
	}
	d := hostDir(t)
	want, err := tree.FromDir(d, tree.DirOptions{Xattrs: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		sparse bool
		xattrs bool
	}{
		{[]string{"--format=gnu"}, false, false},
		{[]string{"--format=gnu", "--sparse"}, true, false},
		{[]string{"--format=pax", "--xattrs", "--xattrs-include=*"}, false, true},
		{[]string{"--format=pax", "--xattrs", "--xattrs-include=*", "--sparse"}, true, true},
		{[]string{"--format=pax", "--sparse", "--sparse-version=0.0"}, true, false},
		{[]string{"--format=pax", "--sparse", "--sparse-version=0.1"}, true, false},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			args := append(c.args, "--numeric-owner", "-C", d, "-cf", filepath.Join(t.TempDir(), "x.tar"), ".")
			want := want.Clone()
			if !c.sparse { // 40 GiB of zeros
				args = append([]string{"--exclude=./sparse/big"}, args...)
				want.Remove("/sparse/big")
			}
			if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
				t.Fatalf("tar: %v: %s", err, out)
			}
			got := openTar(t, args[len(args)-2])
			diffs := tree.Diff(want, got)
			if !c.xattrs {
				diffs = slices.DeleteFunc(diffs, func(s string) bool { return strings.Contains(s, "xattr") })
			}
			want.Remove("/sparse/big") // not byte by byte
			small := got.Clone()
			small.Remove("/sparse/big")
			for _, s := range tree.DiffContents(want, small) {
				if strings.Contains(s, "contents") {
					diffs = append(diffs, s)
				}
			}
			if len(diffs) > 0 {
				t.Errorf("differences:\n%s", strings.Join(diffs, "\n"))
			}
			if !c.sparse {
				return
			}
			for e := range got.Below("/sparse") {
				if e.Inode.Kind != tree.Regular {
					continue
				}
				data := int64(0)
				for _, x := range e.Inode.Data.Extents() {
					data += x.Len
				}
				if data > 60*4096 || e.Path == "/sparse/hole" && data > 0 {
					t.Errorf("%s: %d bytes of data: %v", e.Path, data, e.Inode.Data.Extents())
				}
			}
			if n := got.Get("/sparse/big"); n != nil {
				b := make([]byte, 4096)
				if _, err := n.Data.ReadAt(b, 5<<33); err != nil || b[0] != 'a' || b[4095] != 'a' {
					t.Errorf("big: %q…, %v", b[:4], err)
				}
			}
		})
	}
}

func openTar(t *testing.T, name string) *tree.Tree {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tree.FromTar(f, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// GNU tar, as root, unpacks to a directory that is the tree.
func TestWriteTarIsUnpackedByGNUTar(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make devices and owners")
	}
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("no tar: ", err)
	}
	want, err := tree.FromDir(hostDir(t), tree.DirOptions{Xattrs: true})
	if err != nil {
		t.Fatal(err)
	}
	want.Remove("/sparse/big")
	n := want.Get("/etc/motd").Clone()
	n.MTime = noon
	n.Xattrs["security.a=b%"] = "value" // a keyword that needs escaping
	if err := want.Put("/etc/motd\xff\n", n); err != nil {
		t.Fatal(err)
	}
	d := t.TempDir()
	cmd := exec.Command("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpC", d)
	cmd.Stdin = bytes.NewReader(writeTar(t, want))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	got, err := tree.FromDir(d, tree.DirOptions{Xattrs: true})
	if err != nil {
		t.Fatal(err)
	}
	if diffs := tree.DiffContents(want, got); len(diffs) > 0 {
		t.Errorf("differences:\n%s", strings.Join(diffs, "\n"))
	}
}
