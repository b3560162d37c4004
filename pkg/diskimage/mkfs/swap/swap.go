// Package swap makes swap areas, as mkswap does.
//
//	d, err := swap.New(swap.Options{Size: 1 << 30, UUID: uuid})
//
// An area is a page with a header (Linux, include/linux/swap.h, union
// swap_header, version 1) and pages whose contents mean nothing; here they are
// zeros. Pages are of 4096 bytes, and so is what a kernel has that uses it.
package swap

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const (
	page     = 4096
	version  = 1
	minPages = 10 // mkswap(8)
	maxLabel = 16
)

// Options say what an area is like.
type Options struct {
	Size  int64 // bytes; what is beyond whole pages is not used
	UUID  diskimage.GUID
	Label string // at most 16 bytes
}

// New returns a swap area.
func New(o Options) (diskimage.Disk, error) {
	pages := o.Size / page
	switch {
	case pages < minPages || pages-1 > math.MaxUint32:
		return nil, fmt.Errorf("swap: %d bytes: want %d pages of %d bytes, to 2^32", o.Size, minPages, page)
	case len(o.Label) > maxLabel:
		return nil, fmt.Errorf("swap: label %q: longer than %d bytes", o.Label, maxLabel)
	}
	b := make([]byte, page)
	le := binary.LittleEndian
	le.PutUint32(b[1024:], version)
	le.PutUint32(b[1028:], uint32(pages-1)) // the last page; no bad ones follow
	copy(b[1036:], o.UUID[:])
	copy(b[1052:], o.Label)
	copy(b[page-10:], "SWAPSPACE2")
	return diskimage.Join(o.Size, diskimage.Part{Disk: diskimage.Bytes(b)})
}
