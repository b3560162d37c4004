package foreign

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
)

// look finds a program, also where only root's PATH leads.
func look(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(look(t, name), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func hole(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestProbeAgreesWithBlkid makes every filesystem with its own tool.
func TestProbeAgreesWithBlkid(t *testing.T) {
	empty := t.TempDir()
	for kind, c := range map[string]struct {
		size int64
		args []string // FILE is the disk
	}{
		"ext2":        {8 << 20, []string{"mkfs.ext2", "-q", "-L", "two", "FILE"}},
		"ext3":        {8 << 20, []string{"mkfs.ext3", "-q", "-L", "three", "FILE"}},
		"ext4":        {8 << 20, []string{"mkfs.ext4", "-q", "-L", "a label of 16 ..", "FILE"}},
		"ext4 plain":  {8 << 20, []string{"mkfs.ext4", "-q", "-O", "^has_journal", "FILE"}},
		"xfs":         {320 << 20, []string{"mkfs.xfs", "-q", "-L", "twelve chars", "FILE"}},
		"btrfs":       {128 << 20, []string{"mkfs.btrfs", "-q", "-L", "butter", "FILE"}},
		"erofs":       {1 << 20, []string{"mkfs.erofs", "FILE", empty}},
		"squashfs":    {1 << 20, []string{"mksquashfs", empty, "FILE", "-noappend", "-quiet"}},
		"fat12":       {2 << 20, []string{"mkfs.fat", "-F", "12", "-n", "TWELVE", "FILE"}},
		"fat16":       {32 << 20, []string{"mkfs.fat", "-F", "16", "-n", "SIXTEEN", "-i", "0123abcd", "FILE"}},
		"fat32":       {64 << 20, []string{"mkfs.fat", "-F", "32", "-n", "ESP", "FILE"}},
		"fat32 small": {16 << 20, []string{"mkfs.fat", "-F", "32", "-s", "8", "FILE"}}, // fewer clusters than FAT32 has
		"swap":        {1 << 20, []string{"mkswap", "-q", "-L", "swapspace", "FILE"}},
		"swap 64K":    {1 << 20, []string{"mkswap", "-q", "-p", "65536", "FILE"}},
		"crypto_LUKS": {32 << 20, []string{"cryptsetup", "luksFormat", "-q", "--type", "luks2", "--label", "secret", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "FILE"}},
		"luks1":       {32 << 20, []string{"cryptsetup", "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", "FILE"}},
		"nothing":     {1 << 20, nil},
	} {
		t.Run(kind, func(t *testing.T) {
			blkid := look(t, "blkid")
			path := hole(t, c.size)
			if c.args != nil {
				args := slices.Clone(c.args)
				args[slices.Index(args, "FILE")] = path
				run(t, "password", args[0], args[1:]...)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, _ := f.Stat()
			got := Probe(f, info.Size())
			out, _ := exec.Command(blkid, "-p", "-o", "export", path).Output() // 2 for nothing
			want := map[string]string{}
			for line := range strings.Lines(string(out)) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
				want[k] = strings.ReplaceAll(v, `\`, "")
			}
			if want["TYPE"] == "vfat" {
				want["TYPE"] = strings.ToLower(want["VERSION"])
			}
			if got.Type != want["TYPE"] || got.Label != want["LABEL"] || got.UUID != want["UUID"] {
				t.Errorf("got %+v, blkid says %v", got, want)
			}
			if c.args != nil && got.Type == "" {
				t.Error("is not known")
			}
		})
	}
}

// TestLVM is about a physical volume as pvcreate writes it, which needs a block device.
func TestLVM(t *testing.T) {
	b := make([]byte, 4<<20)
	pv := b[512:]
	copy(pv, "LABELONE")
	binary.LittleEndian.PutUint64(pv[8:], 1)
	binary.LittleEndian.PutUint32(pv[20:], 32)
	copy(pv[24:], "LVM2 001yKdwVeSp7MfNUbfBYF2mkZhW7rQaaW1f")
	want := diskimage.Filesystem{Type: "LVM2_member", UUID: "yKdwVe-Sp7M-fNUb-fBYF-2mkZ-hW7r-QaaW1f"}
	if got := Probe(bytes.NewReader(b), int64(len(b))); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestMBRAgreesWithSfdisk reads primary and logical partitions, at both sectors.
func TestMBRAgreesWithSfdisk(t *testing.T) {
	const script = "label: dos\nlabel-id: 0xdeadbeef\nstart=2048, size=4096, type=83, bootable\nstart=8192, size=90000, type=5\nstart=8200, size=5000, type=82\nstart=20000, size=6000, type=c\nstart=30000, size=68000, type=83\n"
	path := hole(t, 64<<20)
	run(t, script, "sfdisk", "-q", path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMBR(bytes.NewReader(b), int64(len(b)), 512)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range m.Partitions {
		got = append(got, fmt.Sprintf("%d %v %v %d %d", p.Number, p.Active, p.Type, p.Extent.Off/512, p.Extent.Len/512))
	}
	want := []string{"1 true 0x83 2048 4096", "5 false 0x82 8200 5000", "6 false 0x0c 20000 6000", "7 false 0x83 30000 68000"}
	if !slices.Equal(got, want) || m.DiskID.String() != "deadbeef" {
		t.Errorf("got %v of %v, want %v", got, m.DiskID, want)
	}
	dump := run(t, "", "sfdisk", "-d", path)
	for _, p := range m.Partitions {
		if !strings.Contains(dump, fmt.Sprintf("start=%12d, size=%12d", p.Extent.Off/512, p.Extent.Len/512)) {
			t.Errorf("sfdisk does not see %+v:\n%s", p, dump)
		}
	}
	// The chain leads back to its begin.
	loop := bytes.Clone(b)
	for _, at := range ebrs(loop, 8192) {
		rec := loop[at*512+mbrRecords+16:]
		rec[4] = 5
		binary.LittleEndian.PutUint32(rec[8:], 0)
		binary.LittleEndian.PutUint32(rec[12:], 100)
	}
	if _, err := parseMBR(bytes.NewReader(loop), int64(len(loop)), 512); err == nil || !strings.Contains(err.Error(), "leads back") {
		t.Errorf("a loop: %v", err)
	}
}

// ebrs are the LBAs of the chain of extended boot records.
func ebrs(b []byte, first int) (out []int) {
	for at := first; ; {
		out = append(out, at)
		rec := b[at*512+mbrRecords+16:]
		if rec[4] == 0 {
			return out
		}
		at = first + int(binary.LittleEndian.Uint32(rec[8:]))
	}
}

// disk has a GPT with an ESP that holds a boot program, a seed and a root.
func gptDisk(t testing.TB, sector int64, program string) []byte {
	t.Helper()
	root := files(t)
	if program != "" {
		if err := root.Put("/EFI/BOOT/"+program, root.Get("/EFI/BOOT/BOOTX64.EFI")); err != nil {
			t.Fatal(err)
		}
	}
	esp, err := fat.New(root, fat.Options{Size: 4 << 20, SectorSize: sector, Label: "ESP", Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	seed, err := fat.New(files(t), fat.Options{Size: 4 << 20, SectorSize: sector, Label: "CIDATA", Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	id := func(s string) diskimage.GUID { return diskimage.DeriveGUID("survey", s) }
	table := &diskimage.Table{DiskGUID: id("disk"), DiskSize: 16 << 20, SectorSize: sector, Partitions: []diskimage.Partition{
		{Name: "esp", Type: diskimage.TypeESP, GUID: id("esp"), Extent: diskimage.Extent{Off: 1 << 20, Len: 4 << 20}},
		{Name: "seed", Type: diskimage.TypeBasicData, GUID: id("seed"), Extent: diskimage.Extent{Off: 5 << 20, Len: 4 << 20}},
		{Name: "root", Type: diskimage.TypeLinuxData, GUID: id("root"), Extent: diskimage.Extent{Off: 9 << 20, Len: 4 << 20}},
	}}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	d, err := diskimage.Join(16<<20, diskimage.Part{Disk: diskimage.Bytes(primary)}, diskimage.Part{Off: 1 << 20, Disk: esp},
		diskimage.Part{Off: 5 << 20, Disk: seed}, diskimage.Part{Off: 16<<20 - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLook(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		b := gptDisk(t, sector, "")
		if got := SectorSize(bytes.NewReader(b), int64(len(b))); got != sector {
			t.Errorf("sectors of %d are taken for %d", sector, got)
		}
		s := Look(diskimage.Bytes(b), sector)
		if s.Table == nil || len(s.Table.Partitions) != 3 || len(s.Notes) != 0 || !slices.Equal(s.Archs, []string{"amd64"}) {
			t.Fatalf("got %+v", s)
		}
		p := s.Table.Partitions
		if p[0].Role != diskimage.RoleESP || p[0].Filesystem.Label != "ESP" || p[1].Role != diskimage.RoleConfig || p[2].Role != diskimage.RoleData ||
			p[2].Filesystem.Type != "" || p[2].Grow {
			t.Errorf("got %+v", p)
		}
	}
	if s := Look(diskimage.Bytes(gptDisk(t, 512, "BOOTAA64.EFI")), 512); !slices.Equal(s.Archs, []string{"amd64", "arm64"}) {
		t.Errorf("boot programs of two architectures: %v", s.Archs)
	}
}

// TestLookNotesDamage damages a table in every way that leaves a disk to import.
func TestLookNotesDamage(t *testing.T) {
	whole := gptDisk(t, 512, "")
	last := len(whole) - 512
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		table  bool
		note   string
	}{
		"primary header": {func(b []byte) []byte { b[512+40]++; return b }, true, "the primary table is damaged, the backup is read: LBA 1"},
		"primary entry":  {func(b []byte) []byte { b[1024+56]++; return b }, true, "the primary table is damaged"},
		"backup header":  {func(b []byte) []byte { b[last+40]++; return b }, true, "the backup table is damaged: LBA 32767"},
		"backup cleared": {func(b []byte) []byte { clear(b[last:]); return b }, true, "there is no backup table at the end of the disk"},
		"longer disk":    {func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) }, true, "there is no backup table at the end of the disk (LBA 34815)"},
		"cut disk":       {func(b []byte) []byte { return b[:12<<20] }, false, "the partition table cannot be read and is left out: gpt: LBA 1: header: usable LBAs"},
		"both headers":   {func(b []byte) []byte { b[512+40]++; b[last+40]++; return b }, false, "the partition table cannot be read and is left out"},
		"other backup": {func(b []byte) []byte {
			other := gptDisk(t, 512, "")
			table, err := gpt.Parse(bytes.NewReader(other), int64(len(other)), 512)
			if err != nil {
				t.Fatal(err)
			}
			table.Partitions[0].Name = "other"
			_, backup, err := gpt.Encode(table)
			if err != nil {
				t.Fatal(err)
			}
			copy(b[len(b)-len(backup):], backup)
			return b
		}, true, "the backup table has other contents than the primary, which is read"},
		"nothing": {func(b []byte) []byte { return make([]byte, 1<<20) }, false, "no partition table and no filesystem"},
	} {
		s := Look(diskimage.Bytes(c.damage(bytes.Clone(whole))), 512)
		if (s.Table != nil) != c.table || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], c.note) {
			t.Errorf("%s: table %v, notes %q", name, s.Table != nil, s.Notes)
		}
	}
}

// FuzzLook: no bytes make it panic, run for long, or say what Validate refuses.
func FuzzLook(f *testing.F) {
	f.Add(gptDisk(f, 512, "")[:34*512])
	f.Add(gptDisk(f, 4096, "")[:6*4096])
	mbr := make([]byte, 32<<10)
	copy(mbr[mbrRecords:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 10, 0, 0, 0, 50, 0, 0, 0})
	mbr[510], mbr[511] = 0x55, 0xaa
	f.Add(mbr)
	esp, err := fat.New(files(f), fat.Options{Size: 1 << 20, SectorSize: 512, Label: "ESP", Epoch: epoch})
	if err != nil {
		f.Fatal(err)
	}
	b := make([]byte, esp.Size())
	if _, err := esp.ReadAt(b, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(b[:32<<10])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		d := diskimage.Bytes(append(b, make([]byte, -len(b)&511)...))
		sector := SectorSize(d, d.Size())
		if d.Size()%sector != 0 {
			return
		}
		s := Look(d, sector)
		if s.Table != nil && s.Table.Validate() != nil || s.MBR != nil && s.MBR.Validate(d.Size()) != nil {
			t.Errorf("%+v", s)
		}
		if v, err := openFAT(d, 0); err == nil {
			v.label()
			v.has("EFI        ", "BOOT       ", "BOOTX64 EFI")
		}
	})
}
