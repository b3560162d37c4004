package evidence

import (
	"context"
	"crypto/sha1" //nolint:gosec // SPDX 2.3 demands it beside SHA-256 (section 8.4)
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// File is one regular file of an image.
type File struct {
	Path    string // absolute, in the image's tree
	Package string // the name of the package whose it is; "" for none
	SHA1    [sha1.Size]byte
	SHA256  diskimage.Digest
}

// hashBuffer is what one worker reads at a time.
const hashBuffer = 256 << 10

// HashFiles reads every regular file of a tree and returns them by path. Hard
// links are read once. owner says whose a path is, "" for nobody's. Besides the
// result it needs 256 KiB for each worker.
func HashFiles(ctx context.Context, t *tree.Tree, owner func(path string) string, workers int) ([]File, error) {
	var files []File
	var inodes []*tree.Inode
	first := map[*tree.Inode]int{} // index in inodes
	var of []int                   // for each file
	for e := range t.All() {
		if e.Inode.Kind != tree.Regular {
			continue
		}
		i, seen := first[e.Inode]
		if !seen {
			i = len(inodes)
			first[e.Inode] = i
			inodes = append(inodes, e.Inode)
		}
		files, of = append(files, File{Path: e.Path, Package: owner(e.Path)}), append(of, i)
	}
	hashes := make([]fileHash, len(inodes))
	if err := eachInode(ctx, inodes, hashes, workers); err != nil {
		return nil, err
	}
	for i := range files {
		h := hashes[of[i]]
		if h.err != nil {
			return nil, fmt.Errorf("%s: %w", files[i].Path, h.err)
		}
		files[i].SHA1, files[i].SHA256 = h.sha1, h.sha256
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

type fileHash struct {
	sha1   [sha1.Size]byte
	sha256 diskimage.Digest
	err    error
}

// eachInode hashes inodes on some workers; results go to their index.
func eachInode(ctx context.Context, inodes []*tree.Inode, hashes []fileHash, workers int) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(max(workers, 1), max(len(inodes), 1)) {
		wg.Go(func() {
			buf := make([]byte, hashBuffer)
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(inodes) {
					return
				}
				hashes[i] = hashDisk(inodes[i].Data, buf)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

func hashDisk(d diskimage.Disk, buf []byte) (out fileHash) {
	one, two := sha1.New(), sha256.New() //nolint:gosec // see the import
	if d != nil {
		r := io.NewSectionReader(d, 0, d.Size())
		n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(one, two)}, struct{ io.Reader }{r}, buf)
		if err == nil && n != d.Size() {
			err = io.ErrUnexpectedEOF
		}
		out.err = err
	}
	one.Sum(out.sha1[:0])
	two.Sum(out.sha256[:0])
	return out
}
