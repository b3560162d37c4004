package tree_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// entry is a header of kind: "f" with a content, "d", "l" with a target, "h" with
// a hard link's.
func entry(kind, name, value string) tar.Header {
	types := map[string]byte{"f": tar.TypeReg, "d": tar.TypeDir, "l": tar.TypeSymlink, "h": tar.TypeLink}
	return tar.Header{Typeflag: types[kind], Name: name, Linkname: value}
}

func fromTar(t testing.TB, b []byte) *tree.Tree {
	t.Helper()
	tr, err := tree.FromTar(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func wantFile(t *testing.T, tr *tree.Tree, p, want string) {
	t.Helper()
	if got, err := tr.ReadFile(p, 1<<20); err != nil || string(got) != want {
		t.Errorf("%s: %q, %v; want %q", p, got, err, want)
	}
}

func TestTarEntries(t *testing.T) {
	tr := fromTar(t, disktest.Tar(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o1711, Uid: 3, Gid: 4, ModTime: noon, Format: tar.FormatPAX},
		tar.Header{Typeflag: tar.TypeReg, Name: "./usr/f", Mode: 0o4755, Uid: 4294967294, Gid: 100000, Linkname: "hello", ModTime: noon,
			Uname: "nobody", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "SCHILY.xattr.user.a%3Db%25": "",
				"RHT.security.selinux": "system_u:object_r:bin_t:s0"}},
		tar.Header{Typeflag: tar.TypeChar, Name: "/dev/null", Devmajor: 1, Devminor: 3, Mode: 0o666},
		tar.Header{Typeflag: tar.TypeBlock, Name: "dev/vda", Devmajor: 254, Devminor: 1 << 19},
		tar.Header{Typeflag: tar.TypeFifo, Name: "run/p"},
		entry("l", "bin", "usr/bin"),
		entry("h", "usr/g", "./usr/f"),
		entry("f", "again", "1"), entry("f", "again", "2"),
		entry("f", "empty", ""),
	))
	n := tr.Get("/usr/f")
	if n.Kind != tree.Regular || n.Mode != 0o4755 || n.UID != 4294967294 || n.GID != 100000 || !n.MTime.Equal(noon) {
		t.Errorf("%+v", n)
	}
	if len(n.Xattrs) != 3 || n.Xattrs["security.capability"] != "\x01\x00\x00\x02" || n.Xattrs["security.selinux"] != "system_u:object_r:bin_t:s0" {
		t.Errorf("xattrs %q", n.Xattrs)
	}
	if v, ok := n.Xattrs["user.a=b%"]; !ok || v != "" {
		t.Errorf("xattrs %q", n.Xattrs)
	}
	if tr.Get("/usr/g") != n {
		t.Error("hard link is a file of its own")
	}
	if n := tr.Get("/"); n.Mode != 0o1711 || n.UID != 3 || n.GID != 4 || !n.MTime.Equal(noon) {
		t.Errorf("root %+v", n)
	}
	if n := tr.Get("/dev/null"); n.Kind != tree.CharDevice || n.Major != 1 || n.Minor != 3 {
		t.Errorf("%+v", n)
	}
	if n := tr.Get("/dev/vda"); n.Kind != tree.BlockDevice || n.Major != 254 || n.Minor != 1<<19 {
		t.Errorf("%+v", n)
	}
	if n := tr.Get("/bin"); n.Kind != tree.Symlink || n.Target != "usr/bin" {
		t.Errorf("%+v", n)
	}
	if n := tr.Get("/empty"); n.Data != nil || n.Size() != 0 {
		t.Errorf("%+v", n)
	}
	wantFile(t, tr, "/usr/g", "hello")
	wantFile(t, tr, "/again", "2")
	wantPaths(t, tr, "/again", "/bin", "/dev", "/dev/null", "/dev/vda", "/empty", "/run", "/run/p", "/usr", "/usr/f", "/usr/g")
}

func TestTarGoesThroughSymlinksInside(t *testing.T) {
	tr := fromTar(t, disktest.Tar(t,
		entry("d", "usr/bin/", ""), entry("l", "bin", "usr/bin"), entry("l", "out", "../../../etc"), entry("l", "abs", "/etc"),
		entry("f", "bin/sh", "sh"), entry("f", "out/passwd", "p"), entry("f", "abs/group", "g"), entry("h", "abs/gshadow", "out/group"),
		entry("l", "dangling", "new/place"), entry("f", "dangling/x", "x"),
	))
	wantPaths(t, tr, "/abs", "/bin", "/dangling", "/etc", "/etc/group", "/etc/gshadow", "/etc/passwd", "/new", "/new/place",
		"/new/place/x", "/out", "/usr", "/usr/bin", "/usr/bin/sh")
	if tr.Get("/etc/group") != tr.Get("/etc/gshadow") {
		t.Error("not linked")
	}
}

func TestTarRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		name    string
		headers []tar.Header
		words   []string
	}{
		{"escape", []tar.Header{entry("f", "../etc/passwd", "x")}, []string{`"../etc/passwd"`, "leaves the tree"}},
		{"escape below", []tar.Header{entry("f", "a/../../b", "x")}, []string{`"a/../../b"`, "leaves the tree"}},
		{"hard link escapes", []tar.Header{entry("h", "a", "../../etc/shadow")}, []string{`"a"`, "leaves the tree"}},
		{"hard link to nothing", []tar.Header{entry("h", "a", "b")}, []string{`"a"`, `"/b"`, "no such file"}},
		{"hard link to itself", []tar.Header{entry("h", "a", "a")}, []string{"no such file"}},
		{"hard link to a directory", []tar.Header{entry("d", "d/", ""), entry("h", "a", "d")}, []string{"is a directory"}},
		{"below a file", []tar.Header{entry("f", "a", "x"), entry("f", "a/b", "x")}, []string{`"a/b"`, "not a directory"}},
		{"loop", []tar.Header{entry("l", "a", "a"), entry("f", "a/b", "x")}, []string{`"a/b"`, "symbolic links"}},
		{"root is a file", []tar.Header{entry("f", ".", "x")}, []string{"root"}},
		{"long name", []tar.Header{entry("f", long, "x")}, []string{"256 bytes"}},
		{"empty target", []tar.Header{entry("l", "a", "")}, []string{`"a"`, "target"}},
		{"long target", []tar.Header{entry("l", "a", strings.Repeat("t", 4096))}, []string{"4096 bytes"}},
		{"ACL", []tar.Header{{Typeflag: tar.TypeReg, Name: "a", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-\nuser:7:rw-\n"}}}, []string{"ACL"}},
		{"default ACL", []tar.Header{{Typeflag: tar.TypeDir, Name: "a", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.acl.default": "user::rw-,group::r--,other::r--"}}}, []string{"ACL"}},
		{"long name behind a symlink", []tar.Header{entry("l", "a", long), entry("f", "a/b", "x")}, []string{`"a/b"`, "256 bytes"}},
		{"long path behind a symlink", []tar.Header{entry("l", "a", strings.Repeat("t/", 2040)), entry("f", "a/"+long[1:], "x")}, []string{"at most 4095"}},
		{"global header", []tar.Header{{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"mtime": "1"}}}, []string{"mtime"}},
		{"device", []tar.Header{{Typeflag: tar.TypeChar, Name: "a", Devmajor: 4096}}, []string{"4096:0"}},
		{"unknown type", []tar.Header{{Typeflag: 'Z', Name: "a"}}, []string{"unknown type"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := disktest.Tar(t, c.headers...)
			_, err := tree.FromTar(bytes.NewReader(b), int64(len(b)))
			wantError(t, err, append(c.words, "tar: ")...)
		})
	}
	t.Run("global comment is fine", func(t *testing.T) { // as git archive writes
		tr := fromTar(t, disktest.Tar(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "1"}}, entry("f", "a", "x")))
		wantPaths(t, tr, "/a")
	})
}

func TestTarCutShortIsAnError(t *testing.T) {
	whole := disktest.Tar(t, entry("f", "a", strings.Repeat("a", 1000)), entry("f", "b", strings.Repeat("b", 5000)))
	for n := 1; n < len(whole)-1024; n += 3 {
		_, err := tree.FromTar(bytes.NewReader(whole[:n]), int64(n))
		// Between the last byte of a file and the next header nothing is missing.
		if nothing := n >= 1512 && n <= 1536 || n >= 7048; (err == nil) != nothing {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
		if _, err := tree.FromTar(bytes.NewReader(whole[:n]), int64(len(whole))); err == nil {
			t.Errorf("%d of %d bytes, but all promised: no error", n, len(whole))
		}
	}
	tr := build(t, "/kept")
	if err := tr.ApplyTar(bytes.NewReader(whole), 3000); err == nil {
		t.Error("no error")
	}
	wantPaths(t, tr, "/kept")
}

func TestTarSaysWhatItIsInstead(t *testing.T) {
	_, err := tree.FromTar(strings.NewReader("\x1f\x8b"+strings.Repeat("z", 2000)), 2002)
	wantError(t, err, "gzip")
	_, err = tree.FromTar(strings.NewReader(strings.Repeat("z", 2000)), 2000)
	wantError(t, err, "invalid tar header")
}

func TestTarTakesACLsThatAreXattrsToo(t *testing.T) {
	acl := "\x02\x00\x00\x00"
	tr := fromTar(t, disktest.Tar(t,
		tar.Header{Typeflag: tar.TypeReg, Name: "a", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-\nuser:7:rw-\n",
			"SCHILY.xattr.system.posix_acl_access": acl}},
		tar.Header{Typeflag: tar.TypeReg, Name: "b", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-\ngroup::r--\nother::r--\n"}}))
	if got := tr.Get("/a").Xattrs; len(got) != 1 || got["system.posix_acl_access"] != acl {
		t.Errorf("%q", got)
	}
	if got := tr.Get("/b").Xattrs; len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// randomTree makes a tree of everything that a tar can hold.
func randomTree(seed int64) *tree.Tree {
	r := rand.New(rand.NewSource(seed))
	name := func() string {
		b := make([]byte, 1+r.Intn([]int{3, 20, 255}[r.Intn(3)]))
		for i := range b {
			for b[i] == 0 || b[i] == '/' {
				b[i] = byte(r.Intn(256))
			}
		}
		if s := string(b); s != "." && s != ".." {
			return s
		}
		return "dots"
	}
	text := func(n int) string {
		b := make([]byte, r.Intn(n))
		r.Read(b)
		return string(b)
	}
	t := tree.New()
	dirs := []string{""}
	var files []string
	for range 60 {
		p := dirs[r.Intn(len(dirs))] + "/" + name()
		n := &tree.Inode{
			Kind: tree.Kind(r.Intn(6)), Mode: uint16(r.Intn(0o10000)), UID: r.Uint32() >> r.Intn(32), GID: r.Uint32() >> r.Intn(32),
			MTime: time.Unix(r.Int63n(1<<40)-1<<39, []int64{0, r.Int63n(1e9)}[r.Intn(2)]),
		}
		for range r.Intn(3) * r.Intn(2) {
			n.Xattrs = map[string]string{"user." + strings.ReplaceAll(name(), "\x00", "0"): text(300), "security.x": text(5)}
		}
		switch n.Kind {
		case tree.Dir:
			dirs = append(dirs, p)
		case tree.Regular:
			n.Data = diskimage.Bytes([]byte(text(2000)))
			files = append(files, p)
		case tree.Symlink:
			n.Target = "/" + name()
		case tree.CharDevice, tree.BlockDevice:
			n.Major, n.Minor = uint32(r.Intn(1<<12)), uint32(r.Intn(1<<20))
		}
		if len(files) > 0 && r.Intn(5) == 0 {
			if old := t.Get(files[r.Intn(len(files))]); old != nil {
				n = old
			}
		}
		if len(p) <= tree.MaxPath {
			if t.Put(p, n) != nil { // below what has been replaced by a file
				continue
			}
		}
	}
	return t
}

func writeTar(t testing.TB, tr *tree.Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tree.WriteTar(&b, tr); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWriteTarIsReadBackEqual(t *testing.T) {
	for seed := range int64(60) {
		want := randomTree(seed)
		b := writeTar(t, want)
		got := fromTar(t, b)
		if d := tree.DiffContents(want, got); len(d) > 0 {
			t.Fatalf("seed %d:\n%s", seed, strings.Join(d, "\n"))
		}
		if !bytes.Equal(b, writeTar(t, got)) {
			t.Fatalf("seed %d: written again, it differs", seed)
		}
	}
}

func TestWriteTarRefusesSockets(t *testing.T) {
	tr := tree.New()
	if err := tr.Put("/run/s", &tree.Inode{Kind: tree.Socket}); err != nil {
		t.Fatal(err)
	}
	wantError(t, tree.WriteTar(io.Discard, tr), "/run/s", "socket")
}

func BenchmarkFromTar(b *testing.B) {
	tr := tree.New()
	for i := range 22000 {
		n := file("x")
		n.UID = uint32(i)
		if err := tr.Put(fmt.Sprintf("/usr/lib/package-%d/directory/file-%d", i%220, i), n); err != nil {
			b.Fatal(err)
		}
	}
	data := writeTar(b, tr)
	for b.Loop() {
		fromTar(b, data)
	}
}
