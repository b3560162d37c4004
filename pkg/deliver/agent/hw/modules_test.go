//go:build linux

package hw

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const release = "6.1.0-test"

// kernel is a machine with modules: names and what each needs.
func kernel(t *testing.T, files map[string]string) System {
	t.Helper()
	base := map[string]string{
		"modules.dep": `kernel/drivers/net/virtio_net.ko: kernel/net/net_failover.ko kernel/net/failover.ko kernel/virtio/virtio.ko
kernel/net/net_failover.ko: kernel/net/failover.ko
kernel/net/failover.ko:
kernel/virtio/virtio.ko:
kernel/virtio/virtio-pci.ko: kernel/virtio/virtio.ko
kernel/fs/efivarfs.ko:
kernel/crypto/crc32c_intel.ko:
kernel/fs/ext4.ko:
kernel/net/8021q.ko:
kernel/net/bonding.ko:
../../../etc/evil.ko:
`,
		"modules.alias": "# Aliases\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias virtio:d00000001v* virtio_net\nalias fs-ext4 ext4\n" +
			"alias acpi*:PNP0A[0-9]*:* ext4\nalias evil ../evil\n",
		"modules.softdep": "softdep ext4 pre: crc32c-intel post: bonding\n",
		"modules.builtin": "kernel/drivers/scsi/scsi_mod.ko\n",
	}
	all := map[string]string{"proc/cmdline": ""}
	for name, text := range base {
		all["lib/modules/"+release+"/"+name] = text
	}
	for line := range strings.Lines(base["modules.dep"]) {
		file, _, _ := strings.Cut(line, ":")
		if below(file) {
			all["lib/modules/"+release+"/"+file] = path.Base(file)
		}
	}
	for name, text := range files {
		all[name] = text
	}
	return tree(t, all)
}

// Devices appear when their bus's driver is there: passes go on until nothing is new.
func TestLoadModules(t *testing.T) {
	s := kernel(t, map[string]string{
		"sys/devices/pci0000:00/0000:00:03.0/modalias": "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00\n",
		"sys/devices/system/memory/modalias":           "nothing:that matches\n",
		"proc/cmdline":                                 `virtio_net.napi_weight=64 virtio-net.gso bonding.mode=1 vlan=eth0.5:eth0`,
	})
	var loaded, said []string
	in := func(f *os.File, parameters string) error {
		name := moduleName(f.Name())
		loaded = append(loaded, strings.TrimSpace(name+" "+parameters))
		if name == "virtio_pci" {
			dir := s.at("/sys/devices/pci0000:00/0000:00:03.0/virtio0")
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "modalias"), []byte("virtio:d00000001v00001AF4\n"), 0o644)); err != nil {
				t.Error(err)
			}
		}
		if name == "failover" {
			return unix.EEXIST
		}
		if name == "net_failover" {
			return unix.ENOEXEC
		}
		return nil
	}
	if err := s.loadModules(t.Context(), release, in, func(l string) { said = append(said, l) }); err != nil {
		t.Fatal(err)
	}
	want := []string{"efivarfs", "8021q", "virtio", "virtio_pci", "failover", "net_failover", "virtio_net napi_weight=64 gso"}
	if !slices.Equal(loaded, want) {
		t.Errorf("got  %q\nwant %q", loaded, want)
	}
	if len(said) != 1 || !strings.Contains(said[0], "net_failover") {
		t.Errorf("said %q", said)
	}
}

// One that the kernel has, one that is forbidden, and one whose file is gone.
func TestLoadModulesLeavesOut(t *testing.T) {
	s := kernel(t, map[string]string{
		"sys/devices/a/modalias":            "fs-ext4",
		"sys/devices/b/modalias":            "evil",
		"sys/module/crc32c_intel/initstate": "live",
		"proc/cmdline":                      "modprobe.blacklist=efivarfs,x bond=bond0:eth0",
	})
	if err := os.Remove(s.at("/lib/modules/" + release + "/kernel/fs/ext4.ko")); err != nil {
		t.Fatal(err)
	}
	var loaded, said []string
	err := s.loadModules(t.Context(), release, func(f *os.File, parameters string) error {
		loaded = append(loaded, moduleName(f.Name())+" "+parameters)
		return nil
	}, func(l string) { said = append(said, l) })
	if err != nil || !slices.Equal(loaded, []string{"bonding max_bonds=0"}) || len(said) != 1 || !strings.Contains(said[0], "ext4") {
		t.Errorf("loaded %q, said %q: %v", loaded, said, err)
	}
}

// A bus that has something new to tell each time ends with the time that is given.
func TestLoadModulesEnds(t *testing.T) {
	s := kernel(t, nil)
	if err := s.loadModules(t.Context(), "../..", nil, nil); err == nil {
		t.Error("a release that leads elsewhere is taken")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := s.loadModules(ctx, release, func(*os.File, string) error { return nil }, func(string) {}); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// loadModules is LoadModules of another machine, with another way into its kernel.
func (s System) loadModules(ctx context.Context, release string, in insert, log func(string)) error {
	l, err := s.loader(release, in, log)
	if err == nil {
		l.settle(ctx)
	}
	return err
}

// ACPI's and DMI's patterns have a wildcard before the colon.
func TestMatchOfTheIndex(t *testing.T) {
	s := kernel(t, nil)
	x, err := s.modules(release)
	if err != nil {
		t.Fatal(err)
	}
	if got := x.match("acpi:PNP0A03:"); !slices.Equal(got, []string{"ext4"}) {
		t.Errorf("acpi:PNP0A03: %v", got)
	}
}

func TestOrder(t *testing.T) {
	x, err := kernel(t, nil).modules(release)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"virtio-net": "[virtio failover net_failover virtio_net]", "ext4": "[crc32c_intel ext4]", "scsi_mod": "[]", "nobody": "[]", "evil": "[]",
	} {
		if got := fmt.Sprint(x.order(name)); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	// What depmod would never write: it ends all the same.
	x.files["a"], x.files["b"] = "a.ko", "b.ko"
	x.depends["a"], x.depends["b"] = []string{"b"}, []string{"a"}
	if got := x.order("a"); len(got) != 2 {
		t.Errorf("a circle: %v", got)
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"pci:v00008086d000010D3sv*sd*bc*sc*i*", "pci:v00008086d000010D3sv000015D9sd00000605bc02sc00i00", true},
		{"pci:v00008086d000010D4sv*sd*bc*sc*i*", "pci:v00008086d000010D3sv000015D9sd00000605bc02sc00i00", false},
		{"dmi*:svn*Dell/EMC*:", "dmi:bvnDell/EMC:svnDell/EMCInc:", true},
		{"usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*", "usb:v0781p5581d0100dc00dsc00dp00ic08isc06ip50in00", true},
		{"input:b*v*p*e*-e*1,*k*", "input:b0003v1234p5678e0110_e0,1,k", true},
		{"a[!b]c", "axc", true}, {"a[!b]c", "abc", false}, {"a[b-d]", "ac", true}, {"a[b-d]", "ae", false}, {"a[]]", "a]", true},
		{"a[b", "a[b", true}, {`a\*`, "a*", true}, {`a\*`, "ab", false}, {`a\`, `a\`, true}, {"a?c", "abc", true}, {"a?", "a", false},
		{"", "", true}, {"*", "", true}, {"", "a", false}, {"a**b*", "axxbyy", true}, {"of:N*T*Cbrcm,bcm2835-v3d", "of:NgpuT(null)Cbrcm,bcm2835-v3d", true},
	} {
		if got := glob(aliasName(c.pattern), aliasName(c.s)); got != c.want {
			t.Errorf("%q against %q: %v", c.s, c.pattern, got)
		}
	}
}

// Matching is not exponential, whatever a device calls itself.
func FuzzGlob(f *testing.F) {
	f.Add("a*[b-d]?", "axxb")
	f.Add(strings.Repeat("*a", 200), strings.Repeat("a", 4000))
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 1000 || len(s) > 5000 {
			return
		}
		got := glob(pattern, s)
		// path.Match is the same but for "/", "^" and patterns that it refuses.
		if strings.ContainsAny(s+pattern, "/^!]") || !ascii(s+pattern) {
			return
		}
		if want, err := path.Match(pattern, s); err == nil && got != want {
			t.Errorf("%q against %q: got %v, path.Match %v", s, pattern, got, want)
		}
	})
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > 126 }) < 0
}

// A real kernel's index, if the machine has one: each module comes after its needs.
func TestRealIndex(t *testing.T) {
	indexes, _ := filepath.Glob("/lib/modules/*/modules.dep")
	if len(indexes) == 0 {
		t.Skip("no modules here")
	}
	x, err := System{}.modules(filepath.Base(filepath.Dir(indexes[0])))
	if err != nil {
		t.Fatal(err)
	}
	for name := range x.files {
		order := x.order(name)
		for i, n := range order {
			for _, d := range x.depends[n] {
				if !x.builtin[d] && slices.Index(order, d) >= i {
					t.Errorf("%s comes after %s, which needs it", d, n)
				}
			}
		}
	}
}
