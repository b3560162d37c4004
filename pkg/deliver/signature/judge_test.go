package signature_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// wipefsNames are wipefs's names for what is named otherwise here.
var wipefsNames = map[string]string{
	"linux_raid_member": "md", "LVM2_member": "lvm", "LVM1_member": "lvm", "crypto_LUKS": "luks", "zfs_member": "zfs", "ceph_bluestore": "ceph",
	"VMFS": "vmfs", "VMFS_volume_member": "vmfs", "isw_raid_member": "imsm", "ddf_raid_member": "ddf", "vfat": "fat", "BitLocker": "bitlocker",
	"dos": "mbr", "iso9660": "iso9660", "swsuspend": "swap", "ext3": "ext3",
}

type judged struct {
	Device, Offset, Type, UUID, Label string
}

// wipefs lists what wipefs finds, each time after erasing what it found before:
// of a kind with several places it shows one at a time.
func wipefs(t *testing.T, file string) (out []judged) {
	t.Helper()
	for range 600 {
		b, err := exec.Command("wipefs", "--no-act", "--json", file).CombinedOutput()
		if err != nil {
			t.Fatalf("wipefs: %v\n%s", err, b)
		}
		var found struct{ Signatures []judged }
		if len(b) > 0 {
			if err := json.Unmarshal(b, &found); err != nil {
				t.Fatalf("wipefs: %v in %s", err, b)
			}
		}
		if len(found.Signatures) == 0 {
			return out
		}
		for _, s := range found.Signatures {
			out = append(out, s)
			if b, err := exec.Command("wipefs", "--force", "--offset", s.Offset, file).CombinedOutput(); err != nil {
				t.Fatalf("wipefs: %v\n%s", err, b)
			}
		}
	}
	t.Fatalf("wipefs finds no end: %v", out[:10])
	return nil
}

// agree checks that all that wipefs finds is found here, with its UUID and
// label, and that it finds nothing where the signatures found here are erased.
func agree(t *testing.T, file string, atLeast int) {
	t.Helper()
	f := probeFile(t, file)
	copied := file + ".judged"
	sparseCopy := func() {
		t.Helper()
		if out, err := exec.Command("cp", "--sparse=always", file, copied).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
	}
	sparseCopy()
	theirs := wipefs(t, copied)
	if len(theirs) < atLeast {
		t.Errorf("wipefs finds %v, want at least %d", theirs, atLeast)
	}
	for _, j := range theirs {
		off, err := strconv.ParseInt(j.Offset, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		name := j.Type
		if n, ok := wipefsNames[name]; ok {
			name = n
		}
		if name == "PMBR" || off == 510 && f.Signatures[0].Off < 512 {
			continue // LBA 0 has more to say
		}
		i := slices.IndexFunc(f.Signatures, func(s signature.Signature) bool { return s.Name == name && off >= s.Off-64 && off < s.End() })
		if i < 0 {
			t.Errorf("wipefs finds %+v; found here: %v", j, f.Signatures)
			continue
		}
		s := f.Signatures[i]
		plain := func(s string) string { return strings.ToLower(strings.NewReplacer("-", "", ":", "").Replace(s)) }
		if s.UUID != "" && plain(s.UUID) != plain(j.UUID) {
			t.Errorf("%s: UUID %s, wipefs: %s", name, s.UUID, j.UUID)
		}
		if s.Label != "" && s.Label != j.Label {
			t.Errorf("%s: label %q, wipefs: %q", name, s.Label, j.Label)
		}
	}
	sparseCopy()
	w, err := os.OpenFile(copied, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, s := range append(f.Signatures, signature.Signature{Extent: diskimage.Extent{Len: 512}}) { // LBA 0 is cleared in any case
		sectors := diskimage.AlignExtents([]diskimage.Extent{s.Extent}, 512, 1<<40)[0]
		if _, err := w.WriteAt(make([]byte, sectors.Len), sectors.Off); err != nil {
			t.Fatal(err)
		}
	}
	if left := wipefs(t, copied); len(left) > 0 {
		t.Errorf("erased: wipefs still finds %v", left)
	}
}

func probeFile(t *testing.T, file string) *signature.Found {
	t.Helper()
	r, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := signature.Probe(r, st.Size(), 512)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func tools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s", name)
		}
	}
}

// TestWipefsKnowsThePlants keeps the planted layouts honest.
func TestWipefsKnowsThePlants(t *testing.T) {
	tools(t, "wipefs")
	for _, name := range delivertest.Plants() {
		if name == "bitlocker" {
			continue // wipefs asks for more than its magic
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "disk")
			f, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(96 * mib); err != nil {
				t.Fatal(err)
			}
			plant(t, f, name, diskimage.Extent{Len: 96 * mib})
			agree(t, file, 1)
		})
	}
}

// TestMadeByOthers probes what the formats' own programs make.
func TestMadeByOthers(t *testing.T) {
	tools(t, "wipefs")
	const pass = `echo secret | cryptsetup luksFormat -q --type TYPE --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$1"`
	for name, script := range map[string]string{
		"mkfs.ext4": `mkfs.ext4 -q -L old "$1"`, "mke2fs ext2": `mke2fs -q -t ext2 "$1"`, "mke2fs ext3": `mke2fs -q -t ext3 "$1"`, "mke2fs journal": `mke2fs -q -O journal_dev "$1"`,
		"mkfs.xfs": `mkfs.xfs -q -L old "$1"`, "mkfs.btrfs": `mkfs.btrfs -q -L old "$1"`, "mkswap": `mkswap -q -L old "$1"`, "mkswap 64k": `mkswap -q -p 65536 "$1"`,
		"mkfs.vfat 12": `mkfs.vfat -F 12 -n OLD "$1" 2000`, "mkfs.vfat 16": `mkfs.vfat -F 16 -n OLD "$1"`, "mkfs.vfat 32": `mkfs.vfat -F 32 -n CIDATA "$1"`,
		"mkfs.ntfs": `mkfs.ntfs -q -F -L old "$1"`, "mkfs.exfat": `mkfs.exfat "$1"`, "mkfs.f2fs": `mkfs.f2fs -q -f "$1"`, "mkfs.nilfs2": `mkfs.nilfs2 -q -L old "$1"`,
		"mkfs.jfs": `mkfs.jfs -q -L old "$1"`, "mkfs.reiserfs": `mkfs.reiserfs -qff "$1"`, "mkudffs": `mkudffs "$1"`,
		"mksquashfs":   `mkdir "$1.d" && mksquashfs "$1.d" "$1.s" -quiet && dd if="$1.s" of="$1" conv=notrunc status=none`,
		"mkfs.erofs":   `mkdir "$1.d" && mkfs.erofs "$1.e" "$1.d" && dd if="$1.e" of="$1" conv=notrunc status=none`,
		"xorriso":      `mkdir "$1.d" && xorriso -as mkisofs -quiet -V cidata -o "$1.i" "$1.d" && dd if="$1.i" of="$1" conv=notrunc status=none`,
		"cryptsetup 1": strings.Replace(pass, "TYPE", "luks1", 1), "cryptsetup 2": strings.Replace(pass, "TYPE", "luks2", 1),
		"make-bcache": `make-bcache -B "$1"`,
		"sfdisk gpt":  `printf 'label: gpt\n4096\n' | sfdisk -q "$1"`, "sfdisk dos": `printf 'label: dos\n4096\n' | sfdisk -q "$1"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tools(t, strings.Fields(name)[0])
			file := filepath.Join(t.TempDir(), "disk")
			if out, err := exec.Command("truncate", "-s", "320M", file).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if out, err := exec.Command("sh", "-ec", script, "sh", file).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			agree(t, file, 1)
		})
	}
}
