package lab

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode/authenticodetest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/localboot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// TestLocalBoot is the judge of localboot and efi: a machine whose firmware asks
// the network first gets local.efi, goes on to its disk, and the guest there
// writes its boot entries. Restarted, the firmware asks the network first again,
// and then starts the entry of ours. The same under Secure Boot, all signed.
func TestLocalBoot(t *testing.T) {
	if os.Getenv("IMGPIPE_NETBOOT") != "1" {
		t.Skip("IMGPIPE_NETBOOT is not 1: no virtual machines")
	}
	for i, c := range []struct {
		name string
		spec Spec
	}{
		{"PXE", Spec{Firmware: PXE}},
		{"HTTP", Spec{Firmware: HTTP}},
		{"HTTP under Secure Boot", Spec{Firmware: HTTP, Secure: true, Vars: authenticodetest.Vars}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sign := func(b []byte) []byte { return b }
			if c.spec.Secure {
				sign = snakeoil(t)
			}
			disk, esp := entriesDisk(t, sign)
			l := New(t, Options{})
			c.spec.Name, c.spec.Number, c.spec.Disk = "one", i+1, disk.Size()
			m := l.Machine(c.spec)
			put(t, m.Disk, disk)
			serveLocal(l, sign(localboot.Program("amd64")))

			m.PowerOn()
			m.Wait(3*time.Minute, "STARTED BY OURS false")
			first := len(m.Text())
			m.Wait(3*time.Minute, "STARTED BY OURS true, 0 CHANGES")
			m.WaitOff(time.Minute)
			said := m.Text()
			if strings.Contains(said, "GUEST FAILED") || !strings.Contains(said, "IMMUTABLE DELETED <nil>") || strings.Count(said, "WARNINGS [] []") != 2 || strings.Count(said, "PROBLEMS []") != 2 {
				t.Fatalf("the guest says\n%s", m.Tail(20000))
			}
			// What local.efi returns sends the firmware to the entry behind it.
			if passed := regexp.MustCompile(`(?s)failed to start Boot.... "UEFI (PXE|HTTP)v4[^\n]*: Not Found.*starting Boot.... "imgpipe: lab"`); !passed.MatchString(said[first:]) {
				t.Errorf("restarted, the firmware did not ask the network and then start our entry")
			}
			// The mark is no command line to the stub.
			if n := strings.Count(said, "CMDLINE console=ttyS0 panic=-1 quiet esp="); n != 2 {
				t.Errorf("the command line is as built %d times of 2", n)
			}
			vars, err := ReadVars(m.Vars)
			if err != nil {
				t.Fatal(err)
			}
			s, problems := efi.Read(vars)
			if len(problems) > 0 {
				t.Error(problems)
			}
			ours := slices.IndexFunc(s.Order, func(n uint16) bool { return s.Entries[n].Ours() })
			for i, n := range s.Order {
				if e := s.Entries[n]; e.Network() && i > ours || ours < 0 {
					t.Errorf("the network is not first:\n%s", strings.Join(s.Lines(), "\n"))
				}
			}
			if got, ok := s.Entries[s.Order[max(ours, 0)]].Partition(); !ok || got != esp {
				t.Errorf("our entry starts %+v, want %+v", got, esp)
			}
			if want := fmt.Sprintf(`EFIBOOTMGR Boot%04X\* imgpipe: lab\s+HD\(1,GPT,%s,0x800,0x[0-9a-f]+\)/File\(\\EFI\\BOOT\\BOOTX64.EFI\)`, s.Order[max(ours, 0)], esp.GUID); !regexp.MustCompile(want).MatchString(said) {
				t.Errorf("efibootmgr does not say %s", want)
			}
			if t.Failed() || os.Getenv("IMGPIPE_SHOW") != "" {
				t.Log(said)
			}
		})
	}
}

// serveLocal answers PXE and HTTP Boot with a program.
func serveLocal(l *Lab, program []byte) {
	l.t.Helper()
	dir := filepath.Join(l.Dir, "served")
	if err := os.Mkdir(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "local.efi"), program, 0o644); err != nil {
		l.t.Fatal(err)
	}
	for _, p := range []string{"dnsmasq", "python3"} {
		if _, err := exec.LookPath(p); err != nil {
			l.t.Skipf("%s is not installed", p)
		}
	}
	l.Start("http", "python3", "-u", "-m", "http.server", "80", "--bind", Address, "--directory", dir)
	l.Start("dnsmasq", "dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--port=0", "--interface="+Bridge, "--bind-interfaces",
		"--leasefile-ro", "--user=root", "--dhcp-range=10.77.0.50,10.77.0.90", "--dhcp-vendorclass=set:http,HTTPClient", "--dhcp-option-force=tag:http,60,HTTPClient",
		"--dhcp-boot=tag:http,http://"+Address+"/local.efi", "--dhcp-boot=tag:!http,local.efi", "--enable-tftp", "--tftp-root="+dir)
}

// entriesDisk is a disk whose UKI runs testdata/efiinit, and where its ESP is.
func entriesDisk(t *testing.T, sign func([]byte) []byte) (diskimage.Disk, efi.Partition) {
	t.Helper()
	const start, size, sector = 1 << 20, 128 << 20, 512
	esp := efi.Partition{GUID: diskimage.DeriveGUID("lab", "esp"), Number: 1, Start: start / sector, Size: size / sector}
	uki := sign(entriesUKI(t, fmt.Sprintf("console=ttyS0 panic=-1 quiet esp=%s number=%d start=%d size=%d policy=network", esp.GUID, esp.Number, esp.Start, esp.Size)))
	tr := tree.New()
	if err := tr.Put("/EFI/BOOT/BOOTX64.EFI", &tree.Inode{Data: diskimage.Bytes(uki)}); err != nil {
		t.Fatal(err)
	}
	f, err := fat.New(tr, fat.Options{Size: size, SectorSize: sector, Label: "ESP", Epoch: time.Unix(1790000000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("lab", "disk"), SectorSize: sector, DiskSize: start + size + 1<<20, Partitions: []diskimage.Partition{
		{Name: "esp", Type: diskimage.TypeESP, GUID: esp.GUID, Extent: diskimage.Extent{Off: start, Len: size}}}}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	d, err := diskimage.Join(table.DiskSize, diskimage.Part{Disk: diskimage.Bytes(primary)}, diskimage.Part{Off: start, Disk: f},
		diskimage.Part{Off: table.DiskSize - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	if err != nil {
		t.Fatal(err)
	}
	return d, esp
}

func put(t *testing.T, file string, d diskimage.Disk) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, e := range d.Extents() {
		if _, err := io.Copy(io.NewOffsetWriter(f, e.Off), io.NewSectionReader(d, e.Off, e.Len)); err != nil {
			t.Fatal(err)
		}
	}
}

// entriesUKI is a UKI of the kernel below IMGPIPE_QEMU_ROOT.
func entriesUKI(t *testing.T, cmdline string) []byte {
	t.Helper()
	root := os.Getenv("IMGPIPE_QEMU_ROOT")
	kernels, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if root == "" || len(kernels) == 0 {
		t.Skip("IMGPIPE_QEMU_ROOT names no root with a kernel")
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	get := func(file string) []byte {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Skip(err)
		}
		return b
	}
	init := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "./testdata/efiinit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	efibootmgr, err := exec.LookPath("efibootmgr")
	if err != nil {
		t.Skip("the judge efibootmgr is not installed")
	}
	files := map[string][]byte{"init": get(init), "efibootmgr": get(efibootmgr),
		"efivarfs.ko": get(filepath.Join(root, "lib/modules", release, "kernel/fs/efivarfs/efivarfs.ko"))}
	libraries, err := exec.Command("ldd", efibootmgr).Output()
	if err != nil {
		t.Skipf("ldd: %v", err)
	}
	for _, p := range regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1) {
		files[p[1:]] = get(p)
	}
	d, err := boot.UKI{Stub: get("/usr/lib/systemd/boot/efi/linuxx64.efi.stub"), Kernel: diskimage.Bytes(get(kernels[0])),
		Initrd: diskimage.Bytes(cpio(files)), OSRelease: "ID=lab\n", Cmdline: cmdline, Uname: release}.Build()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cpio is an archive of programs and the directories that they are in, in the
// format newc (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
func cpio(files map[string][]byte) []byte {
	var b bytes.Buffer
	made := map[string]bool{".": true}
	add := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", len(made), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
		made[name] = true
	}
	var dirs func(string)
	dirs = func(dir string) {
		if !made[dir] {
			dirs(filepath.Dir(dir))
			add(dir, 0o40755, nil)
		}
	}
	for _, d := range []string{"dev", "proc", "sys"} {
		dirs(d)
	}
	for name, data := range files {
		dirs(filepath.Dir(name))
		add(name, 0o100755, data)
	}
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}

// snakeoil signs with the key that the firmware of a lab knows.
func snakeoil(t *testing.T) func([]byte) []byte {
	t.Helper()
	s := authenticodetest.Snakeoil(t)
	return func(b []byte) []byte {
		t.Helper()
		signed, err := authenticode.SignBytes(b, s)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
}

func TestReadVars(t *testing.T) {
	if _, err := os.Stat(authenticodetest.Vars); err != nil {
		t.Skip("ovmf is not installed")
	}
	vars, err := ReadVars(authenticodetest.Vars)
	if err != nil {
		t.Fatal(err)
	}
	s, problems := efi.Read(vars)
	if len(problems) > 0 || len(s.Entries) != 3 || s.Entries[0].Description != "UiApp" || s.Entries[0].Boots() {
		t.Errorf("%v %v", problems, s.Lines())
	}
	if db := vars[efi.Name{Name: "db", Vendor: diskimage.MustGUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")}]; len(db.Data) < 800 {
		t.Errorf("db is %s", hex.EncodeToString(db.Data))
	}
}
