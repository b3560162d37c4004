package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// kernelImage makes an image that is a UKI and nothing else: an environment of its
// own, whose command line tells it from the one that writes it. Its kernel has its
// distribution's signature, or none.
func (f forge) kernelImage(t *testing.T, name, mark string, signed bool) {
	t.Helper()
	recipe := filepath.Join(f.dir, name+"-image.yaml")
	text := fmt.Sprintf("extends: environment-vm.yaml\nname: %s\njobs: authenticated\ntrust: {keys: [release.pub]}\nserver: {ca: [state/ca.crt]}\ncmdline: console=ttyS0,115200 panic=10 %s\n", name, mark)
	if err := os.WriteFile(recipe, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	built := "oci:" + filepath.Join(dir, "store") + "/" + name
	for _, args := range [][]string{{f.imgbuild, "build", recipe, "-o", built}, {f.imgbuild, "export", built, dir}} {
		if out, err := f.run(args...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	uki, err := os.ReadFile(filepath.Join(dir, "environment.efi"))
	if err != nil {
		t.Fatal(err)
	}
	if !signed {
		c, err := boot.Open(bytes.NewReader(uki), int64(len(uki)))
		if err != nil {
			t.Fatal(err)
		}
		k, err := io.ReadAll(c.Kernel)
		at := bytes.Index(uki, k[:4096])
		if err != nil || at < 0 {
			t.Fatalf("where is the kernel? %v", err)
		}
		// PE Format, "Optional Header Data Directories": the certificate table's.
		entry := int(binary.LittleEndian.Uint32(k[60:])) + 24 + 112 + 8*4
		if binary.LittleEndian.Uint32(k[entry:]) == 0 {
			t.Fatal("the distribution's kernel is not signed")
		}
		clear(uki[at+entry : at+entry+8])
	}
	f.espImage(t, name, uki)
}

// build builds an environment of a recipe's text.
func (f forge) build(t *testing.T, name, recipe string) {
	t.Helper()
	path := filepath.Join(f.dir, name+".yaml")
	if err := os.WriteFile(path, []byte(recipe), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := f.run(f.imgbuild, "build", path, "-o", "oci:"+f.store+"/"+name+":1", "--key", f.key+".key"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// espImage makes an image of one EFI system partition that starts a program.
func (f forge) espImage(t *testing.T, name string, program []byte) {
	t.Helper()
	files := tree.New()
	if err := files.Put("/EFI/BOOT/BOOTX64.EFI", &tree.Inode{Data: diskimage.Bytes(program)}); err != nil {
		t.Fatal(err)
	}
	fs, err := fat.New(files, fat.Options{Size: 40 * mib, SectorSize: 512, Label: "ESP", VolumeID: 1, Epoch: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("kexec", name), DiskSize: 64 * mib, SectorSize: 512,
		Partitions: []diskimage.Partition{{Name: "esp", Type: diskimage.TypeESP, Role: diskimage.RoleESP,
			GUID: diskimage.DeriveGUID("kexec", name, "esp"), Extent: diskimage.Extent{Off: mib, Len: fs.Size()}}}}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, table.DiskSize)
	copy(b, primary)
	copy(b[len(b)-len(backup):], backup)
	if _, err := fs.ReadAt(b[mib:mib+fs.Size()], 0); err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(raw, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ref := "oci:" + f.store + "/" + name + ":1"
	for _, args := range [][]string{{f.imgbuild, "import", raw, "-o", ref, "--name", name, "--arch", "amd64", "--epoch", "2026-11-01"}, {f.imgbuild, "sign", ref, "--key", f.key + ".key"}} {
		if out, err := f.run(args...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// TestNetbootKexec holds that `after: kexec` starts the image's kernel without the
// firmware, and that an image which cannot be started so is started by a restart,
// with a warning. The machine's clock is years behind, and is set.
func TestNetbootKexec(t *testing.T) {
	soak(t)
	deploy := func(t *testing.T, image, environment string) (*netSite, *netlab.Machine) {
		n := newNetSite(t, siteSpec{
			defaults: fmt.Sprintf("  image: %s/%s:1\n  bootTimeout: none\n  after: kexec\n  config: {phoneHome: 'off'}\n", registryAt, image),
			machines: "  - name: one\n    match: {mac: '52:54:00:77:00:01'}\n"})
		if environment != "environment" {
			n.rewrite("/environment:1", "/"+environment+":1")
		}
		n.order("deploy", "one")
		m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP, Extra: []string{"-rtc", "base=2020-01-01T00:00:00"}})
		m.PowerOn()
		m.Wait(bootTime, "imgpipe agent")
		m.Wait(bootTime, "clock: the machine's own is set, too", "committed and acknowledged")
		return n, m
	}
	t.Run("a UKI", func(t *testing.T) {
		netbootForge(t).kernelImage(t, "uki", "mark=of-the-image", true)
		n, m := deploy(t, "uki", "environment")
		at := len(m.Text())
		m.Wait(bootTime, "starting the image's kernel", "mark=of-the-image", "imgpipe agent")
		said := m.Text()[at:]
		if i := strings.Index(said, "imgpipe agent"); i < 0 || strings.Contains(said[:i], "BdsDxe") {
			t.Errorf("the firmware was asked:\n%s", said)
		}
		if out := n.order("job", n.jobs()[0].ID); strings.Contains(out, "kexec:") {
			t.Errorf("got %s", out)
		}
		m.Wait(bootTime, "no job")
	})
	t.Run("a program that is no kernel", func(t *testing.T) {
		netbootForge(t).small(t, "small", "small image boots")
		n, m := deploy(t, "small", "environment")
		m.Wait(bootTime, "warning: ", "restarting", "BdsDxe", "small image boots")
		if out := n.order("job", n.jobs()[0].ID); !strings.Contains(out, "no unified kernel image") {
			t.Errorf("the server was not told:\n%s", out)
		}
	})
	t.Run("an unsigned kernel under lockdown", func(t *testing.T) {
		f := netbootForge(t)
		f.kernelImage(t, "unsigned", "mark=of-the-image", false)
		f.build(t, "locked", "extends: environment-vm.yaml\nname: locked\njobs: authenticated\ntrust: {keys: [release.pub]}\nserver: {ca: [state/ca.crt]}\n"+
			"cmdline: console=ttyS0,115200 panic=10 lockdown=integrity\n")
		n, m := deploy(t, "unsigned", "locked")
		m.Wait(bootTime, "warning: ", "restarting", "BdsDxe", "mark=of-the-image")
		if out := n.order("job", n.jobs()[0].ID); !strings.Contains(out, "kexec_file_load") {
			t.Errorf("the server was not told:\n%s", out)
		} else {
			t.Log(out[strings.Index(out, "kexec:"):])
		}
	})
}
