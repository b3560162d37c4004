// Package fatfs reads FAT12, FAT16 and FAT32 volumes, whoever wrote them, as trees.
//
//	fs, err := fatfs.Open(io.NewSectionReader(disk, p.Extent.Off, p.Extent.Len))
//	t, err := fs.Tree()                     // a *tree.Tree; no file is read
//	uki := t.Get("/EFI/BOOT/BOOTX64.EFI")   // its Data is a *mapped.File
//
// FAT knows no owners and modes: everything belongs to 0:0 and has mode 0755,
// or 0555 where it is read-only, as Linux mounts it by default. Times are taken
// for UTC. Bytes beyond ASCII of short names are taken for code page 437.
//
// It guarantees that reading a damaged or hostile volume ends with an error or
// a tree, never with a panic or without end: no file has a cluster twice, and
// all together visit no more clusters than there are. It follows Microsoft's "FAT: General Overview of On-Disk Format"
// 1.03 (fatgen103).
package fatfs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
)

var le = binary.LittleEndian

// FS is an opened volume. It is safe for concurrent use.
type FS struct {
	disk     io.ReaderAt
	width    int   // bits of an entry of the table: 12, 16 or 32
	cluster  int64 // bytes
	clusters int64
	fat      diskimage.Extent // the table that counts
	root     diskimage.Extent // of FAT12 and FAT16
	rootAt   int64            // first cluster of FAT32's root
	data     int64            // where cluster 2 lies
	size     int64
	label    string
	id       uint32

	taken atomic.Int64 // clusters that were visited

	mu     sync.Mutex // guards the page of the table that was read last
	pageAt int64
	page   []byte
}

// Open reads the boot sector of the volume at the start of disk.
func Open(disk io.ReaderAt) (*FS, error) {
	b := make([]byte, 512)
	if n, err := disk.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("boot sector: %w", unexpected(err))
	}
	u16 := func(i int) int64 { return int64(le.Uint16(b[i:])) }
	u32 := func(i int) int64 { return int64(le.Uint32(b[i:])) }
	sector, perCluster := u16(11), int64(b[13])
	if b[510] != 0x55 || b[511] != 0xaa || sector < 512 || sector > 4096 || bits.OnesCount64(uint64(sector)) != 1 ||
		bits.OnesCount64(uint64(perCluster)) != 1 {
		return nil, errors.New("no FAT filesystem")
	}
	fat, total, fats := u16(22), u16(19), int64(b[16])
	ext := 36
	if fat == 0 {
		fat, ext = u32(36), 64
	}
	if total == 0 {
		total = u32(32)
	}
	rootSectors := (u16(17)*32 + sector - 1) / sector
	first := u16(14) + fats*fat + rootSectors
	fs := &FS{disk: disk, cluster: sector * perCluster, clusters: (total - first) / perCluster, size: total * sector, data: first * sector,
		fat: diskimage.Extent{Off: u16(14) * sector, Len: fat * sector}, id: le.Uint32(b[ext+3:]), pageAt: -1}
	if fat == 0 || fats == 0 || u16(14) == 0 || total <= first || fs.clusters == 0 {
		return nil, errors.New("boot sector: its counts do not fit each other")
	}
	switch { // fatgen103 "FAT Type Determination"
	case fs.clusters < 4085:
		fs.width = 12
	case fs.clusters < 65525:
		fs.width = 16
	default:
		fs.width = 32
	}
	if (fs.width == 32) != (ext == 64) || fs.fat.Len*8/int64(fs.width) < fs.clusters+2 {
		return nil, fmt.Errorf("boot sector: FAT%d with a table of %d bytes for %d clusters", fs.width, fs.fat.Len, fs.clusters)
	}
	if fs.width == 32 {
		fs.rootAt = u32(44)
		if flags := u16(40); flags&0x80 != 0 { // only one table is kept up to date
			fs.fat.Off += min(flags&0xf, fats-1) * fs.fat.Len
		}
	} else {
		fs.root = diskimage.Extent{Off: (u16(14) + fats*fat) * sector, Len: u16(17) * 32}
	}
	fs.label = strings.TrimRight(string(b[ext+7:ext+18]), " ")
	return fs, nil
}

// Size returns the length of the volume in bytes.
func (fs *FS) Size() int64 { return fs.size }

// Type returns fat12, fat16 or fat32.
func (fs *FS) Type() string { return fmt.Sprintf("fat%d", fs.width) }

// Label returns the name of the volume as the boot sector has it.
func (fs *FS) Label() string { return fs.label }

// UUID returns the volume's serial number as blkid prints it.
func (fs *FS) UUID() string { return fmt.Sprintf("%04X-%04X", fs.id>>16, fs.id&0xffff) }

func (fs *FS) read(p []byte, off int64) error {
	if (diskimage.Extent{Off: off, Len: int64(len(p))}).Validate(fs.size) != nil {
		return fmt.Errorf("bytes %d-%d lie beyond the volume's end", off, off+int64(len(p)))
	}
	if n, err := fs.disk.ReadAt(p, off); n < len(p) {
		return unexpected(err)
	}
	return nil
}

func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next returns the table's entry of a cluster.
func (fs *FS) next(cluster int64) (int64, error) {
	at := cluster * int64(fs.width) / 8
	n := 2
	if fs.width == 32 {
		n = 4
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.pageAt < 0 || at < fs.pageAt || at+int64(n) > fs.pageAt+int64(len(fs.page)) {
		fs.pageAt = -1
		fs.page = make([]byte, min(4096, fs.fat.Len-at))
		if err := fs.read(fs.page, fs.fat.Off+at); err != nil {
			return 0, fmt.Errorf("table: %w", err)
		}
		fs.pageAt = at
	}
	b := fs.page[at-fs.pageAt:]
	switch {
	case len(b) < n:
		return 0, errors.New("table: ends inside an entry")
	case fs.width == 32:
		return int64(le.Uint32(b) & 0x0fffffff), nil
	case fs.width == 16:
		return int64(le.Uint16(b)), nil
	case cluster%2 == 1:
		return int64(le.Uint16(b) >> 4), nil
	}
	return int64(le.Uint16(b) & 0xfff), nil
}

// chain returns where the clusters from first on lie, at most the given bytes.
func (fs *FS) chain(first, limit int64) ([]mapped.Run, error) {
	end := int64(0x0ffffff8) >> (28 - min(fs.width, 28)) // 0xff8, 0xfff8, 0x0ffffff8
	var runs []mapped.Run
	for off, c := int64(0), first; off < limit; off += fs.cluster {
		if c >= end && off > 0 {
			break
		}
		if c < 2 || c >= fs.clusters+2 {
			return nil, fmt.Errorf("cluster %d of %d", c, fs.clusters)
		}
		if fs.taken.Add(1) > fs.clusters {
			return nil, errors.New("clusters belong to two files, or to one twice")
		}
		at := fs.data + (c-2)*fs.cluster
		if k := len(runs) - 1; k >= 0 && runs[k].At+runs[k].Len == at {
			runs[k].Len += fs.cluster
		} else {
			runs = append(runs, mapped.Run{Off: off, At: at, Len: fs.cluster})
		}
		var err error
		if c, err = fs.next(c); err != nil {
			return nil, err
		}
	}
	byPlace := slices.Clone(runs)
	slices.SortFunc(byPlace, func(a, b mapped.Run) int { return cmp.Compare(a.At, b.At) })
	for i := 1; i < len(byPlace); i++ {
		if byPlace[i-1].At+byPlace[i-1].Len > byPlace[i].At {
			return nil, errors.New("a chain of clusters that comes back to itself")
		}
	}
	return runs, nil
}
