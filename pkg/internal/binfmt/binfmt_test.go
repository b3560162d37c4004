package binfmt

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	qemuText = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POF\noffset 0\n" +
		"magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
	pythonText = "enabled\ninterpreter /usr/bin/python3\nflags: \noffset 0\nmagic a70d0d0a\n"
)

func TestWhyNot(t *testing.T) {
	const conf, misc = "usr/lib/binfmt.d/qemu-aarch64.conf", "proc/sys/fs/binfmt_misc/"
	file := &fstest.MapFile{}
	for name, c := range map[string]struct {
		root fstest.MapFS
		want string
	}{
		"nothing":      {fstest.MapFS{}, "no interpreter is installed: as root, run: apt-get install qemu-user-static"},
		"another's":    {fstest.MapFS{"usr/lib/binfmt.d/qemu-riscv64.conf": file, misc + "register": file}, "no interpreter is installed"},
		"not mounted":  {fstest.MapFS{conf: file}, "binfmt_misc is not mounted: as root, run: mount -t binfmt_misc"},
		"not told":     {fstest.MapFS{conf: file, misc + "register": file, misc + "python3": {Data: []byte(pythonText)}}, "not registered: as root, run: /usr/lib/systemd/systemd-binfmt"},
		"switched off": {fstest.MapFS{conf: file, misc + "register": file, misc + "qemu-aarch64": {Data: []byte(strings.Replace(qemuText, "enabled", "disabled", 1))}}, "switched off: as root, run: echo 1 >/proc/sys/fs/binfmt_misc/qemu-aarch64"},
	} {
		err := why("arm64", Program("arm64"), c.root)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s", name, err, c.want)
		}
	}
}

func TestFind(t *testing.T) {
	d := fstest.MapFS{"register": {}, "status": {Data: []byte("enabled\n")}, "python3": {Data: []byte(pythonText)}, "any": {Data: []byte(qemuText)}}
	if r := find(d, Program("arm64")); r == nil || r.name != "any" || !r.enabled || !r.fixed {
		t.Errorf("arm64: %+v", r)
	}
	if r := find(d, Program("amd64")); r != nil {
		t.Errorf("amd64: %+v", r)
	}
	for _, text := range []string{"", "magic", "magic zz", "magic 7f\nmask ffff", "offset -1\nmagic 7f", "offset 4000\nmagic 7f", "offset x\nmagic 7f"} {
		if r := parse("x", text, Program("arm64")); r != nil {
			t.Errorf("%q: %+v", text, r)
		}
	}
	if r := parse("x", strings.Replace(qemuText, "POF", "PO", 1), Program("arm64")); r == nil || r.fixed {
		t.Errorf("without F: %+v", r)
	}
}

// TestPrograms lets this machine run its own, and an emulator the other.
func TestPrograms(t *testing.T) {
	if err := try(Program(runtime.GOARCH)); err != nil {
		t.Errorf("%s: %v", runtime.GOARCH, err)
	}
	for arch, name := range map[string]string{"arm64": "qemu-aarch64-static", "amd64": "qemu-x86_64-static"} {
		if Arch(Program(arch)) != arch {
			t.Errorf("%s is taken for %q", arch, Arch(Program(arch)))
		}
		emulator, err := exec.LookPath(name)
		if err != nil {
			t.Log("not judged: ", err)
			continue
		}
		path := filepath.Join(t.TempDir(), "probe")
		if err := os.WriteFile(path, Program(arch), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(emulator, path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", arch, err, out)
		}
	}
	if Program("riscv64") != nil || Check("riscv64") == nil || Check(runtime.GOARCH) != nil {
		t.Error("of which architectures there are programs")
	}
}

func TestArch(t *testing.T) {
	for _, s := range []string{"", "#!/bin/sh", "\x7fELF\x01aaaaaaaaaaaaaaaa", "\x7fELF\x02\x01\x01aaaaaaaaaaaaaaaa"} {
		if a := Arch([]byte(s)); a != "" {
			t.Errorf("%q: %s", s, a)
		}
	}
}
