package sandbox

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// rich is a tree with everything that a filesystem can hold.
func rich(t *testing.T) *tree.Tree {
	t.Helper()
	out := busybox(t)
	old := epoch.Add(-48 * time.Hour)
	put := func(p string, n *tree.Inode) *tree.Inode {
		t.Helper()
		if n.MTime.IsZero() {
			n.MTime = old
		}
		if err := out.Put(p, n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	text := func(s string) diskimage.Disk { return diskimage.Bytes([]byte(s)) }
	put("/data", &tree.Inode{Kind: tree.Dir, Mode: 0o2775, UID: 33, GID: 33})
	put("/data/suid", &tree.Inode{Mode: 0o4755, Data: text("suid")})
	put("/data/cap", &tree.Inode{Mode: 0o755, Data: text("cap"), Xattrs: map[string]string{
		"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}})
	put("/data/labelled", &tree.Inode{Mode: 0o644, Data: text("x"), Xattrs: map[string]string{"trusted.overlay.origin": "o", "security.selinux": "system_u:object_r:x:s0\x00"}})
	a := put("/data/a", &tree.Inode{Mode: 0o640, UID: 1000, GID: 4, Data: text("linked")})
	put("/data/b", a)
	put("/data/sub/c", a)
	put("/data/null", &tree.Inode{Kind: tree.CharDevice, Mode: 0o666, Major: 1, Minor: 3})
	put("/data/disk", &tree.Inode{Kind: tree.BlockDevice, Mode: 0o660, GID: 6, Major: 8, Minor: 1})
	put("/data/fifo", &tree.Inode{Kind: tree.Fifo, Mode: 0o600, UID: 65534, GID: 65534})
	put("/data/link", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, UID: 5, GID: 5, Target: "../nowhere"})
	put("/data/empty", &tree.Inode{Mode: 0o000})
	hole, err := diskimage.Join(8<<20, diskimage.Part{Off: 4 << 20, Disk: text("in the middle")})
	if err != nil {
		t.Fatal(err)
	}
	put("/data/sparse", &tree.Inode{Mode: 0o644, Data: hole})
	put("/data/big", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(bytes.Repeat([]byte("0123456789abcdef"), 100_000))})
	put("/data/\xff\n name", &tree.Inode{Mode: 0o644, Data: text("odd")})
	put("/data/old", &tree.Inode{Mode: 0o644, MTime: time.Unix(-5, 7).UTC()})
	put("/dev/console", &tree.Inode{Kind: tree.CharDevice, Mode: 0o600, Major: 5, Minor: 1})
	put("/run/kept", &tree.Inode{Mode: 0o644, Data: text("hidden")})
	put("/tree/x/y", &tree.Inode{Mode: 0o644, Data: text("y")})
	put("/tree/x/z", &tree.Inode{Mode: 0o644, Data: text("z")})
	put("/gone/deep/er", &tree.Inode{Mode: 0o644})
	return out
}

func TestNothingChangesByItself(t *testing.T) {
	in, box := rich(t), newBox(t)
	// all is read, all of it is listed, some is written with what it has
	script := "find / -xdev -type f -size -1000k -exec cat {} + >/dev/null; ls -laR /bin /data /tree /dev >/dev/null; cp -p /data/big /tmp/x; cat /tmp/x >/data/big; chmod 640 /data/a; mkdir /data/t; rmdir /data/t; mv /data/b /data/b2; mv /data/b2 /data/b"
	for range 2 {
		out := run(t, box, in, script)
		wantDiff(t, in, out, "")
		for e := range in.All() {
			if out.Get(e.Path) != e.Inode {
				t.Errorf("%s is another inode", e.Path)
			}
		}
	}
}

// scenario is a step that changes in every way.
const scenario = `
echo changed >>/data/suid; chmod 4755 /data/suid
rm /data/b; echo apart >/data/b
ln /data/a /data/d
ln /data/empty /data/empty2
chown 7:8 /data/null; chmod 600 /data/disk
mv /data/link /data/link2
mv /tree/x /tree/renamed
rm -rf /gone; mkdir /gone; echo again >/gone/file
rm -rf /data/fifo; mkdir /data/fifo; touch /data/fifo/in
dd if=/dev/zero of=/data/sparse2 bs=1 count=1 seek=3000000 2>/dev/null
dd if=/dev/zero bs=1000 count=1700 2>/dev/null | tr '\0' q >/data/large
truncate -s 5000000 /data/big
mkfifo /data/pipe; chown 1000:4 /data/pipe
touch -d '2020-02-03 04:05:06' /data/old
echo 'with a space' >"/data/a b"
chmod 1777 /data/sub
ln -s /etc /data/to-etc
echo lost >/run/x; echo lost >/tmp/x; echo lost >/dev/shm/x
mkdir -p /opt/new/deep; chown -R 1000:1000 /opt/new
echo x >/etc/.hidden; chmod 0 /etc/.hidden
`

func scenarioLayer(t *testing.T, o Options) []byte {
	t.Helper()
	in := rich(t)
	return layerOf(t, in, run(t, boxWith(t, o), in, scenario))
}

func TestLayerIsTheSameForEverybody(t *testing.T) {
	want := scenarioLayer(t, Options{})
	if to := os.Getenv("IMGPIPE_SANDBOX_LAYER"); to != "" {
		if err := os.WriteFile(to, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if len(want) < 1<<20 {
		t.Errorf("only %d bytes", len(want))
	}
	t.Run("on disk", func(t *testing.T) {
		if got := scenarioLayer(t, Options{WorkDir: t.TempDir()}); !bytes.Equal(got, want) {
			t.Errorf("another layer, %d bytes; in memory %d", len(got), len(want))
		}
	})
	t.Run("as an ordinary user", func(t *testing.T) {
		to := asUser(t, "TestLayerIsTheSameForEverybody$", "IMGPIPE_SANDBOX_LAYER")
		got, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("another layer, %d bytes; as root %d", len(got), len(want))
		}
	})
}

// asUser runs tests of this program as an ordinary user, who is in account files
// that only this test sees, and returns the file that the environment variable named.
func asUser(t *testing.T, pattern, variable string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	if _, err := exec.LookPath("newuidmap"); err != nil {
		t.Skip("apt-get install uidmap")
	}
	dir, err := os.MkdirTemp("/var/tmp", "imgpipe-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "test")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"test": self, "passwd": append(passwd, "imgpipe-test:x:47110:47110::"+dir+":/bin/sh\n"...),
		"subuid": []byte("imgpipe-test:4000000:65536\n"), "subgid": []byte("imgpipe-test:4100000:65536\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, 47110, 47110); err != nil {
		t.Fatal(err)
	}
	script := `set -e
for f in passwd subuid subgid; do mount --bind "$1/$f" "/etc/$f"; done
exec setpriv --reuid 47110 --regid 47110 --clear-groups "$2" -test.v -test.run "$3"`
	cmd := exec.Command("sh", "-c", script, "sh", dir, program, "^"+pattern)
	cmd.Dir = dir
	to := filepath.Join(dir, "out")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir, variable+"="+to)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip(string(out))
	}
	return to
}

func TestScenario(t *testing.T) {
	in := rich(t)
	out := run(t, newBox(t), in, scenario)
	wantDiff(t, in, out, `
/data/a b: new file
/data/b: mode 0640, now 0644
/data/b: owner 1000:4, now 0:33
/data/b: mtime 1793318400.000000000, now 1793491200.000000000
/data/b: hard link of "/data/a", now of ""
/data/big: mtime 1793318400.000000000, now 1793491200.000000000
/data/big: size 1600000, now 5000000
/data/d: new file
/data/disk: mode 0660, now 0600
/data/empty2: new file
/data/fifo: fifo, now directory
/data/fifo/in: new file
/data/large: new file
/data/link: symlink is gone
/data/link2: new symlink
/data/null: owner 0:0, now 7:8
/data/old: mtime -5.000000007, now 1580702706.000000000
/data/pipe: new fifo
/data/sparse2: new file
/data/sub: mode 0755, now 1777
/data/suid: mtime 1793318400.000000000, now 1793491200.000000000
/data/suid: size 4, now 12
/data/to-etc: new symlink
/etc/.hidden: new file
/gone/deep: directory is gone
/gone/file: new file
/opt: new directory
/tree/renamed: new directory
/tree/x: directory is gone`)
	for a, b := range map[string]string{"/data/a": "/data/d", "/data/empty": "/data/empty2", "/data/sub/c": "/data/a"} {
		if out.Get(a) != out.Get(b) || out.Get(a) != in.Get(a) {
			t.Errorf("%s and %s are not the file that they were", a, b)
		}
	}
	if n := out.Get("/opt/new/deep"); n.UID != 1000 || n.GID != 1000 {
		t.Errorf("%+v", n)
	}
	if n := out.Get("/data/suid"); n.Mode != 0o4755 {
		t.Errorf("mode %o", n.Mode)
	}
	if b, err := out.ReadFile("/data/large", 2<<20); err != nil || len(b) != 1_700_000 || strings.Trim(string(b), "q") != "" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// What a step maps and writes is seen, also where the kernel does not change a time.
func TestMappedWritesAreSeen(t *testing.T) {
	program, err := filepath.EvalSymlinks("/usr/bin/python3")
	if err != nil {
		t.Skip("apt-get install python3: ", err)
	}
	in, library := busybox(t), "/usr/lib/"+filepath.Base(program)
	host, err := tree.FromDir(library, tree.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for e := range host.All() {
		if e.Inode.Kind == tree.Dir || strings.Contains(e.Path, "-linux-gnu/") || strings.Contains(e.Path, "/dist-packages") {
			continue
		}
		if err := in.Put(library+e.Path, e.Inode); err != nil {
			t.Fatal(err)
		}
	}
	libraries, _ := exec.Command("ldd", program).Output() // a static one has none
	for word := range strings.FieldsSeq(program + " " + string(libraries)) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		b, err := os.ReadFile(word)
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Put(word, &tree.Inode{Mode: 0o755, Data: diskimage.Bytes(b)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Put("/usr/bin/python3", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: program}); err != nil {
		t.Fatal(err)
	}
	if err := in.Put("/file", &tree.Inode{Mode: 0o644, MTime: epoch, Data: diskimage.Bytes(bytes.Repeat([]byte("a"), 8192))}); err != nil {
		t.Fatal(err)
	}
	script := `#!/usr/bin/python3
import mmap
with open("/file", "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    assert m[5000] == ord("a")
    m[5000] = ord("b")
`
	for _, o := range []Options{{}, {WorkDir: t.TempDir()}} {
		out := run(t, boxWith(t, o), in, script)
		b, err := out.ReadFile("/file", 1<<20)
		if err != nil || b[5000] != 'b' || strings.Count(string(b), "b") != 1 {
			t.Errorf("%+v: %v; the write is lost", o, err)
		}
	}
}
