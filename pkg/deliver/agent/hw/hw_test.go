//go:build linux

package hw

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// tree is a machine in a directory. A value that starts with "->" is a link.
func tree(t *testing.T, files map[string]string) System {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "->"); ok {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return System{root}
}

func TestParseCmdline(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "[]"},
		{" ro  quiet\n", "[{ro  false} {quiet  false}]"},
		{`a="b c" d`, "[{a b c true} {d  false}]"},
		{`"a=b c" d=`, "[{a b c true} {d  true}]"},
		{`x=a=b`, "[{x a=b true}]"},
		{`a="b`, "[{a b true}]"},
		{"a -- b", "[{a  false}]"},
		{`= a`, "[{a  false}]"},
	} {
		if got := fmt.Sprint(ParseCmdline(c.text)); got != c.want {
			t.Errorf("%q: got %s, want %s", c.text, got, c.want)
		}
	}
	p := ParseCmdline("console=tty0 a=1 console=ttyS0 a=2")
	if v, ok := p.Get("a"); v != "2" || !ok || !slices.Equal(p.All("console"), []string{"tty0", "ttyS0"}) || p.Has("b") {
		t.Errorf("%v", p)
	}
	if n := len(ParseCmdline(strings.Repeat("x ", 10000))); n != maxParameters {
		t.Errorf("%d parameters", n)
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add(`a="b c" -- d`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range ParseCmdline(s) {
			if p.Name == "" || strings.Contains(p.Name, "=") {
				t.Errorf("%q: %+v", s, p)
			}
		}
	})
}

func TestIdentityAndInventory(t *testing.T) {
	s := tree(t, map[string]string{
		"proc/cmdline":                                 "BOOTIF=01-52-54-00-00-00-02 ro",
		"proc/meminfo":                                 "MemTotal:        2000 kB\nMemAvailable:    1000 kB\n",
		"proc/cpuinfo":                                 "processor\t: 0\nmodel name\t: Fast CPU\n\nprocessor\t: 1\nmodel name\t: Fast CPU\n",
		"proc/uptime":                                  "12.50 20.00\n",
		"proc/self/mountinfo":                          "",
		"sys/block/.keep":                              "",
		"sys/class/dmi/id/product_uuid":                "4C4C4544-0044-3510-8052-B4C04F564231\n",
		"sys/class/dmi/id/product_serial":              "To be filled by O.E.M.\n",
		"sys/class/dmi/id/sys_vendor":                  "Maker \x1b[2J\n",
		"sys/class/dmi/id/product_name":                strings.Repeat("ü", 1000),
		"sys/class/dmi/id/bios_vendor":                 "SeaBIOS\n",
		"sys/class/dmi/id/bios_version":                "1.16\n",
		"sys/class/net/lo/address":                     "00:00:00:00:00:00",
		"sys/class/net/eth0/address":                   "52:54:00:00:00:01\n",
		"sys/class/net/eth0/device/vendor":             "0x1af4",
		"sys/class/net/eth0/device/driver":             "->../../../../bus/pci/drivers/virtio_net",
		"sys/class/net/eth0/carrier":                   "1\n",
		"sys/class/net/eth0/speed":                     "10000\n",
		"sys/class/net/eth1/address":                   "52:54:00:00:00:01\n",
		"sys/class/net/eth1/bonding_slave/perm_hwaddr": "52:54:00:00:00:02\n",
		"sys/class/net/eth1/device/vendor":             "0x1af4",
		"sys/class/net/eth1/speed":                     "-1\n",
		"sys/class/net/ib0/address":                    strings.Repeat("80:", 19) + "01",
		"sys/class/net/ib0/device/vendor":              "x",
		"sys/firmware/efi/fw_platform_size":            "64",
		"sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x06\x00\x00\x00\x01",
	})
	want := wire.Identity{UUID: "4c4c4544-0044-3510-8052-b4c04f564231", Serial: "To be filled by O.E.M.", MACs: []string{"52:54:00:00:00:02", "52:54:00:00:00:01"}}
	if got := s.Identity(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	v := s.Inventory(t.Context())
	nics := []wire.NIC{{Name: "eth0", MAC: "52:54:00:00:00:01", Driver: "virtio_net", Speed: 10000, Link: true}, {Name: "eth1", MAC: "52:54:00:00:00:02"}}
	if !reflect.DeepEqual(v.NICs, nics) || v.Vendor != "Maker ?[2J" || len(v.Model) != maxWord || v.CPU != "Fast CPU" || v.Cores != 2 || v.Memory != 2000<<10 ||
		v.Firmware != "uefi" || !v.SecureBoot || v.FirmwareInfo != "SeaBIOS 1.16" {
		t.Errorf("got %+v", v)
	}
	if d := s.Uptime(); d != 12500*time.Millisecond {
		t.Error(d)
	}
	if total, available := s.Memory(); total != 2000<<10 || available != 1000<<10 {
		t.Error(total, available)
	}
}

// A machine that says nothing at all is described as that.
func TestNothingIsKnown(t *testing.T) {
	s := tree(t, nil)
	if id := s.Identity(); !reflect.DeepEqual(id, wire.Identity{}) {
		t.Errorf("%+v", id)
	}
	if v := s.Inventory(t.Context()); v.Firmware != "bios" || v.SecureBoot || v.Disks != nil || v.NICs != nil {
		t.Errorf("%+v", v)
	}
}

// This machine, which the tests run on, has what every Linux has.
func TestThisMachine(t *testing.T) {
	total, available := Memory()
	v := Inventory(t.Context())
	if total < 1<<20 || available <= 0 || available > total || Uptime() <= 0 || v.Cores < 1 || v.Memory != total {
		t.Errorf("%d %d %v %+v", total, available, Uptime(), v)
	}
}

// What ends a machine does nothing in a program that is not its init.
func TestEndsNothingButAsInit(t *testing.T) {
	if os.Getpid() == 1 {
		t.Skip("this is PID 1")
	}
	for name, f := range map[string]func() error{"restart": Restart, "power off": PowerOff, "kexec": func() error { return Kexec(os.Stdin, nil, "") }} {
		if err := f(); !errors.Is(err, ErrNotInit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	Reap(t.Context()) // returns
}

func TestConsolePaths(t *testing.T) {
	for cmdline, want := range map[string]string{
		"console=tty0 console=ttyS0,115200n8 console=ttyS0": "[/dev/tty0 /dev/ttyS0]",
		"quiet":                               "[/dev/console]",
		"console=../etc/passwd console=null":  "[/dev/console]",
		"console= console=.. console=/dev/x1": "[/dev/x1]",
	} {
		if got := fmt.Sprint(tree(t, map[string]string{"proc/cmdline": cmdline}).consolePaths()); got != want {
			t.Errorf("%q: got %s, want %s", cmdline, got, want)
		}
	}
}

// A console that takes nothing, and one that is missing, hold up neither the writer
// nor the other one.
func TestConsoleThatBlocks(t *testing.T) {
	s := tree(t, map[string]string{"proc/cmdline": "console=ttyS0 console=ttyS1 console=ttyS2", "dev/ttyS2": ""})
	if err := unix.Mkfifo(s.at("/dev/ttyS0"), 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(s.at("/dev/ttyS0"), os.O_RDONLY|unix.O_NONBLOCK, 0) // and reads nothing
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	c := s.consoles()
	c.lines[2].queue <- []byte("hello\n")
	start := time.Now()
	for range 2000 {
		if _, err := c.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	c.Flush(200 * time.Millisecond)
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("it blocked for %v", d)
	}
	done := make(chan struct{})
	c.lines[2].flush <- done
	<-done
	if b, _ := os.ReadFile(s.at("/dev/ttyS2")); !strings.HasPrefix(string(b), "hello\n") || len(b) < 4096 {
		t.Errorf("%d bytes reached the good one", len(b))
	}
}

func TestKernelLine(t *testing.T) {
	for record, want := range map[string]string{
		"6,1234,5678901,-;usb 1-1: new\x1b device\n SUBSYSTEM=usb\n": "[    5.678901] usb 1-1: new? device",
		"no record": "",
		"6,1;x":     "",
	} {
		if got, _ := kernelLine([]byte(record)); got != want {
			t.Errorf("%q: got %q, want %q", record, got, want)
		}
	}
}

func TestKernelLogEnds(t *testing.T) {
	if _, err := os.Stat("/dev/kmsg"); err != nil || os.Geteuid() != 0 {
		t.Skip("no kernel log here")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- KernelLog(ctx, func(string) {}) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
}
