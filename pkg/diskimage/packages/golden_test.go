package packages

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var (
	epoch = time.Unix(1_700_000_000, 0).UTC()
	early = epoch.Add(-time.Hour)
	late  = epoch.Add(time.Hour + 5)
)

func file(content string) *tree.Inode {
	return &tree.Inode{Mode: 0o640, UID: 3, GID: 4, MTime: late, Data: diskimage.Bytes([]byte(content))}
}

func dir() *tree.Inode { return &tree.Inode{Kind: tree.Dir, Mode: 0o750, GID: 7, MTime: late} }

func link(target string) *tree.Inode {
	return &tree.Inode{Kind: tree.Symlink, Mode: 0o777, MTime: late, Target: target}
}

func build(t *testing.T, entries map[string]*tree.Inode) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for p, n := range entries {
		if err := tr.Put(p, n); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func golden(t *testing.T, tr *tree.Tree) {
	t.Helper()
	if err := Golden(tr, epoch); err != nil {
		t.Fatal(err)
	}
}

func paths(tr *tree.Tree) (out []string) {
	for e := range tr.All() {
		out = append(out, e.Path)
	}
	return out
}

func TestGoldenRemovesWhatIsOfOneMachine(t *testing.T) {
	for _, tc := range []struct {
		path string
		n    *tree.Inode
		keep bool
	}{
		{"/etc/ssh/ssh_host_rsa_key", file("secret"), false},
		{"/etc/ssh/ssh_host_rsa_key.pub", file("public"), false},
		{"/etc/ssh/sshd_config", file("x"), true},
		{"/etc/ssh/moduli", file("x"), true},
		{"/etc/resolv.conf", file("nameserver 192.0.2.1\n"), false},
		{"/etc/resolv.conf", link("../run/systemd/resolve/stub-resolv.conf"), true},
		{"/etc/hostname", file("builder\n"), false},
		{"/etc/hosts", file("127.0.0.1 localhost\n"), true},
		{"/var/lib/dbus/machine-id", file("0123\n"), false},
		{"/var/lib/dbus/machine-id", link("/etc/machine-id"), true},
		{"/var/lib/systemd/random-seed", file("dice"), false},
		{"/var/lib/systemd/catalog/database", file("x"), true},
		{"/var/log/dpkg.log", file("x"), false},
		{"/var/log/apt/term.log", file("x"), false},
		{"/var/log/README", link("../../usr/share/doc/systemd/README.logs"), true},
		{"/var/log/private", dir(), true},
		{"/var/log/journal/0123/system.journal", file("x"), false},
		{"/var/log/journal/0123", dir(), false},
		{"/var/log/journal", dir(), true},
		{"/var/log/wtmp", file("x"), true},
		{"/var/lib/cloud/data/instance-id", file("x"), false},
		{"/var/lib/cloud/data", dir(), false},
		{"/var/lib/cloud", dir(), true},
		{"/var/lib/apt/lists/archive_InRelease", file("x"), false},
		{"/var/lib/apt/lists/partial", dir(), false},
		{"/var/lib/apt/extended_states", file("x"), true},
		{"/var/cache/apt/pkgcache.bin", file("x"), false},
		{"/var/cache/apt/archives/a_1_all.deb", file("x"), false},
		{"/var/cache/apt/archives", dir(), true},
		{"/var/cache/apt/archives/partial", dir(), false},
		{"/var/cache/ldconfig/aux-cache", file("x"), false},
		{"/var/cache/ldconfig", dir(), true},
		{"/var/cache/debconf/config.dat-old", file("x"), false},
		{"/var/cache/debconf/config.dat", file("x"), true},
		{"/var/lib/dpkg/status-old", file("x"), false},
		{"/var/lib/dpkg/status", file("x"), true},
		{"/etc/passwd-", file("x"), false},
		{"/etc/passwd", file("x"), true},
		{"/tmp/x/y", file("x"), false},
		{"/tmp", dir(), true},
		{"/var/tmp/x", link("/etc/passwd"), false},
		{"/run/lock", dir(), false},
		{"/run", dir(), true},
		{"/home/user/tmp/x", file("x"), true},
	} {
		tr := build(t, map[string]*tree.Inode{tc.path: tc.n})
		golden(t, tr)
		if got := tr.Get(tc.path); (got != nil) != tc.keep {
			t.Errorf("%s (%v): kept %v, want %v", tc.path, tc.n.Kind, got != nil, tc.keep)
		}
	}
}

func TestGoldenFollowsNoSymlink(t *testing.T) {
	tr := build(t, map[string]*tree.Inode{
		"/tmp":        link("/srv"),
		"/srv/a":      file("a"),
		"/var/log":    link("/srv"),
		"/etc/ssh":    link("/srv/ssh"),
		"/srv/ssh/sh": file("a"),
	})
	want := paths(tr)
	golden(t, tr)
	if got := paths(tr); !slices.Equal(got, want) {
		t.Errorf("paths %q, want %q", got, want)
	}
}

func TestGoldenKeepsOwnersOfEmptiedLogs(t *testing.T) {
	tr := build(t, map[string]*tree.Inode{"/var/log/btmp": file("records")})
	golden(t, tr)
	n := tr.Get("/var/log/btmp")
	if n == nil || n.Size() != 0 || n.Mode != 0o640 || n.UID != 3 || n.GID != 4 {
		t.Errorf("btmp is %+v, want it empty, 0640, 3:4", n)
	}
}

func TestGoldenMachineID(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   map[string]*tree.Inode
		want bool
	}{
		{"of a host", map[string]*tree.Inode{"/etc/machine-id": file("0123456789abcdef\n")}, true},
		{"missing with systemd", map[string]*tree.Inode{"/lib": link("usr/lib"), "/usr/lib/systemd/systemd": file("ELF")}, true},
		{"missing without systemd", map[string]*tree.Inode{"/etc/passwd": file("x")}, false},
	} {
		tr := build(t, tc.in)
		golden(t, tr)
		n := tr.Get("/etc/machine-id")
		if (n != nil) != tc.want || n != nil && (n.Size() != 0 || n.Mode != 0o444 || n.UID != 0) {
			t.Errorf("%s: machine-id is %+v, want an empty file: %v", tc.name, n, tc.want)
		}
	}
}

func TestGoldenHostKeyUnit(t *testing.T) {
	full := map[string]*tree.Inode{
		"/lib": link("usr/lib"), "/usr/lib/systemd/systemd": file("ELF"),
		"/usr/sbin/sshd": file("ELF"), "/usr/bin/ssh-keygen": file("ELF"),
	}
	tr := build(t, full)
	golden(t, tr)
	const wants = "/etc/systemd/system/multi-user.target.wants/imgpipe-ssh-hostkeys.service"
	if n := tr.Get(wants); n == nil || n.Target != "/etc/systemd/system/imgpipe-ssh-hostkeys.service" {
		t.Errorf("%s is %+v, want a link to the unit", wants, n)
	}
	unit, err := tr.ReadFile(wants, 1<<16)
	if err != nil || !bytes.Contains(unit, []byte("ssh-keygen -A")) {
		t.Errorf("unit is %q, %v", unit, err)
	}
	for e := range tr.All() {
		if e.Inode.MTime.After(epoch) {
			t.Errorf("%s is of %v, after the epoch", e.Path, e.Inode.MTime)
		}
	}
	delete(full, "/usr/sbin/sshd")
	tr = build(t, full)
	golden(t, tr)
	if tr.Get(wants) != nil {
		t.Error("the unit is there without an ssh server")
	}
}

func TestGoldenClampsTimesAndKeepsHardLinks(t *testing.T) {
	shared := file("x")
	shared.Xattrs = map[string]string{"security.selinux": "host", "security.capability": "cap"}
	old := file("y")
	old.MTime = early
	tr := build(t, map[string]*tree.Inode{"/a": shared, "/d/b": shared, "/old": old})
	golden(t, tr)
	a, b := tr.Get("/a"), tr.Get("/d/b")
	if a != b {
		t.Error("/a and /d/b are no hard links any more")
	}
	if !a.MTime.Equal(epoch) || !tr.Get("/d").MTime.Equal(epoch) {
		t.Errorf("times %v, %v, want %v", a.MTime, tr.Get("/d").MTime, epoch)
	}
	if _, ok := a.Xattrs["security.selinux"]; ok || a.Xattrs["security.capability"] != "cap" {
		t.Errorf("xattrs %v, want just security.capability", a.Xattrs)
	}
	if tr.Get("/old") != old {
		t.Error("an inode that need not change was replaced")
	}
	if !shared.MTime.Equal(late) || len(shared.Xattrs) != 2 {
		t.Error("an inode that another tree may share was changed")
	}
}

// pyc returns a compiled file's bytes: PEP 552's header and a body.
func pyc(flags uint32, mtime time.Time) *tree.Inode {
	b := binary.LittleEndian.AppendUint16(nil, 3495)
	b = append(b, "\r\n"...)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(mtime.Unix()))
	b = binary.LittleEndian.AppendUint32(b, 6)
	return file(string(append(b, "marshalled"...)))
}

func TestGoldenKeepsCompiledPythonValid(t *testing.T) {
	earlySource := file("import")
	earlySource.MTime = early
	other := file("\x42\x0d\x0a\x0a0000000000000000")
	for _, tc := range []struct {
		name, path string
		source     *tree.Inode
		pyc        *tree.Inode
		want       *tree.Inode
	}{
		{"cached beside its source", "/m/__pycache__/a.cpython-311.pyc", file("import"), pyc(0, late), pyc(0, epoch)},
		{"optimised", "/m/__pycache__/a.cpython-311.opt-1.pyc", file("import"), pyc(0, late), pyc(0, epoch)},
		{"of the old place", "/m/a.pyc", file("import"), pyc(0, late), pyc(0, epoch)},
		{"of an early source", "/m/__pycache__/a.cpython-311.pyc", earlySource, pyc(0, early), pyc(0, early)},
		{"stale", "/m/__pycache__/a.cpython-311.pyc", file("import"), pyc(0, early), pyc(0, early)},
		{"checked by hash", "/m/__pycache__/a.cpython-311.pyc", file("import"), pyc(3, late), pyc(3, late)},
		{"without a source", "/m/__pycache__/a.cpython-311.pyc", nil, pyc(0, late), pyc(0, late)},
		{"too short", "/m/a.pyc", file("import"), file("\xa7\x0d\r\n"), file("\xa7\x0d\r\n")},
		{"empty", "/m/a.pyc", file("import"), &tree.Inode{MTime: late}, file("")},
		{"of an old Python", "/m/a.pyc", file("import"), other, other},
	} {
		in := map[string]*tree.Inode{tc.path: tc.pyc}
		if tc.source != nil {
			in["/m/a.py"] = tc.source
		}
		tr := build(t, in)
		golden(t, tr)
		got, err := tr.ReadFile(tc.path, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		want, err := build(t, map[string]*tree.Inode{"/w": tc.want}).ReadFile("/w", 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: header %x, want %x", tc.name, got, want)
		}
	}
}

func TestGoldenIsIdempotent(t *testing.T) {
	tr := build(t, map[string]*tree.Inode{
		"/lib": link("usr/lib"), "/usr/lib/systemd/systemd": file("ELF"),
		"/usr/sbin/sshd": file("ELF"), "/usr/bin/ssh-keygen": file("ELF"),
		"/var/log/x": file("x"), "/m/a.py": file("import"), "/m/a.pyc": pyc(0, late),
	})
	golden(t, tr)
	first := paths(tr)
	pycFirst, _ := tr.ReadFile("/m/a.pyc", 100)
	golden(t, tr)
	pycSecond, _ := tr.ReadFile("/m/a.pyc", 100)
	if second := paths(tr); !slices.Equal(first, second) || !bytes.Equal(pycFirst, pycSecond) {
		t.Errorf("paths %q, then %q", first, second)
	}
}
