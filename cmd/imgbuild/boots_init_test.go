package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs/initprogram"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/erofs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/diskimage/verity"
)

// bench is a kernel with a native initramfs, and disks that it may find its root on.
type bench struct {
	t      *testing.T
	dir    string
	kernel *initramfs.Kernel
	qemu.Machine
}

// newBench takes the kernel of IMGPIPE_QEMU_ROOT: the distribution's general one has all transports, its cloud
// kernel those of clouds.
func newBench(t *testing.T) *bench {
	t.Helper()
	root := os.Getenv("IMGPIPE_QEMU_ROOT")
	if os.Getenv("IMGPIPE_BOOTS") == "" || root == "" {
		t.Skip("needs QEMU and a kernel: make boots")
	}
	host, err := qemu.Find("amd64")
	if err != nil {
		t.Skip(err)
	}
	kernels, err := filepath.Glob(root + "/boot/vmlinuz-*")
	if err != nil || len(kernels) != 1 {
		t.Fatalf("%v, %v", kernels, err)
	}
	tr, err := tree.FromDir(root, tree.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: t.TempDir()}
	if b.kernel, err = initramfs.Open(tr, strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")); err != nil {
		t.Fatal(err)
	}
	program, err := initprogram.Program("amd64")
	if err != nil {
		t.Fatal(err)
	}
	image, _, err := b.kernel.Native(initramfs.Native{Init: program, Modules: []string{"ext4", "erofs", "overlay", "dm_mod", "dm_verity"}})
	if err != nil {
		t.Fatal(err)
	}
	b.Machine = qemu.Machine{Host: host, Accel: "tcg", Snapshot: true, Isolated: true, MemoryMiB: 512,
		Disk: b.file("empty.raw", diskimage.Bytes(make([]byte, 1<<20))), Kernel: kernels[0], Initrd: b.file("initrd", diskimage.Bytes(image))}
	return b
}

func (b *bench) file(name string, d diskimage.Disk) string {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	f, err := os.Create(path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, io.NewSectionReader(d, 0, d.Size())); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// rootTree is the least that starts.
func (b *bench) rootTree(init bool) *tree.Tree {
	b.t.Helper()
	t := tree.New()
	put := func(p string, n *tree.Inode) {
		if err := t.Put(p, n); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/etc", "/var"} {
		put(dir, &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	}
	if init {
		program := filepath.Join(b.dir, "rootinit")
		cmd := exec.Command("go", "build", "-o", program, "./testdata/rootinit")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.t.Fatalf("%v\n%s", err, out)
		}
		data, err := os.ReadFile(program)
		if err != nil {
			b.t.Fatal(err)
		}
		put("/usr/lib/init", &tree.Inode{Mode: 0o755, Data: diskimage.Bytes(data)})
		put("/sbin", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "usr/sbin"})
		put("/usr/sbin/init", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "/lib/init"})
		put("/lib", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "usr/lib"})
	}
	return t
}

var (
	benchUUID = diskimage.DeriveGUID("bench", "filesystem")
	benchGUID = diskimage.DeriveGUID("bench", "partition")
)

// disk makes a disk of one partition for each filesystem.
func (b *bench) disk(name string, parts ...diskimage.Disk) string {
	b.t.Helper()
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("bench"), SectorSize: 512}
	at := int64(1 << 20)
	var all []diskimage.Part
	for i, d := range parts {
		guid := benchGUID
		if i > 0 {
			guid = diskimage.DeriveGUID("bench", string(rune('0'+i)))
		}
		table.Partitions = append(table.Partitions, diskimage.Partition{Name: "the root", GUID: guid, Type: diskimage.TypeLinuxData,
			Extent: diskimage.Extent{Off: at, Len: (d.Size() + 1<<20 - 1) &^ (1<<20 - 1)}})
		all = append(all, diskimage.Part{Off: at, Disk: d})
		at = table.Partitions[i].Extent.End()
	}
	table.DiskSize = at + 1<<20
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		b.t.Fatal(err)
	}
	all = append(all, diskimage.Part{Disk: diskimage.Bytes(primary)}, diskimage.Part{Off: table.DiskSize - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	d, err := diskimage.Join(table.DiskSize, all...)
	if err != nil {
		b.t.Fatal(err)
	}
	path := b.file(name, d)
	if err := os.Truncate(path, 64<<20); err != nil { // a card has a power of two
		b.t.Fatal(err)
	}
	return path
}

// start boots with a command line, and returns the console.
func (b *bench) start(cmdline string, extra []string, expect, reject []string) string {
	b.t.Helper()
	m := b.Machine
	m.Cmdline, m.Extra = "console=ttyS0 quiet panic=1 no_timer_check "+cmdline, extra // an emulator on a busy machine fails the check
	var log bytes.Buffer
	out, err := m.Watch(b.t.Context(), qemu.Expectation{Expect: expect, Reject: reject, Timeout: 5 * time.Minute}, &log)
	if err != nil {
		b.t.Fatal(err)
	}
	text := log.String()
	if !out.Passed {
		b.t.Errorf("%s: %s\n%s", cmdline, out.Reason, text[max(0, len(text)-3000):])
	}
	return text
}

// TestBootsInitFindsTheRoot has the root behind every transport that the kernel has drivers for, named in every way.
func TestBootsInitFindsTheRoot(t *testing.T) {
	soak(t)
	b := newBench(t)
	tr := b.rootTree(true)
	e4, err := ext4.New(tr, ext4.Options{Size: 32 << 20, UUID: benchUUID, Label: "bench root"})
	if err != nil {
		t.Fatal(err)
	}
	ero, err := erofs.New(tr, erofs.Options{UUID: benchUUID, Label: "bench"})
	if err != nil {
		t.Fatal(err)
	}
	ext4Disk, erofsDisk := b.disk("ext4.raw", e4), b.disk("erofs.raw", ero)
	for _, c := range []struct{ module, device, disk, cmdline, mounted string }{
		{"virtio_blk", "virtio-blk-pci,drive=r", ext4Disk, "root=PARTUUID=" + benchGUID.String() + " ro single", "/dev/vdb1 / ext4"},
		{"nvme", "nvme,drive=r,serial=n", erofsDisk, "root=UUID=" + benchUUID.String(), "/dev/nvme0n1p1 / erofs"},
		{"ahci", "ide-hd,bus=ide.1,drive=r", ext4Disk, `root="LABEL=bench root" rw`, "/dev/sda1 / ext4"},
		{"virtio_scsi", "virtio-scsi-pci -device scsi-hd,drive=r", erofsDisk, "root=/dev/sda1 imgpipe.overlay=/etc", "/dev/sda1 / erofs"},
		{"usb_storage", "qemu-xhci -device usb-storage,drive=r", ext4Disk, `root="PARTLABEL=the root" rootfstype=xfs,ext4`, "/dev/sda1 / ext4"},
		{"mmc_block", "sdhci-pci -device sd-card,drive=r", ext4Disk, "root=/dev/disk/by-uuid/" + benchUUID.String(), "/dev/mmcblk0p1 / ext4"},
	} {
		if !b.kernel.Has(c.module) {
			t.Logf("this kernel has no %s", c.module)
			continue
		}
		extra := append([]string{"-drive", "if=none,id=r,format=raw,file=" + c.disk, "-device"}, strings.Fields(c.device)...)
		writable := "writing /changed: open /changed: read-only file system"
		if strings.Contains(c.cmdline, "rw") {
			writable = "writing /changed: <nil>"
		}
		console := b.start(c.cmdline, extra, []string{"rootinit: mounted " + c.mounted, "rootinit: mounted devtmpfs /dev", "rootinit: mounted tmpfs /run",
			"rootinit: mounted sysfs /sys", "rootinit: process 1", writable, "rootinit: done"}, []string{"Kernel panic", "still there"})
		overlay := strings.Contains(console, "rootinit: mounted overlay /etc overlay") && strings.Contains(console, "writing /etc/changed: <nil>")
		if strings.Contains(c.cmdline, "overlay") && !overlay || strings.Contains(c.cmdline, "single") && !strings.Contains(console, `arguments ["single"]`) {
			t.Errorf("%s: %s", c.cmdline, console[max(0, len(console)-3000):])
		}
	}
}

// TestBootsInitSaysWhyItFails: a message for each reason, and a restart, whatever "quiet" says.
func TestBootsInitSaysWhyItFails(t *testing.T) {
	soak(t)
	b := newBench(t)
	empty, err := ext4.New(b.rootTree(false), ext4.Options{Size: 16 << 20, UUID: benchUUID})
	if err != nil {
		t.Fatal(err)
	}
	hashes, err := verity.New(t.Context(), empty, verity.Options{UUID: benchUUID})
	if err != nil {
		t.Fatal(err)
	}
	disk := b.disk("empty-root.raw", empty, hashes)
	extra := []string{"-drive", "if=none,id=r,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=r"}
	wrong := strings.Repeat("0123456789abcdef", 4)
	devices := " systemd.verity_root_data=/dev/vdb1 systemd.verity_root_hash=/dev/vdb2"
	for cmdline, want := range map[string]string{
		"":                              "the command line has no root=",
		"root=UUID=no rootwait=1":       "looking for UUID=no: not there after 1 s; there are: vda, vdb, vdb1 PARTUUID=" + benchGUID.String() + " ext4",
		"root=vda":                      "want PARTUUID=, UUID=",
		"root=/dev/vda":                 "no filesystem that this initramfs knows",
		"root=/dev/vdb1":                "/sbin/init: no such file or directory",
		"root=/dev/vdb1 rootfstype=xfs": "/dev/vdb1 as xfs: ",
		"root=/dev/vdb1 imgpipe.overlay=/nowhere":           "laying an overlay over /nowhere: ",
		"root=/dev/vdb1 imgpipe.mount=/dev/vdb1:/nowhere":   "mounting vdb1 at /nowhere: ",
		"root=/dev/vdb1 roothash=12":                        "not a SHA-256",
		"root=/dev/vdb1 rootwait=1 roothash=" + wrong:       "looking for PARTUUID=01234567-89ab-cdef-0123-456789abcdef: not there",
		"root=/dev/mapper/root roothash=" + wrong + devices: "opening the sealed root", // or reading it
		"root=/dev/mapper/root roothash=" + wrong + " systemd.verity_root_data=/dev/vdb1 systemd.verity_root_hash=/dev/vdb1":               "no dm-verity superblock",
		"root=/dev/mapper/root systemd.verity_root_options= roothash=" + hashes.RootHash().Hex() + devices + " rootfstype=ext4 init=/none": "/none: no such file",
	} {
		expect := []string{want, "imgpipe-init: the system does not start; restart in 1 s", "reboot: Restarting system"}
		if want == "opening the sealed root" {
			expect = []string{"imgpipe-init: ", "reboot: Restarting system", "corrupted"}
		}
		b.start(cmdline, extra, expect, []string{"Kernel panic"})
	}
}

// TestBootsInitSealed has the kernel check a root, and a /var beside it keep what is written to /etc: then a bit
// of the root is changed, and one of the hashes, under each choice of what is to happen.
func TestBootsInitSealed(t *testing.T) {
	soak(t)
	b := newBench(t)
	root, err := erofs.New(b.rootTree(true), erofs.Options{UUID: benchUUID})
	if err != nil {
		t.Fatal(err)
	}
	hashes, err := verity.New(t.Context(), root, verity.Options{UUID: benchUUID, Salt: []byte("salt")})
	if err != nil {
		t.Fatal(err)
	}
	empty := tree.New()
	state, err := ext4.New(empty, ext4.Options{Size: 16 << 20, UUID: diskimage.DeriveGUID("bench", "var")})
	if err != nil {
		t.Fatal(err)
	}
	disk := b.disk("sealed.raw", root, hashes, state)
	b.Disk, b.Snapshot = disk, false // it is the only one
	seal := "root=/dev/mapper/root roothash=" + hashes.RootHash().Hex() + " systemd.verity_root_data=/dev/vda1 systemd.verity_root_hash=/dev/vda2 " +
		"imgpipe.mount=/dev/vda3:/var:ext4 imgpipe.overlay=/etc:/var/lib/etc systemd.verity_root_options="
	expect := []string{"rootinit: mounted /dev/mapper/root / erofs", "rootinit: root is ro", "rootinit: mounted overlay /etc overlay", "rootinit: mounted /dev/vda3 /var ext4",
		"writing /etc/changed: <nil>", "writing /changed: open /changed: read-only file system", "reboot: Power down"}
	b.start(seal+"restart-on-corruption", nil, expect, []string{"of another boot", "Kernel panic"})
	b.start(seal+"panic-on-corruption", nil, append(expect, "/etc/changed is of another boot"), []string{"Kernel panic"})

	b.Snapshot = true
	rootAt, program := int64(1<<20), int64(-1)
	whole := make([]byte, root.Size())
	if _, err := root.ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	program = int64(bytes.Index(whole, []byte("\x7fELF")))
	hashesAt := rootAt + (root.Size()+1<<20-1)&^(1<<20-1)
	flip := &sealed{house: &house{t: t}, disk: disk}
	for _, c := range []struct {
		off    int64
		option string
		expect []string
	}{
		{rootAt + program + 5, "restart-on-corruption", []string{"data block", "is corrupted", "reboot: Restarting system"}},
		{rootAt + program + 5, "panic-on-corruption", []string{"is corrupted", "Kernel panic - not syncing: dm-verity device corrupted"}},
		{rootAt + program + 5, "", []string{"is corrupted", "/sbin/init: input/output error", "imgpipe-init: the system does not start", "reboot: Restarting system"}},
		{rootAt + 1024 + 64, "restart-on-corruption", []string{"data block 0 is corrupted", "reboot: Restarting system"}},
		{hashesAt + 4096 + 5, "restart-on-corruption", []string{"metadata block 1 is corrupted", "reboot: Restarting system"}},
	} {
		again := flip.flip(c.off)
		b.start(seal+c.option, nil, c.expect, []string{"rootinit: done"})
		again()
	}
}
