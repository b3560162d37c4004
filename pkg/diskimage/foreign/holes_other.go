//go:build !linux

package foreign

import (
	"os"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// dataExtents takes the whole file for data.
func dataExtents(_ *os.File, size int64) ([]diskimage.Extent, error) {
	return []diskimage.Extent{{Off: 0, Len: size}}, nil
}
