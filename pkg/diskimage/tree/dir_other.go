//go:build !linux

package tree

import (
	"io/fs"
	"os"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func attrsOf(fs.FileInfo) hostAttrs { return hostAttrs{} }

func dataExtents(_ *os.File, size int64) ([]diskimage.Extent, error) {
	return []diskimage.Extent{{Off: 0, Len: size}}, nil
}

func xattrsOf(*os.Root, string) (map[string]string, error) { return nil, nil }
