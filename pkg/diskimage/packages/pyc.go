package packages

import (
	"encoding/binary"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// PEP 552: a .pyc starts with four little-endian words. The second is a set of
// flags; if it is 0, the third is the source's mtime (its low 32 bits) and the
// fourth its size, and Python recompiles at every start when they do not match.
const (
	pycHeader = 16
	// firstMagic is the first magic number of a Python with these flags, 3.7.
	firstMagic = 3390
)

// clampPyc returns the contents of a compiled Python file after its source's
// time is clamped to epoch; nil if they stay as they are.
func clampPyc(t *tree.Tree, e tree.Entry, epoch time.Time) (diskimage.Disk, error) {
	src := PycSource(t, e.Path)
	if src == nil || !src.MTime.After(epoch) {
		return nil, nil
	}
	return RetimePyc(e.Inode, src.MTime, epoch)
}

// RetimePyc returns the contents of a compiled Python file after its source's time
// changed from was to now; nil if they stay as they are, since the file was not
// valid by that time.
func RetimePyc(n *tree.Inode, was, now time.Time) (diskimage.Disk, error) {
	size := n.Size()
	if size < pycHeader {
		return nil, nil
	}
	h := make([]byte, pycHeader)
	if m, err := n.Data.ReadAt(h, 0); m < len(h) {
		return nil, fmt.Errorf("header of compiled Python: %w", err)
	}
	le := binary.LittleEndian
	if string(h[2:4]) != "\r\n" || le.Uint16(h) < firstMagic || le.Uint32(h[4:]) != 0 ||
		le.Uint32(h[8:]) != uint32(was.Unix()) {
		return nil, nil // another format, checked by hash, or stale already
	}
	le.PutUint32(h[8:], uint32(now.Unix()))
	return diskimage.Join(size,
		diskimage.Part{Off: 0, Disk: diskimage.Bytes(h)},
		diskimage.Part{Off: pycHeader, Disk: diskimage.Section(n.Data, pycHeader, size-pycHeader)})
}

// PycSource returns the source of a compiled file (PEP 3147): __pycache__/a.TAG.pyc
// is of ../a.py, a.pyc is of a.py beside it; nil if it is not there.
func PycSource(t *tree.Tree, p string) *tree.Inode {
	dir, name := path.Split(p)
	name = strings.TrimSuffix(name, ".pyc")
	if path.Base(dir) == "__pycache__" {
		dir = path.Dir(path.Clean(dir))
		name, _, _ = strings.Cut(name, ".")
	}
	src, err := t.Resolve(path.Join(dir, name+".py"))
	if err != nil {
		return nil
	}
	return t.Get(src)
}
