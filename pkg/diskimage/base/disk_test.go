package base_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const mib = 1 << 20

// volume is a partition to be made: its name, type and files as pack has them.
type volume struct {
	name  string
	kind  diskimage.GUID
	fs    string // ext4, fat16, or else a magic at an offset: "XFSB@0"
	files []string
	tree  *tree.Tree
}

// disk makes a GPT disk of volumes of 16 MiB each; GUIDs and UUIDs follow from names.
func disk(t testing.TB, volumes ...volume) diskimage.Disk {
	t.Helper()
	const size = 16 * mib
	table := &diskimage.Table{DiskGUID: guid("disk"), SectorSize: 512, DiskSize: int64(len(volumes))*size + 2*mib}
	var parts []diskimage.Part
	for i, v := range volumes {
		off := int64(mib + i*size)
		table.Partitions = append(table.Partitions, diskimage.Partition{Name: v.name, GUID: guid(v.name), Type: v.kind, Extent: diskimage.Extent{Off: off, Len: size}})
		parts = append(parts, diskimage.Part{Off: off, Disk: filesystem(t, v, size)})
	}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	parts = append(parts, diskimage.Part{Disk: diskimage.Bytes(primary)}, diskimage.Part{Off: table.DiskSize - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	d, err := diskimage.Join(table.DiskSize, parts...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func guid(name string) diskimage.GUID { return diskimage.DeriveGUID("test", name) }

func filesystem(t testing.TB, v volume, size int64) diskimage.Disk {
	t.Helper()
	tr := v.tree
	if tr == nil {
		b := pack(t, v.files...)
		var err error
		if tr, err = tree.FromTar(strings.NewReader(string(b)), int64(len(b))); err != nil {
			t.Fatal(err)
		}
	}
	var d diskimage.Disk
	var err error
	switch v.fs {
	case "ext4":
		d, err = ext4.New(tr, ext4.Options{Size: size, UUID: guid("fs " + v.name), Label: v.name})
	case "fat16":
		d, err = fat.New(tr, fat.Options{Size: size, SectorSize: 512, Type: fat.FAT16, VolumeID: 0x1234abcd})
	default:
		magic, at, _ := strings.Cut(v.fs, "@")
		var off int64
		if _, err := fmt.Sscan(at, &off); err != nil {
			t.Fatal(err)
		}
		d, err = diskimage.Join(size, diskimage.Part{Off: off, Disk: diskimage.Bytes([]byte(magic))})
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var someDigest = diskimage.DigestOf([]byte("disk"))

func TestWhichPartitionIsTheRoot(t *testing.T) {
	linux, root := diskimage.TypeLinuxData, diskimage.TypeRootX86_64
	release, fstab, is := "etc/os-release=ID=debian", "etc/fstab=# none\n", "is=%s"
	vol := func(name string, kind diskimage.GUID, files ...string) volume {
		return volume{name: name, kind: kind, fs: "ext4", files: append(files, fmt.Sprintf(is, name))}
	}
	for name, c := range map[string]struct {
		volumes   []volume
		partition string
		want      string // the name of the one, or words of the error
	}{
		"the only one":        {[]volume{vol("a", linux)}, "", "a"},
		"by type":             {[]volume{vol("a", linux, release, fstab), vol("b", root)}, "", "b"},
		"by type of another":  {[]volume{vol("a", linux, release, fstab), vol("b", diskimage.TypeRootARM64)}, "", "a"},
		"by fstab":            {[]volume{vol("a", linux, release), vol("b", linux, release, fstab)}, "", "b"},
		"by os-release":       {[]volume{vol("a", linux, "usr/lib/os-release=ID=x"), vol("b", linux)}, "", "a"},
		"two types, one full": {[]volume{vol("a", root, release, fstab), vol("b", root)}, "", "a"},
		"by name":             {[]volume{vol("a", root, release, fstab), vol("b", linux)}, "b", "b"},
		"by number":           {[]volume{vol("a", root, release, fstab), vol("b", linux)}, "2", "b"},
		"two alike":           {[]volume{vol("a", linux, release), vol("b", linux, release)}, "", `2 partitions look like a root; name one with partition: partition 1 "a" (ext4 a), partition 2 "b" (ext4 b)`},
		"none":                {[]volume{vol("a", linux), vol("b", linux)}, "", `no partition looks like a root`},
		"no such name":        {[]volume{vol("a", linux), vol("b", linux)}, "c", `0 partitions are called "c"; there are: partition 1 "a"`},
		"xfs":                 {[]volume{vol("boot", linux), {name: "root", kind: root, fs: "XFSB@0"}}, "", `partition 2 "root" (xfs): xfs is not read here: mount it read-only, tar`},
		"btrfs, not typed":    {[]volume{vol("boot", linux), {name: "root", kind: linux, fs: "_BHRfS_M@65600"}}, "", `looks like a root; partition 2 "root" (btrfs): btrfs is not read here`},
		"encrypted":           {[]volume{vol("boot", linux), {name: "root", kind: root, fs: "LUKS\xba\xbe\x00\x02@0"}}, "", `is encrypted: unlock`},
		"nothing known in it": {[]volume{vol("boot", linux), {name: "root", kind: root, fs: "noise@0"}}, "", `holds no filesystem that is known here`},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := base.Disk(disk(t, c.volumes...), someDigest, base.Root{Arch: "amd64", Partition: c.partition})
			if len(c.want) > 1 {
				wantError(t, err, c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := content(t, b.Tree, "/is"); got != c.want {
				t.Errorf("is %s, want %s: %q", got, c.want, b.Notes)
			}
		})
	}
}

func TestMountsOfTheDisk(t *testing.T) {
	fstab := strings.Join([]string{
		"etc/fstab=# a comment", "UUID=" + guid("fs root").String() + " / ext4 defaults 0 1",
		"PARTUUID=" + strings.ToUpper(guid("boot").String()) + "\t/boot ext4 defaults 0 2",
		"UUID=1234-ABCD /boot/efi vfat umask=0077 0 1", "LABEL=home /home ext4 defaults 0 2", "/dev/disk/by-partlabel/srv /srv\\040v ext4 x 0 2",
		"UUID=none none swap sw 0 0", "/dev/sdb1 /data ext4 x 0 0", "tmpfs /tmp tmpfs x 0 0", "LABEL=xfs /opt xfs x 0 0", "garbage", "LABEL=home ../../x ext4 x 0 0", "", ""}, "\n")
	linux := diskimage.TypeLinuxData
	d := disk(t,
		volume{name: "root", kind: diskimage.TypeRootX86_64, fs: "ext4", files: []string{fstab, "boot/under=gone", "home -> users", "users/under=gone", "etc/os-release=ID=debian"}},
		volume{name: "boot", kind: linux, fs: "ext4", files: []string{"vmlinuz-1=kernel", "efi/under=gone"}},
		volume{name: "esp", kind: diskimage.TypeESP, fs: "fat16", files: []string{"EFI/debian/grubx64.efi=grub"}},
		volume{name: "home", kind: linux, fs: "ext4", files: []string{"ops/file=mine"}},
		volume{name: "srv", kind: linux, fs: "ext4", files: []string{"www=page"}},
	)
	b, err := base.Disk(d, someDigest, base.Root{Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{"/boot/vmlinuz-1": "kernel", "/boot/efi/EFI/debian/grubx64.efi": "grub", "/users/ops/file": "mine", "/srv v/www": "page"} {
		if got := content(t, b.Tree, p); got != want {
			t.Errorf("%s is %q, want %q", p, got, want)
		}
	}
	for _, p := range []string{"/boot/under", "/boot/efi/under", "/users/under"} {
		if b.Tree.Get(p) != nil {
			t.Errorf("%s is there, below a mount", p)
		}
	}
	notes := strings.Join(b.Notes, "\n")
	for _, want := range []string{"/data (/dev/sdb1) is not on this disk", "/boot is partition 2", "/opt (LABEL=xfs) is not on this disk"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note %q in:\n%s", want, notes)
		}
	}

	// A /boot that cannot be read is an error: the kernel is there.
	d = disk(t,
		volume{name: "root", kind: diskimage.TypeRootX86_64, fs: "ext4", files: []string{"etc/fstab=PARTLABEL=boot /boot xfs x 0 0\n"}},
		volume{name: "boot", kind: linux, fs: "XFSB@0"})
	_, err = base.Disk(d, someDigest, base.Root{Arch: "amd64"})
	wantError(t, err, "/boot: partition 2", "xfs is not read here")
}

// An image of ours has its kernel on the EFI system partition only.
func TestKernelsAreTakenOutOfUKIs(t *testing.T) {
	program, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err != nil {
		t.Skip("apt-get install systemd-boot-efi: ", err)
	}
	image, err := boot.UKI{Stub: program, Kernel: diskimage.Bytes(program), Initrd: diskimage.Bytes([]byte("initramfs")), Uname: "6.1.0-1"}.Build()
	if err != nil {
		t.Fatal(err)
	}
	esp := tree.New()
	for p, data := range map[string]diskimage.Disk{"/EFI/BOOT/BOOTX64.EFI": image, "/EFI/BOOT/other.efi": diskimage.Bytes(program), "/EFI/BOOT/noise.efi": diskimage.Bytes([]byte("noise"))} {
		if err := esp.Put(p, &tree.Inode{Mode: 0o644, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		files []string
		want  []string
	}{
		{[]string{"etc/os-release=ID=debian"}, []string{"6.1.0-1"}},
		{[]string{"etc/os-release=ID=debian", "boot/vmlinuz-5=its own"}, []string{"5"}},
	} {
		d := disk(t, volume{name: "esp", kind: diskimage.TypeESP, fs: "fat16", tree: esp}, volume{name: "root", kind: diskimage.TypeRootX86_64, fs: "ext4", files: c.files})
		b, err := base.Disk(d, someDigest, base.Root{Arch: "amd64"})
		if err != nil {
			t.Fatal(err)
		}
		if got := boot.Kernels(b.Tree); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("kernels %q, want %q; notes %q", got, c.want, b.Notes)
		}
		if c.want[0] == "6.1.0-1" && (content(t, b.Tree, "/boot/initrd.img-6.1.0-1") != "initramfs" || content(t, b.Tree, "/boot/vmlinuz-6.1.0-1") != string(program)) {
			t.Error("kernel or initramfs is another")
		}
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path, err := exec.LookPath(name); err == nil {
		cmd.Path = path
	} else if cmd.Path = "/usr/sbin/" + name; cmd.Err != nil {
		cmd.Err = nil
	}
	if _, err := os.Stat(cmd.Path); err != nil {
		t.Skip(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// Disks that other tools made, in the files of other tools.
func TestDisksOfOtherTools(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "root/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "root/etc/os-release"), []byte("ID=debian\n"))
	write(t, filepath.Join(dir, "root/etc/fstab"), []byte("UUID=11111111-2222-3333-4444-555555555555 / ext4 x 0 0\n"))
	part, raw := filepath.Join(dir, "part"), filepath.Join(dir, "disk.raw")
	run(t, "mkfs.ext4", "-q", "-d", filepath.Join(dir, "root"), "-U", "11111111-2222-3333-4444-555555555555", part, "8M")
	b, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	write(t, raw, append(make([]byte, mib), b...))
	run(t, "sh", "-c", "printf 'label: dos\nstart=2048, type=83\n' | /usr/sbin/sfdisk -q '"+raw+"'")
	run(t, "qemu-img", "convert", "-O", "qcow2", "-c", raw, raw+".qcow2")
	run(t, "sh", "-c", "gzip -k '"+raw+"'; xz -0 -k '"+raw+"'")
	for _, name := range []string{raw, raw + ".qcow2", raw + ".gz", raw + ".xz", part} {
		b := open(t)(base.File(t.Context(), name, base.Root{Arch: "amd64"}, base.Options{Scratch: dir}))
		if got := content(t, b.Tree, "/etc/os-release"); got != "ID=debian\n" {
			t.Errorf("%s: os-release %q", name, got)
		}
	}
	run(t, "qemu-img", "convert", "-O", "vmdk", raw, raw+".vmdk")
	_, err = base.File(t.Context(), raw+".vmdk", base.Root{Arch: "amd64"}, base.Options{})
	wantError(t, err, "VMDK", "qemu-img convert", raw)
	_, err = base.File(t.Context(), write(t, "noise", make([]byte, mib)), base.Root{Arch: "amd64"}, base.Options{})
	wantError(t, err, "no partitions and no filesystem")

	// One that changes while it is read gives nothing more.
	changing := disktest.Save(t, disk(t, volume{name: "a", kind: diskimage.TypeLinuxData, fs: "ext4", files: []string{"big=" + strings.Repeat("x", 5000)}}))
	d := open(t)(base.File(t.Context(), changing, base.Root{Arch: "amd64"}, base.Options{}))
	if err := os.WriteFile(changing, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = d.Tree.ReadFile("/big", mib)
	wantError(t, err, tree.ErrChanged.Error())
}
