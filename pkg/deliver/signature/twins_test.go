package signature_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// machineTable is the table of an image with three partitions.
func machineTable(name string, size int64) *diskimage.Table {
	part := func(id string, at, n int64, role diskimage.Role, fs diskimage.Filesystem) diskimage.Partition {
		return diskimage.Partition{Name: id, Type: diskimage.TypeLinuxData, GUID: diskimage.DeriveGUID(name, id), Role: role, Filesystem: fs, Extent: diskimage.Extent{Off: at, Len: n}}
	}
	return &diskimage.Table{DiskGUID: diskimage.DeriveGUID(name), DiskSize: size, SectorSize: 512, Partitions: []diskimage.Partition{
		part("esp", mib, mib, diskimage.RoleESP, diskimage.Filesystem{Type: "fat12", Label: "ESP", UUID: "ABCD-0123"}),
		part("config", 2*mib, mib, diskimage.RoleConfig, diskimage.Filesystem{Type: "fat12", Label: "CIDATA"}),
		part("root", 3*mib, 4*mib, diskimage.RoleRoot, diskimage.Filesystem{Type: "ext4", UUID: "0fa51e77-8b3c-4d01-9a60-112233445566"}),
	}}
}

// written is a disk with a table, without filesystems.
func written(t testing.TB, table *diskimage.Table) scrap {
	t.Helper()
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	disk := newScrap(table.DiskSize)
	copy(disk, primary)
	copy(disk[len(disk)-len(backup):], backup)
	return disk
}

// TestTwins shares one thing at a time with a disk, and takes it back.
func TestTwins(t *testing.T) {
	image := machineTable("image", 8*mib)
	want := signature.IdentitiesOf(image, nil, nil)
	for name, c := range map[string]struct {
		disk func() scrap
		want string
	}{
		"blank":        {func() scrap { return newScrap(8 * mib) }, "[]"},
		"another":      {func() scrap { return written(t, machineTable("another", 8*mib)) }, "[]"},
		"same GUIDs":   {func() scrap { return written(t, image) }, fmt.Sprint(guids(image))},
		"a backup GPT": {func() scrap { d := written(t, image); clear(d[:mib]); return d }, fmt.Sprint(guids(image))},
		"larger": {func() scrap {
			fit, err := gpt.Refit(image, 16*mib, gpt.RefitOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return written(t, fit)
		}, fmt.Sprint(guids(image))},
		"the same root": {func() scrap {
			d := written(t, machineTable("another", 8*mib))
			plant(t, d, "ext4", diskimage.Extent{Off: 3 * mib, Len: 4 * mib})
			return d
		}, "[filesystem UUID 0fa51e77-8b3c-4d01-9a60-112233445566]"},
		"the same root, no table": {func() scrap {
			d := newScrap(8 * mib)
			plant(t, d, "ext4", diskimage.Extent{Len: 8 * mib})
			return d
		}, "[filesystem UUID 0fa51e77-8b3c-4d01-9a60-112233445566]"},
		"a stick": {func() scrap {
			d := written(t, image)
			copy(d[32*kib:], "\x01CD001\x01")
			copy(d[34*kib:], "\x00CD001\x01EL TORITO SPECIFICATION")
			return d
		}, fmt.Sprint(guids(image))},
		"a seed": {func() scrap { d := newScrap(8 * mib); plant(t, d, "iso9660", diskimage.Extent{Len: 8 * mib}); return d }, "[label CIDATA]"},
	} {
		disk := c.disk()
		f := probe(t, disk, 512)
		shared := signature.Twins(want, f)
		if got := fmt.Sprint(shared); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if len(shared) == 0 {
			continue
		}
		boot := f.BootBytes(int64(len(disk)), 512, shared...)
		if boot[0] != (diskimage.Extent{Len: 512}) {
			t.Errorf("%s: LBA 0 does not lead: %v", name, boot)
		}
		cleared := int64(0)
		for _, e := range boot {
			clear(disk[e.Off:e.End()])
			cleared += e.Len
		}
		if left := signature.Twins(want, probe(t, disk, 512)); len(left) > 0 || cleared > 72<<10 {
			t.Errorf("%s, retired by %d bytes: still shares %v", name, cleared, left)
		}
		if bytes.Contains(disk, []byte("CD001")) {
			t.Errorf("%s, retired: it starts as a CD", name)
		}
	}
}

func guids(table *diskimage.Table) (out []signature.Identity) {
	for _, id := range signature.IdentitiesOf(table, nil, nil) {
		if id.Kind == "disk GUID" || id.Kind == "PARTUUID" {
			out = append(out, id)
		}
	}
	return out
}

func TestIdentitiesOfAnMBR(t *testing.T) {
	disk := newScrap(8 * mib)
	clear(disk[:512])
	copy(disk[440:], "\x78\x56\x34\x12")
	copy(disk[450:], "\x83")
	copy(disk[454:], "\x00\x08\x00\x00\x00\x08\x00\x00")
	disk[510], disk[511] = 0x55, 0xaa
	want := signature.IdentitiesOf(nil, &diskimage.MBR{DiskID: 0x12345678}, &diskimage.Filesystem{Type: "ext4", UUID: "0FA51E77-8B3C-4D01-9A60-112233445566"})
	plant(t, disk, "ext4", diskimage.Extent{Off: mib, Len: mib})
	if got := fmt.Sprint(signature.Twins(want, probe(t, disk, 512))); got != "[disk ID 12345678 filesystem UUID 0fa51e77-8b3c-4d01-9a60-112233445566]" {
		t.Error(got)
	}
}
