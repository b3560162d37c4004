package tree

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
)

// Equal reports whether Diff and DiffContents find nothing.
func Equal(a, b *Tree) bool { return len(DiffContents(a, b)) == 0 }

// Diff lists how the metadata of b differ from those of a, one line for each
// attribute in the order of All ("/etc/motd: mode 0644, now 0600"): existence,
// kind, mode, owner, mtime, xattrs, target, device, size, and which paths are
// hard links of each other. Holes and cluster keys are not compared; the zero
// time equals 1970-01-01.
func Diff(a, b *Tree) []string { return diff(a, b, false) }

// DiffContents is Diff and compares the contents of files too. Contents that
// cannot be read are a difference.
func DiffContents(a, b *Tree) []string { return diff(a, b, true) }

type differ struct {
	contents       bool
	out            []string
	firstA, firstB map[*Inode]string
	bufA, bufB     []byte
}

func diff(a, b *Tree, contents bool) []string {
	d := &differ{contents: contents, firstA: map[*Inode]string{}, firstB: map[*Inode]string{}}
	d.nodes("/", a.root, b.root)
	return d.out
}

func (d *differ) add(p, format string, args ...any) {
	quoted := strconv.Quote(p) // a name may hold anything
	d.out = append(d.out, quoted[1:len(quoted)-1]+": "+fmt.Sprintf(format, args...))
}

func (d *differ) nodes(p string, a, b *node) {
	switch {
	case a == nil:
		d.add(p, "new %s", b.inode.Kind)
		return
	case b == nil:
		d.add(p, "%s is gone", a.inode.Kind)
		return
	}
	d.inodes(p, a.inode, b.inode)
	names := append(a.names(), b.names()...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		d.nodes(path.Join(p, name), a.children[name], b.children[name])
	}
}

func (d *differ) inodes(p string, a, b *Inode) {
	if a.Kind != b.Kind {
		d.add(p, "%s, now %s", a.Kind, b.Kind)
		return
	}
	if a.Mode != b.Mode {
		d.add(p, "mode %04o, now %04o", a.Mode, b.Mode)
	}
	if a.UID != b.UID || a.GID != b.GID {
		d.add(p, "owner %d:%d, now %d:%d", a.UID, a.GID, b.UID, b.GID)
	}
	if x, y := tarTime(a.MTime), tarTime(b.MTime); !x.Equal(y) {
		d.add(p, "mtime %d.%09d, now %d.%09d", x.Unix(), x.Nanosecond(), y.Unix(), y.Nanosecond())
	}
	names := append(slices.Collect(maps.Keys(a.Xattrs)), slices.Collect(maps.Keys(b.Xattrs))...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		x, inA := a.Xattrs[name]
		y, inB := b.Xattrs[name]
		if x != y || inA != inB {
			d.add(p, "xattr %s %.40q, now %.40q", name, x, y)
		}
	}
	if a.Target != b.Target {
		d.add(p, "target %q, now %q", a.Target, b.Target)
	}
	if a.Major != b.Major || a.Minor != b.Minor {
		d.add(p, "device %d:%d, now %d:%d", a.Major, a.Minor, b.Major, b.Minor)
	}
	if a.Kind == Dir {
		return
	}
	x, seenA := d.firstA[a]
	y, seenB := d.firstB[b]
	if x != y {
		d.add(p, "hard link of %q, now of %q", x, y)
	}
	if !seenA {
		d.firstA[a] = p
	}
	if !seenB {
		d.firstB[b] = p
	}
	if a.Size() != b.Size() {
		d.add(p, "size %d, now %d", a.Size(), b.Size())
		return
	}
	if d.contents && a.Kind == Regular && a.Size() > 0 && !(seenA && seenB) {
		d.data(p, a, b)
	}
}

// data compares the contents of files of one size, in pieces of 256 KiB.
func (d *differ) data(p string, a, b *Inode) {
	if d.bufA == nil {
		d.bufA, d.bufB = make([]byte, 256<<10), make([]byte, 256<<10)
	}
	for off, size := int64(0), a.Size(); off < size; off += int64(len(d.bufA)) {
		n := min(int64(len(d.bufA)), size-off)
		for _, r := range []struct {
			data io.ReaderAt
			buf  []byte
		}{{a.Data, d.bufA[:n]}, {b.Data, d.bufB[:n]}} {
			if m, err := r.data.ReadAt(r.buf, off); int64(m) < n {
				d.add(p, "contents at %d: %v", off+int64(m), err)
				return
			}
		}
		if !bytes.Equal(d.bufA[:n], d.bufB[:n]) {
			i := int64(0)
			for d.bufA[i] == d.bufB[i] {
				i++
			}
			d.add(p, "contents differ at byte %d", off+i)
			return
		}
	}
}
