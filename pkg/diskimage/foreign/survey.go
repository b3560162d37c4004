package foreign

import (
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// Survey is what a disk says about itself.
type Survey struct {
	Table      *diskimage.Table     // of a GPT that can be read; else nil
	MBR        *diskimage.MBR       // of an MBR that can be read, and protects no GPT; else nil
	Filesystem diskimage.Filesystem // of a disk that is one filesystem, without partitions
	Archs      []string             // that partition types and boot programs are for: amd64, arm64
	Notes      []string             // for people: what is damaged, or not there
}

// SectorSize guesses the logical sector of a disk: 4096 where only that has a
// GPT, else 512.
func SectorSize(r io.ReaderAt, size int64) int64 {
	for _, sector := range []int64{512, 4096} {
		if _, err := gpt.Parse(r, size/sector*sector, sector); err == nil {
			return sector
		}
	}
	for _, sector := range []int64{512, 4096} { // damaged, but there
		var b [8]byte
		if _, err := r.ReadAt(b[:], sector); err == nil && string(b[:]) == "EFI PART" {
			return sector
		}
	}
	return 512
}

// Look reads the partition table of a disk and what each partition holds, and
// nothing else. It never fails: what cannot be read is left out, with a note. No
// partition gets Grow: a GPT does not say that.
func Look(disk diskimage.Disk, sectorSize int64) *Survey {
	s := new(Survey)
	table, err := gpt.Parse(disk, disk.Size(), sectorSize)
	switch {
	case err == nil:
		s.Table = table
		for i := range table.Partitions {
			s.partition(disk, &table.Partitions[i])
		}
		if err := gpt.Check(disk, disk.Size(), sectorSize); err != nil {
			s.note(err.Error())
		}
		return s
	case !errors.Is(err, gpt.ErrNone):
		s.note("the partition table cannot be read and is left out: " + err.Error())
		return s
	}
	fs := Probe(disk, disk.Size())
	s.MBR, err = parseMBR(disk, disk.Size(), sectorSize)
	switch {
	case err == nil:
		for i := range s.MBR.Partitions {
			p := &s.MBR.Partitions[i]
			p.Filesystem = Probe(io.NewSectionReader(disk, p.Extent.Off, p.Extent.Len), p.Extent.Len)
			if p.Type == 0xef {
				s.arch(disk, p.Extent)
			}
		}
	case fs.Type != "":
		s.Filesystem = fs
	case errors.Is(err, errNoMBR):
		s.note("there is no partition table and no filesystem that is known here")
	default:
		s.note("the partition table cannot be read and is left out: " + err.Error())
	}
	return s
}

func (s *Survey) note(text string) { s.Notes = append(s.Notes, text) }

// partition fills in what a partition of a GPT holds, and what it is for.
func (s *Survey) partition(disk diskimage.Disk, p *diskimage.Partition) {
	p.Filesystem = Probe(io.NewSectionReader(disk, p.Extent.Off, p.Extent.Len), p.Extent.Len)
	switch {
	case p.Type == diskimage.TypeESP:
		s.arch(disk, p.Extent)
	case p.Type == diskimage.TypeRootX86_64:
		p.Role = diskimage.RoleRoot
		s.is("amd64")
	case p.Type == diskimage.TypeRootARM64:
		p.Role = diskimage.RoleRoot
		s.is("arm64")
	case strings.HasPrefix(p.Filesystem.Type, "fat") && strings.EqualFold(p.Filesystem.Label, "CIDATA"):
		p.Role = diskimage.RoleConfig
	case p.Type == diskimage.TypeLinuxData:
		p.Role = diskimage.RoleData
	}
}

// arch looks for the programs that firmware starts on removable media: UEFI
// 2.10, table 3.6.
func (s *Survey) arch(disk diskimage.Disk, esp diskimage.Extent) {
	v, err := openFAT(io.NewSectionReader(disk, esp.Off, esp.Len), 0)
	if err != nil {
		return
	}
	if v.has("EFI        ", "BOOT       ", "BOOTX64 EFI") {
		s.is("amd64")
	}
	if v.has("EFI        ", "BOOT       ", "BOOTAA64EFI") {
		s.is("arm64")
	}
}

// is notes one sign of an architecture.
func (s *Survey) is(arch string) {
	if !slices.Contains(s.Archs, arch) {
		s.Archs = append(s.Archs, arch)
	}
}
