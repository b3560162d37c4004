package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/decompress"
)

// MaxEntries is how many paths reading a tar may make: a bound on memory (about
// half a kilobyte each), not a promise of any filesystem.
const MaxEntries = 4 << 20

// FromTar returns the tree that an uncompressed tar of size bytes holds. Only
// headers are read; contents stay in r, which must stay readable and unchanged
// as long as the tree is used. A compressed one is
// an error that names the compression.
//
// It reads v7, ustar, GNU and pax archives (POSIX.1-2017 pax, GNU tar manual
// "Basic Tar Format"): long names, times to the nanosecond, numeric owners
// (names are ignored), hard links, devices, fifos, xattrs in SCHILY.xattr and
// RHT.security.selinux records, and every GNU sparse format, whose holes are
// gaps between Extents. A later entry replaces an earlier one; a directory keeps
// its children. An absolute name is taken from the root; a name that leaves the
// tree is an error that names the entry. A parent that is a symlink is followed
// inside the tree. A POSIX ACL that is there as text only (SCHILY.acl, without the
// xattr) and says more than the mode is an error: to lose it in silence would
// change who has access.
func FromTar(r io.ReaderAt, size int64) (*Tree, error) {
	t := New()
	if err := t.ApplyTar(r, size); err != nil {
		return nil, err
	}
	return t, nil
}

// ApplyTar lays the entries of a tar, as FromTar reads them, over the tree. A
// hard link may name a file that the tree already has. Whiteouts are ordinary
// files here: see ApplyLayer. On an error the tree is as before.
func (t *Tree) ApplyTar(r io.ReaderAt, size int64) error {
	entries, err := readTar(r, size)
	if err != nil {
		return err
	}
	next := t.Clone()
	if err := next.applyEntries(entries); err != nil {
		return err
	}
	t.root = next.root
	return nil
}

// tarEntry is one entry of a tar: an inode, or a hard link to another path.
type tarEntry struct {
	name  string // as the archive has it, for errors
	path  string // clean
	inode *Inode // nil for a hard link
	link  string // clean path of a hard link's file
}

func (t *Tree) applyEntries(entries []tarEntry) error {
	made := 0
	for _, e := range entries {
		p, err := t.ResolveParent(e.path)
		if err != nil {
			return fmt.Errorf("tar: entry %q: %w", e.name, err)
		}
		inode := e.inode
		if inode == nil {
			if inode, err = t.linked(e.link); err != nil {
				return fmt.Errorf("tar: entry %q: hard link to %q: %w", e.name, e.link, err)
			}
		}
		n, err := t.put(p, inode)
		if err != nil {
			return fmt.Errorf("tar: entry %q: %w", e.name, err)
		}
		if made += n; made > MaxEntries {
			return fmt.Errorf("tar: entry %q: more than %d paths", e.name, MaxEntries)
		}
	}
	return nil
}

// linked returns the inode that a hard link's name means.
func (t *Tree) linked(link string) (*Inode, error) {
	p, err := t.ResolveParent(link)
	if err != nil {
		return nil, err
	}
	switch n := t.lookup(p); {
	case n == nil:
		return nil, errors.New("no such file")
	case n.inode.Kind == Dir:
		return nil, errors.New("is a directory")
	default:
		return n.inode, nil
	}
}

// compression names how the file is compressed, or is "".
func compression(r io.ReaderAt) string {
	var head [6]byte
	n, _ := r.ReadAt(head[:], 0)
	return decompress.Format(head[:n])
}

// readTar reads all headers, and no contents.
func readTar(r io.ReaderAt, size int64) ([]tarEntry, error) {
	c := &cursor{r: r, size: size}
	reader := tar.NewReader(c)
	var entries []tarEntry
	last := "" // name
	for {
		c.header = -1
		h, err := reader.Next()
		switch {
		case err == io.EOF:
			return entries, nil
		case err != nil && !errors.Is(err, tar.ErrInsecurePath): // judged by CleanPath below
			if format := compression(r); format != "" && last == "" {
				return nil, fmt.Errorf("tar: is compressed with %s: decompress it first", format)
			}
			return nil, fmt.Errorf("tar: after entry %q: %w", last, err)
		}
		last = h.Name
		e, err := tarFile(c, h)
		if err != nil {
			return nil, fmt.Errorf("tar: entry %q: %w", last, err)
		}
		if e.path == "" {
			continue
		}
		if len(entries) == MaxEntries {
			return nil, fmt.Errorf("tar: entry %q: more than %d entries", last, MaxEntries)
		}
		entries = append(entries, e)
	}
}

// tarFile makes an entry of a header, c standing at the first byte of its data.
// Its path is empty for what is no file.
func tarFile(c *cursor, h *tar.Header) (e tarEntry, err error) {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return e, checkGlobal(h.PAXRecords)
	case 'V': // a GNU volume label
		return e, nil
	}
	e.name = h.Name
	if e.path, err = CleanPath(h.Name); err != nil {
		return e, err
	}
	if h.Typeflag == tar.TypeLink {
		e.link, err = CleanPath(h.Linkname)
		return e, err
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > math.MaxUint32 || int64(h.Gid) > math.MaxUint32 {
		return e, fmt.Errorf("owner %d:%d is not a pair of 32-bit numbers", h.Uid, h.Gid)
	}
	n := &Inode{
		Mode: uint16(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid), MTime: h.ModTime.UTC(),
	}
	e.inode = n
	if n.Xattrs, err = tarXattrs(h.PAXRecords); err != nil {
		return e, err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		n.Data, err = tarData(c, h)
	case tar.TypeDir:
		n.Kind = Dir
	case tar.TypeSymlink:
		n.Kind, n.Target = Symlink, h.Linkname
		if n.Target == "" || len(n.Target) > MaxPath || strings.IndexByte(n.Target, 0) >= 0 {
			err = fmt.Errorf("symlink target %.80q of %d bytes: want 1 to %d, none of them NUL", n.Target, len(n.Target), MaxPath)
		}
	case tar.TypeChar, tar.TypeBlock:
		n.Kind = CharDevice
		if h.Typeflag == tar.TypeBlock {
			n.Kind = BlockDevice
		}
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 { // Linux's dev_t
			return e, fmt.Errorf("device %d:%d: want at most 4095:1048575", h.Devmajor, h.Devminor)
		}
		n.Major, n.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	case tar.TypeFifo:
		n.Kind = Fifo
	default:
		err = fmt.Errorf("unknown type %q", h.Typeflag)
	}
	return e, err
}

// checkGlobal refuses a global pax header that would change files: archive/tar
// does not apply it. Those of git and of GNU tar carry comments only.
func checkGlobal(records map[string]string) error {
	for k := range records {
		if k != "comment" && k != "hdrcharset" && k != "atime" && k != "ctime" && k != "uname" && k != "gname" {
			return fmt.Errorf("global pax header sets %q, which is not supported", k)
		}
	}
	return nil
}

const (
	paxXattr   = "SCHILY.xattr."        // star, GNU tar, bsdtar, docker
	paxSelinux = "RHT.security.selinux" // GNU tar --selinux
	paxACL     = "SCHILY.acl."          // star, GNU tar --acls
)

// GNU tar escapes what a pax keyword cannot hold.
var (
	xattrEscape   = strings.NewReplacer("%", "%25", "=", "%3D")
	xattrUnescape = strings.NewReplacer("%25", "%", "%3D", "=")
)

func tarXattrs(records map[string]string) (map[string]string, error) {
	var xattrs map[string]string
	for k, v := range records {
		name, ok := strings.CutPrefix(k, paxXattr)
		switch {
		case ok && name == "":
			return nil, errors.New("an xattr without a name")
		case ok:
			name = xattrUnescape.Replace(name)
		case k == paxSelinux:
			name = "security.selinux"
		case strings.HasPrefix(k, paxACL) && !redundantACL(records, k):
			return nil, fmt.Errorf("a POSIX ACL as text (%s) is not supported: write the archive with --xattrs --xattrs-include='*'", k)
		default:
			continue
		}
		if xattrs == nil {
			xattrs = map[string]string{}
		}
		xattrs[name] = v
	}
	return xattrs, nil
}

// redundantACL reports whether an ACL in text form says nothing that the xattr
// beside it or the mode does not say.
func redundantACL(records map[string]string, key string) bool {
	which := key[len(paxACL):]
	if _, ok := records[paxXattr+"system.posix_acl_"+which]; ok {
		return true
	}
	for entry := range strings.FieldsFuncSeq(records[key], func(r rune) bool { return r == '\n' || r == ',' }) {
		base := strings.HasPrefix(entry, "user::") || strings.HasPrefix(entry, "group::") || strings.HasPrefix(entry, "other::")
		if which != "access" || !base {
			return false
		}
	}
	return true
}

// tarData returns the contents of a file, which start at c.
func tarData(c *cursor, h *tar.Header) (diskimage.Disk, error) {
	stored := diskimage.Extent{Off: c.off, Len: h.Size}
	sparse, err := sparseMap(c, h)
	if err != nil {
		return nil, err
	}
	if sparse == nil {
		if err := stored.Validate(c.size); err != nil {
			return nil, fmt.Errorf("cut short: %w", err)
		}
		if h.Size == 0 {
			return nil, nil
		}
		return diskimage.Section(c.r, c.off, h.Size), nil
	}
	off := c.off
	parts := make([]diskimage.Part, 0, len(sparse))
	for _, x := range slices.DeleteFunc(sparse, func(x diskimage.Extent) bool { return x.Len == 0 }) {
		if err := (diskimage.Extent{Off: off, Len: x.Len}).Validate(c.size); err != nil {
			return nil, fmt.Errorf("cut short: %w", err)
		}
		parts = append(parts, diskimage.Part{Off: x.Off, Disk: diskimage.Section(c.r, off, x.Len)})
		off += x.Len
	}
	if h.Size == 0 {
		return nil, nil
	}
	return diskimage.Join(h.Size, parts...)
}

// cursor is a seekable reader over r with a small window, so that a header costs
// one read and contents none: archive/tar seeks past them.
type cursor struct {
	r      io.ReaderAt
	size   int64
	off    int64 // of the next byte
	header int64 // of the first block read since it was last set to -1
	window [4096]byte
	start  int64 // of the window
	filled int
}

func (c *cursor) Read(p []byte) (int, error) {
	if c.off >= c.size {
		return 0, io.EOF
	}
	if c.header < 0 && len(p) == blockSize {
		c.header = c.off
	}
	if c.off < c.start || c.off >= c.start+int64(c.filled) {
		want := min(int64(len(c.window)), c.size-c.off)
		n, err := c.r.ReadAt(c.window[:want], c.off)
		c.start, c.filled = c.off, n
		if n == 0 {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
	n := copy(p, c.window[c.off-c.start:c.filled])
	c.off += int64(n)
	return n, nil
}

func (c *cursor) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || off < 0 || off > math.MaxInt64-c.off {
		return c.off, fmt.Errorf("seek by %d from %d", off, c.off)
	}
	c.off += off
	return c.off, nil
}
