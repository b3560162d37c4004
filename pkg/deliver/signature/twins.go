package signature

import (
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Identity is by what a booting system finds a disk, or something on it. Two
// disks of one machine that share one make it boot, or configure, either.
type Identity struct {
	Kind  string `json:"kind"` // disk GUID, disk ID, PARTUUID, filesystem UUID, label
	Value string `json:"value"`
}

// String is for people.
func (i Identity) String() string { return i.Kind + " " + i.Value }

// configLabel is the filesystem label by which cloud-init finds its NoCloud
// seed, in either case. Other labels are not identities: every disk has an ESP.
const configLabel = "CIDATA"

// IdentitiesOf returns those of a disk as it shall be: with a table that is
// fitted to it, an MBR, or a filesystem on the whole of it. Each may be nil.
func IdentitiesOf(t *diskimage.Table, m *diskimage.MBR, whole *diskimage.Filesystem) (out []Identity) {
	filesystem := func(f diskimage.Filesystem) {
		if f.UUID != "" {
			out = append(out, filesystemUUID(f.UUID))
		}
		if strings.EqualFold(f.Label, configLabel) {
			out = append(out, Identity{"label", configLabel})
		}
	}
	if t != nil {
		out = append(out, Identity{"disk GUID", t.DiskGUID.String()})
		for _, p := range t.Partitions {
			out = append(out, Identity{"PARTUUID", p.GUID.String()})
			filesystem(p.Filesystem)
			if p.Role == diskimage.RoleConfig {
				out = append(out, Identity{"label", configLabel})
			}
		}
	}
	if m != nil {
		if m.DiskID != 0 {
			out = append(out, Identity{"disk ID", m.DiskID.String()})
		}
		for _, p := range m.Partitions {
			filesystem(p.Filesystem)
		}
	}
	if whole != nil {
		filesystem(*whole)
	}
	return out
}

func filesystemUUID(s string) Identity { return Identity{"filesystem UUID", strings.ToLower(s)} }

// Identities returns those of a disk that was probed.
func (f *Found) Identities() (out []Identity) {
	for _, t := range f.Tables {
		if t.ID != "" {
			out = append(out, Identity{map[string]string{"gpt": "disk GUID", "mbr": "disk ID"}[t.Type], t.ID})
		}
		for _, p := range t.Partitions {
			if p.GUID != "" {
				out = append(out, Identity{"PARTUUID", p.GUID})
			}
		}
	}
	for _, s := range f.Signatures {
		if s.UUID != "" {
			out = append(out, filesystemUUID(s.UUID))
		}
		if s.config() {
			out = append(out, Identity{"label", configLabel})
		}
	}
	return out
}

func (s Signature) config() bool {
	return (s.Name == "fat" || s.Name == "iso9660") && strings.EqualFold(s.Label, configLabel)
}

// Twins returns the identities that another disk shares, each once, in the
// order of want.
func Twins(want []Identity, other *Found) (shared []Identity) {
	has := other.Identities()
	for _, id := range want {
		if slices.Contains(has, id) && !slices.Contains(shared, id) {
			shared = append(shared, id)
		}
	}
	return shared
}

// cdDescriptors is where the volume descriptors of an ISO 9660 and a UDF are,
// the boot record of El Torito among them: UEFI firmware starts such a disk
// whatever LBA 0 holds.
var cdDescriptors = diskimage.Extent{Off: 32 * kib, Len: 32 * kib}

// BootBytes returns what makes a disk of sectors of the given size one that
// boots, configures, or is found by an identity: LBA 0, which leads, the
// descriptors by which firmware starts it as a CD, every GPT that was found,
// CIDATA volumes' signatures, and those outside of partitions that bear one of
// the identities. All are whole sectors.
func (f *Found) BootBytes(size, sector int64, identities ...Identity) []diskimage.Extent {
	out := []diskimage.Extent{{Len: min(sector, size)}}
	for _, t := range f.Tables {
		if t.Type == "gpt" {
			out = append(out, diskimage.Extent{Off: t.Offset, Len: 8}, t.entries) // a header, or the entries
		}
	}
	for _, s := range f.Signatures {
		if s.Place == "" && (s.Name == "iso9660" || s.Name == "udf") {
			out = append(out, cdDescriptors.Intersect(diskimage.Extent{Len: size}))
		}
		if s.config() || s.Place == "" && s.UUID != "" && slices.Contains(identities, filesystemUUID(s.UUID)) {
			out = append(out, s.Extent)
		}
	}
	return append(out[:1:1], subtractFirst(diskimage.AlignExtents(out[1:], sector, size), out[0].End())...)
}

// subtractFirst cuts [0, end) from sorted extents.
func subtractFirst(extents []diskimage.Extent, end int64) (out []diskimage.Extent) {
	for _, e := range extents {
		if cut := max(e.Off, end); cut < e.End() {
			out = append(out, diskimage.Extent{Off: cut, Len: e.End() - cut})
		}
	}
	return out
}
