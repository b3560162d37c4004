package foreign

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const (
	holeMin    = 64 << 10 // holes shorter than this are read as zeros
	maxExtents = 1 << 18
)

// dataExtents returns where a file of size bytes has data: lseek(2), SEEK_DATA
// and SEEK_HOLE. A filesystem that does not know holes has data everywhere.
func dataExtents(f *os.File, size int64) (out []diskimage.Extent, err error) {
	grain := int64(holeMin)
	for size/grain > maxExtents {
		grain *= 2
	}
	for off := int64(0); off < size; {
		data, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only holes follow
		}
		if err != nil || data < off {
			return []diskimage.Extent{{Off: 0, Len: size}}, nil
		}
		if data >= size {
			break
		}
		hole, err := f.Seek(data, unix.SEEK_HOLE)
		if err != nil || hole <= data {
			return []diskimage.Extent{{Off: 0, Len: size}}, nil
		}
		e := diskimage.Extent{Off: data, Len: min(hole, size) - data}
		if n := len(out); n > 0 && e.Off-out[n-1].End() < grain {
			out[n-1].Len = e.End() - out[n-1].Off
		} else {
			out = append(out, e)
		}
		off = hole
	}
	_, err = f.Seek(0, 0)
	return out, err
}
