package diskimage

import (
	"fmt"
	"slices"
	"strconv"
)

// Table is the partition table of a disk: what a GPT says, in bytes rather
// than sectors. Package gpt turns it into a GPT and back.
type Table struct {
	DiskGUID   GUID        `json:"diskGUID"`
	DiskSize   int64       `json:"diskSize"`   // bytes
	SectorSize int64       `json:"sectorSize"` // logical sector in bytes: 512 or 4096
	Partitions []Partition `json:"partitions"` // in disk order
}

// Partition is one entry of a Table.
type Partition struct {
	Name       string     `json:"name"` // GPT name, at most 36 UTF-16 units
	Type       GUID       `json:"type"`
	GUID       GUID       `json:"guid"` // PARTUUID
	Attributes Attributes `json:"attributes,omitzero"`
	Number     int        `json:"number,omitempty"` // the kernel's, from 1; 0 is the place in the table
	Extent     Extent     `json:"extent"`
	Role       Role       `json:"role,omitempty"`
	Grow       bool       `json:"grow,omitempty"` // reaches to the end of the disk it is written to
	Filesystem Filesystem `json:"filesystem,omitzero"`
}

// Filesystem describes what a partition holds. The zero value means nothing.
type Filesystem struct {
	Type  string `json:"type"` // ext4, fat12, fat16, fat32, …
	Label string `json:"label,omitempty"`
	UUID  string `json:"uuid,omitempty"` // as blkid prints it
}

// Role says what imgpipe uses a partition for.
type Role string

// The roles of partitions.
const (
	RoleESP    Role = "esp"    // EFI system partition
	RoleConfig Role = "config" // per-machine config: a NoCloud seed labelled CIDATA
	RoleRoot   Role = "root"   // the root filesystem; of two, the first has one
	RoleVerity Role = "verity" // the hashes of a root that nothing writes to
	RoleBIOS   Role = "bios"   // GRUB's core
	RoleSwap   Role = "swap"
	RoleData   Role = "data" // anything else
)

// Partition type GUIDs: UEFI 2.10 table 5.7, the Discoverable Partitions
// Specification (uapi-group.org), and Microsoft's basic data partition.
var (
	TypeESP        = MustGUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
	TypeBasicData  = MustGUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
	TypeLinuxData  = MustGUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
	TypeRootX86_64 = MustGUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
	TypeRootARM64  = MustGUID("b921b045-1df0-41c3-af44-4c6f280d3fae")
	TypeBIOSBoot   = MustGUID("21686148-6449-6e6f-744e-656564454649")
	TypeSwap       = MustGUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")
	TypeXBOOTLDR   = MustGUID("bc13c2ff-59e6-4262-a352-b275fd6f7172") // /boot
	TypeHome       = MustGUID("933ac7e1-2eb4-4f13-b844-0e14e2aef915") // /home
	TypeSrv        = MustGUID("3b8f8425-20e0-4f3b-907f-1a25a76f98e8") // /srv
	TypeVar        = MustGUID("4d21b016-b534-45c2-a9fb-5c16e091fd2d") // /var
	TypeVarTmp     = MustGUID("7ec6f557-3bc5-4aca-b293-16ef5df639d1") // /var/tmp

	TypeRootVerityX86_64 = MustGUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")
	TypeRootVerityARM64  = MustGUID("df3300ce-d69f-4c92-978c-9bfb0f38d820")
)

// Attributes are the 64 attribute bits of a GPT entry. Their text form is
// hexadecimal, since JSON numbers do not hold them.
type Attributes uint64

// Attribute bits: UEFI 2.10 table 5.8, and the Discoverable Partitions
// Specification, which shares its bits with Microsoft.
const (
	AttrRequired    Attributes = 1 << 0  // the platform needs the partition
	AttrGrowFS      Attributes = 1 << 59 // the filesystem grows when it is mounted
	AttrNoAutoMount Attributes = 1 << 63
)

// MarshalText implements encoding.TextMarshaler: 0x and hexadecimal digits.
func (a Attributes) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#x", uint64(a)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Attributes) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 0, 64)
	if err != nil {
		return fmt.Errorf("partition attributes %q: %w", b, err)
	}
	*a = Attributes(n)
	return nil
}

// Find returns the first partition with the given role, or nil.
func (t *Table) Find(role Role) *Partition {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Role == role })
	if i < 0 {
		return nil
	}
	return &t.Partitions[i]
}

// Validate checks that the sizes are whole sectors and that the partitions are
// in order, aligned to sectors, on the disk, and apart from each other.
func (t *Table) Validate() error {
	if t.SectorSize != 512 && t.SectorSize != 4096 {
		return fmt.Errorf("sector size %d: want 512 or 4096", t.SectorSize)
	}
	if t.DiskSize <= 0 || t.DiskSize%t.SectorSize != 0 {
		return fmt.Errorf("disk size %d is not a positive multiple of the %d-byte sector", t.DiskSize, t.SectorSize)
	}
	end := int64(0)
	for i, p := range t.Partitions {
		if err := p.Extent.Validate(t.DiskSize); err != nil {
			return fmt.Errorf("partition %d (%s): %w", i+1, p.Name, err)
		}
		if p.Extent.Len == 0 || p.Extent.Off%t.SectorSize != 0 || p.Extent.Len%t.SectorSize != 0 {
			return fmt.Errorf("partition %d (%s): extent %v is empty or not whole sectors", i+1, p.Name, p.Extent)
		}
		if p.Extent.Off < end {
			return fmt.Errorf("partition %d (%s): extent %v starts before the previous one ends at %d", i+1, p.Name, p.Extent, end)
		}
		if p.Grow && i != len(t.Partitions)-1 {
			return fmt.Errorf("partition %d (%s): grows, but is not the last", i+1, p.Name)
		}
		end = p.Extent.End()
	}
	return nil
}
