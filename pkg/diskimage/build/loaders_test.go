package build

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/grub"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/grub/grubtest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/fatfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// withLoaders is the small distribution with what other loaders are made of.
func withLoaders(t *testing.T, without ...string) Options {
	t.Helper()
	return addLoaders(t, options(t), without...)
}

// withNative has modules for a native initramfs as well.
func withNative(t *testing.T) Options {
	t.Helper()
	return addLoaders(t, withModules(t))
}

func addLoaders(t *testing.T, o Options, without ...string) Options {
	t.Helper()
	files := map[string]string{"/usr/lib/systemd/systemd-bless-boot": "#!/bin/sh\n"}
	loader, err := os.ReadFile(filepath.Dir(stub) + "/systemd-bootx64.efi")
	if err != nil {
		t.Fatal(err)
	}
	files["/usr/lib/systemd/boot/efi/systemd-bootx64.efi"] = string(loader)
	for name, b := range grubtest.Files(grub.MenuModules...) {
		files["/usr/lib/grub/i386-pc/"+name] = string(b)
	}
	for _, p := range without {
		delete(files, p)
	}
	o.debian = addFiles(t, o.debian, files)
	return o
}

// withBoot is the small recipe with another boot and other partitions.
func withBoot(boot string, partitions ...string) string {
	out := strings.Replace(text, "boot: {cmdline: console=ttyS0}", "boot: {cmdline: console=ttyS0, "+boot+"}", 1)
	head, _, _ := strings.Cut(out, "  partitions:\n")
	out = head + "  partitions:\n"
	for _, p := range partitions {
		out += "    - {" + p + "}\n"
	}
	return out
}

const (
	espPart  = "name: esp, type: esp, size: 64MiB"
	biosPart = "name: bios, type: bios"
	rootPart = "name: root, type: root, size: 32MiB"
)

// partition returns an image's partition by its place.
func partition(t *testing.T, im *Image, i int) io.ReaderAt {
	t.Helper()
	e := im.Table.Partitions[i].Extent
	return io.NewSectionReader(im.Disk, e.Off, e.Len)
}

// onFAT returns the files of a FAT partition by path.
func onFAT(t *testing.T, im *Image, i int) map[string]*tree.Inode {
	t.Helper()
	fs, err := fatfs.Open(partition(t, im, i))
	if err != nil {
		t.Fatal(err)
	}
	tr, err := fs.Tree()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*tree.Inode{}
	for e := range tr.All() {
		if e.Inode.Kind == tree.Regular {
			out[e.Path] = e.Inode
		}
	}
	return out
}

func bytesOf(t *testing.T, d diskimage.Disk) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sections returns those of a UKI.
func sections(t *testing.T, d diskimage.Disk) map[string]string {
	t.Helper()
	f, err := pe.NewFile(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, s := range f.Sections {
		b, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		out[s.Name] = string(b[:min(len(b), int(s.VirtualSize))])
	}
	return out
}

func TestSystemdBootStartsAUKIForEachEntry(t *testing.T) {
	im := make1(t, load(t, withBoot(`loader: systemd-boot, tries: 3, timeout: 5s, entries: [{name: rescue, cmdline: single}, {name: two, title: "Number \"2\""}]`,
		espPart, rootPart)), withLoaders(t))
	files := onFAT(t, im, 0)
	loader, err := os.ReadFile(filepath.Dir(stub) + "/systemd-bootx64.efi")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/EFI/BOOT/BOOTX64.EFI", "/EFI/systemd/systemd-bootx64.efi"} {
		if n := files[p]; n == nil || !bytes.Equal(bytesOf(t, n.Data), loader) {
			t.Errorf("%s is not systemd-boot", p)
		}
	}
	if n := files["/loader/loader.conf"]; n == nil || string(bytesOf(t, n.Data)) != "timeout 5\n" {
		t.Error("loader.conf")
	}
	root := "root=PARTUUID=" + im.Table.Partitions[1].GUID.String() + " ro"
	for p, want := range map[string][3]string{
		"/EFI/Linux/small_1+3.efi":      {root + " console=ttyS0", `IMAGE_ID="small"`, `PRETTY_NAME="small 1"`},
		"/EFI/Linux/small-rescue_1.efi": {root + " single", `IMAGE_ID="small-rescue"`, `PRETTY_NAME="small 1 (rescue)"`},
		"/EFI/Linux/small-two_1.efi":    {root, `IMAGE_ID="small-two"`, `PRETTY_NAME="Number \"2\""`},
	} {
		n := files[p]
		if n == nil {
			t.Errorf("no %s", p)
			continue
		}
		s := sections(t, n.Data)
		if s[".cmdline"] != want[0] || s[".initrd"] != "initramfs" {
			t.Errorf("%s: command line %q, initramfs %q", p, s[".cmdline"], s[".initrd"])
		}
		for _, line := range []string{want[1], want[2], `IMAGE_VERSION="1"`, "ID=debian"} {
			if !strings.Contains("\n"+s[".osrel"], "\n"+line+"\n") {
				t.Errorf("%s: no %s in %q", p, line, s[".osrel"])
			}
		}
	}
	if len(files) != 6 {
		t.Errorf("%d files on the esp", len(files))
	}
	if got := file(t, im, diskimage.RoleRoot, "/usr/lib/os-release"); !strings.HasSuffix(got, "PRETTY_NAME=\"Debian\"\nIMAGE_ID=\"small\"\nIMAGE_VERSION=\"1\"\n") {
		t.Errorf("os-release of the root: %q", got)
	}
	if got := file(t, im, diskimage.RoleRoot, "/etc/fstab"); !strings.Contains(got, " /efi vfat ") {
		t.Errorf("the esp, where boots are counted, is not mounted:\n%s", got)
	}
}

// TestABIOSFindsGRUBAndGRUBItsMenu follows the way that a BIOS goes, by the numbers
// on the disk.
func TestABIOSFindsGRUBAndGRUBItsMenu(t *testing.T) {
	for name, c := range map[string]struct {
		partitions     []string
		prefix, kernel string
		home           int // partition
		menu           string
	}{
		"on the root": {[]string{biosPart, rootPart}, "(,gpt2)/boot/grub", "/boot/vmlinuz-6.1.0-1", 1, "/boot/grub/grub.cfg"},
		"on /boot":    {[]string{biosPart, "name: boot, type: data, filesystem: ext4, size: 32MiB, mount: /boot", rootPart}, "(,gpt2)/grub", "/vmlinuz-6.1.0-1", 1, "/grub/grub.cfg"},
		"on a FAT":    {[]string{rootPart, biosPart, espPart}, "(,gpt3)/grub", "/grub/vmlinuz-6.1.0-1", 2, "/grub/grub.cfg"},
	} {
		t.Run(name, func(t *testing.T) {
			im := make1(t, load(t, withBoot(`firmware: bios, timeout: 2s, entries: [{name: x, cmdline: quiet}]`, c.partitions...)), withLoaders(t, "/usr/lib/systemd/systemd-bless-boot"))
			core := diskimage.Extent{}
			for _, p := range im.Table.Partitions {
				if p.Role == diskimage.RoleBIOS {
					core = p.Extent
				}
			}
			lba0, first := make([]byte, 512), make([]byte, 4096)
			if _, err := im.Disk.ReadAt(lba0, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := im.Disk.ReadAt(first, core.Off); err != nil {
				t.Fatal(err)
			}
			le := binary.LittleEndian
			if at := int64(le.Uint64(lba0[0x5c:])) * 512; at != core.Off || le.Uint16(lba0[510:]) != 0xaa55 {
				t.Errorf("LBA 0 goes on at byte %d, the core is at %d", at, core.Off)
			}
			if at := int64(le.Uint64(first[500:])) * 512; at != core.Off+512 {
				t.Errorf("the core goes on at byte %d, it is at %d", at, core.Off)
			}
			p := im.Table.Partitions[c.home]
			menu, err := foreign.ReadFile(im.Disk, p, c.menu, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			uuid := ""
			for _, p := range im.Table.Partitions {
				if p.Role == diskimage.RoleRoot {
					uuid = p.GUID.String()
				}
			}
			for _, want := range []string{"linux '" + c.kernel + "' 'root=PARTUUID=" + uuid + "' 'ro' 'console=ttyS0'\n", " 'ro' 'quiet'\n", "set timeout=2\n", "serial --unit=0"} {
				if !strings.Contains(string(menu), want) {
					t.Errorf("no %q in\n%s", want, menu)
				}
			}
			if b, err := foreign.ReadFile(im.Disk, p, strings.Replace(c.kernel, "vmlinuz", "initrd.img", 1), 1<<20); err != nil || string(b) != "initramfs" {
				t.Errorf("initramfs: %q, %v", b, err)
			}
			if im.Record.Kernel != "6.1.0-1" || im.made.bootPath == "" {
				t.Errorf("record: kernel %q, %q", im.Record.Kernel, im.made.bootPath)
			}
		})
	}
}

// TestAHybridStartsTheKernelInsideTheUKI reads the sectors that GRUB is told.
func TestAHybridStartsTheKernelInsideTheUKI(t *testing.T) {
	program, err := os.ReadFile(stub)
	if err != nil {
		t.Skip(err)
	}
	for boot, name := range map[string]string{
		"firmware: hybrid": "/EFI/BOOT/BOOTX64.EFI",
		"firmware: hybrid, loader: systemd-boot, tries: 2": "/EFI/Linux/small_1+2.efi",
	} {
		im := make1(t, load(t, withBoot(boot, biosPart, espPart, rootPart)), withLoaders(t))
		files := onFAT(t, im, 1)
		menu := string(bytesOf(t, files["/grub/grub.cfg"].Data))
		uki := bytesOf(t, files[name].Data)
		for command, want := range map[string]string{"linux": string(program), "initrd": "initramfs"} {
			m := regexp.MustCompile(`\t` + command + ` \(uki\)(\d+)\+(\d+)`).FindStringSubmatch(menu)
			if m == nil {
				t.Fatalf("no %s in\n%s", command, menu)
			}
			var first, count int
			if _, err := fmt.Sscan(m[1], &first); err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Sscan(m[2], &count); err != nil {
				t.Fatal(err)
			}
			got := uki[first*512 : (first+count)*512]
			if !bytes.HasPrefix(got, []byte(want)) || len(bytes.Trim(got[len(want):], "\x00")) > 0 {
				t.Errorf("%s: %s is not at %s+%s", boot, command, m[1], m[2])
			}
		}
		if strings.Contains(boot, "tries") != strings.Contains(menu, "small_1*.efi") {
			t.Errorf("%s: the UKI is looked for by\n%s", boot, menu)
		}
	}
}

func TestSlotsAreSystemdSysupdates(t *testing.T) {
	im := make1(t, load(t, withBoot("loader: systemd-boot", espPart, "name: root-a, type: root, slot: a, size: 48MiB", "name: root-b, type: root, slot: b",
		"name: swap, type: swap, size: 8MiB", "name: srv, type: data, filesystem: ext4, mount: /srv, size: 32MiB, grow: true")), withLoaders(t))
	a, b, swap, srv := im.Table.Partitions[1], im.Table.Partitions[2], im.Table.Partitions[3], im.Table.Partitions[4]
	if a.Name != "small_1" || b.Name != "_empty" || a.Type != b.Type || a.Extent.Len != b.Extent.Len || a.GUID == b.GUID {
		t.Errorf("slots: %+v, %+v", a, b)
	}
	for _, e := range im.Disk.Extents() {
		if x := e.Intersect(b.Extent); x.Len > 0 {
			t.Errorf("slot b has data at %v", x)
		}
	}
	if b.Filesystem != (diskimage.Filesystem{}) {
		t.Errorf("slot b: %+v", b.Filesystem)
	}
	if got := sections(t, onFAT(t, im, 0)["/EFI/Linux/small_1.efi"].Data)[".cmdline"]; got != "root=PARTLABEL=small_1 ro console=ttyS0" {
		t.Errorf("command line %q", got)
	}
	fstab := file(t, im, diskimage.RoleRoot, "/etc/fstab")
	for _, want := range []string{"PARTLABEL=small_1 / ext4", "PARTUUID=" + swap.GUID.String() + " none swap sw 0 0", "PARTUUID=" + srv.GUID.String() + " /srv ext4 defaults,x-systemd.growfs 0 2"} {
		if !strings.Contains(fstab, want) {
			t.Errorf("no %q in\n%s", want, fstab)
		}
	}
	if strings.Contains(fstab, b.GUID.String()) || srv.Type != diskimage.TypeSrv || swap.Type != diskimage.TypeSwap {
		t.Errorf("fstab\n%s, types %v, %v", fstab, srv.Type, swap.Type)
	}
	// The next release: in every place the same, but for names.
	next := make1(t, load(t, strings.Replace(withBoot("loader: systemd-boot", espPart, "name: root-a, type: root, slot: a, size: 48MiB", "name: root-b, type: root, slot: b",
		"name: swap, type: swap, size: 8MiB", "name: srv, type: data, filesystem: ext4, mount: /srv, size: 32MiB, grow: true"), `release: "1"`, `release: "2"`, 1)), withLoaders(t))
	for i, p := range next.Table.Partitions {
		if was := im.Table.Partitions[i]; p.GUID != was.GUID || p.Extent != was.Extent {
			t.Errorf("release 2: %+v, was %+v", p, was)
		}
	}
}

// TestAMenuWithARootHashIsBesideTheRoot: on /boot, since the hash follows from what is on the root.
func TestAMenuWithARootHashIsBesideTheRoot(t *testing.T) {
	im := make1(t, load(t, withBoot("firmware: bios, initramfs: native", biosPart, "name: boot, type: data, filesystem: ext4, size: 32MiB, mount: /boot",
		"name: root, type: root, readOnly: true", "name: hashes, type: verity, for: root")), withNative(t))
	menu, err := foreign.ReadFile(im.Disk, im.Table.Partitions[1], "/grub/grub.cfg", 1<<20)
	if err != nil || im.Record.RootHash == "" || !strings.Contains(string(menu), "'roothash="+im.Record.RootHash+"'") {
		t.Errorf("root hash %q, %v\n%s", im.Record.RootHash, err, menu)
	}
}

// TestSealedSlots: hashes for each slot, named as systemd-sysupdate's examples are.
func TestSealedSlots(t *testing.T) {
	text := withBoot("loader: systemd-boot, initramfs: native, entries: [{name: rescue, cmdline: rescue}]", espPart, "name: root-a, type: root, slot: a, readOnly: true, size: 48MiB", "name: root-b, type: root, slot: b, readOnly: true",
		"name: hashes-a, type: verity, for: root-a, size: 2MiB", "name: hashes-b, type: verity, for: root-b")
	im := make1(t, load(t, text), withNative(t))
	var names []string
	for _, p := range im.Table.Partitions {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, " "); got != "esp small_1 _empty small_1_verity _empty" {
		t.Errorf("names: %s", got)
	}
	p := im.Table.Partitions
	if p[1].Extent.Len != p[2].Extent.Len || p[3].Extent.Len != p[4].Extent.Len || p[3].Type != diskimage.TypeRootVerityX86_64 {
		t.Errorf("sizes: %v", p)
	}
	for _, e := range im.Disk.Extents() {
		if x := e.Intersect(p[2].Extent); x.Len > 0 {
			t.Errorf("slot b has data at %v", x)
		}
		if x := e.Intersect(p[4].Extent); x.Len > 0 {
			t.Errorf("slot b has hashes at %v", x)
		}
	}
	half := func(g diskimage.GUID) string { return strings.ReplaceAll(g.String(), "-", "") }
	if half(p[1].GUID)+half(p[3].GUID) != im.Record.RootHash {
		t.Errorf("root hash %s, PARTUUIDs %s and %s", im.Record.RootHash, p[1].GUID, p[3].GUID)
	}
	for _, name := range []string{"small_1", "small-rescue_1"} {
		if got := sections(t, onFAT(t, im, 0)["/EFI/Linux/"+name+".efi"].Data)[".cmdline"]; !strings.Contains(got, "root=/dev/mapper/root roothash="+im.Record.RootHash) {
			t.Errorf("%s: command line %q", name, got)
		}
	}
	if fstab := strings.Join(strings.Fields(file(t, im, diskimage.RoleRoot, "/etc/fstab")), " "); !strings.Contains(fstab, "/dev/mapper/root / ext4 ro") || strings.Contains(fstab, p[2].GUID.String()) {
		t.Errorf("fstab %s", fstab)
	}
	// The next release: all in its place, and a slot without a release as it was.
	next := make1(t, load(t, strings.Replace(text, `release: "1"`, `release: "2"`, 1)), withNative(t))
	for i, q := range next.Table.Partitions {
		if follows := i == 1 || i == 3; q.Extent != p[i].Extent || (q.GUID == p[i].GUID) == follows {
			t.Errorf("release 2: %+v, was %+v", q, p[i])
		}
	}
}

// TestWhatALoaderLacksIsNamed: at the line of the recipe that wants it.
func TestWhatALoaderLacksIsNamed(t *testing.T) {
	for _, c := range []struct{ boot, without, field, want string }{
		{"loader: systemd-boot", "/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "boot.loader", "systemd-boot-efi"},
		{"loader: systemd-boot, tries: 1", "/usr/lib/systemd/systemd-bless-boot", "boot.tries", "systemd-boot"},
		{"firmware: hybrid", "/usr/lib/grub/i386-pc/boot.img", "boot.firmware", "grub-pc-bin"},
	} {
		parts := []string{espPart, rootPart}
		if strings.Contains(c.boot, "hybrid") {
			parts = append(parts, biosPart)
		}
		_, err := Build(t.Context(), load(t, withBoot(c.boot, parts...)), withLoaders(t, c.without))
		var e *recipe.Error
		if !errors.As(err, &e) || e.Field != c.field || !strings.Contains(e.Problem, c.want) {
			t.Errorf("%s without %s: %v", c.boot, c.without, err)
		}
	}
}

// TestLoadersReproduce: built twice, the same bytes.
func TestLoadersReproduce(t *testing.T) {
	var sums [2][32]byte
	for i := range sums {
		im := make1(t, load(t, withBoot(`firmware: hybrid, loader: systemd-boot, tries: 3, entries: [{name: x}]`, biosPart, espPart, rootPart, "name: swap, type: swap, size: 8MiB")), withLoaders(t))
		sums[i] = sha256.Sum256(all(t, im.Disk))
	}
	if sums[0] != sums[1] {
		t.Error("two builds differ")
	}
}
