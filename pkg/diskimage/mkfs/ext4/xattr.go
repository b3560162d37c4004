package ext4

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	xattrMagic      = 0xEA020000
	xattrInodeRoom  = inodeSize - 128 - extraSize // bytes behind the extra fields
	xattrHeader     = 32                          // of an attribute block
	xattrEntry      = 16                          // without the name
	aclVersion      = 1                           // on disk
	aclXattrVersion = 2                           // in the attribute's value
)

// xattrPrefixes are the names that ext4 stores as a number, longest first.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"system.richacl", 8},
	{"security.", 6},
	{"trusted.", 4},
	{"system.", 7},
	{"user.", 1},
}

// xattr is one attribute in its on-disk form.
type xattr struct {
	index byte
	name  string // without the prefix
	value []byte
}

func (x xattr) size() int { return xattrEntry + (len(x.name)+3)&^3 + (len(x.value)+3)&^3 }

// hash covers the name and the value (e_hash).
func (x xattr) hash() (h uint32) {
	for i := range len(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(x.name[i])
	}
	padded := make([]byte, (len(x.value)+3)&^3)
	copy(padded, x.value)
	for ; len(padded) > 0; padded = padded[4:] {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(padded)
	}
	return h
}

// encodeXattrs returns what lies in the inode and, where that is too small, in
// an attribute block (its checksum is set when its place is known).
func encodeXattrs(attrs map[string]string) (inode, block []byte, err error) {
	if len(attrs) == 0 {
		return nil, nil, nil
	}
	var in, out []xattr
	inRoom := xattrInodeRoom - 4 - 4 // the magic and the end mark
	outRoom := blockSize - xattrHeader - 4
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		x, err := parseXattr(name, attrs[name])
		if err != nil {
			return nil, nil, fmt.Errorf("extended attribute %q: %w", name, err)
		}
		if x.size() <= inRoom {
			inRoom -= x.size()
			in = append(in, x)
			continue
		}
		if outRoom -= x.size(); outRoom < 0 {
			return nil, nil, fmt.Errorf("extended attribute %q: %d bytes, %d more than the inode and one block hold",
				name, len(x.value), -outRoom)
		}
		out = append(out, x)
	}
	if in != nil {
		inode = make([]byte, xattrInodeRoom)
		binary.LittleEndian.PutUint32(inode, xattrMagic)
		writeXattrs(in, inode[4:], inode[4:]) // value offsets count from the first entry
	}
	if out != nil {
		block = make([]byte, blockSize)
		le := binary.LittleEndian
		le.PutUint32(block, xattrMagic)
		le.PutUint32(block[4:], 1) // references
		le.PutUint32(block[8:], 1) // blocks
		hash := writeXattrs(out, block[xattrHeader:], block)
		le.PutUint32(block[12:], hash)
	}
	return inode, block, nil
}

// writeXattrs writes sorted entries to the front of room and values to its end,
// with value offsets counted from base, and returns the hash of them all.
func writeXattrs(attrs []xattr, room, base []byte) (hash uint32) {
	slices.SortFunc(attrs, func(a, b xattr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	le := binary.LittleEndian
	shift := len(base) - len(room)
	at, end := 0, len(room)
	for _, x := range attrs {
		e := room[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		if len(x.value) > 0 {
			end -= (len(x.value) + 3) &^ 3
			le.PutUint16(e[2:], uint16(end+shift))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		h := x.hash()
		le.PutUint32(e[12:], h)
		copy(e[16:], x.name)
		copy(room[end:], x.value)
		hash = hash<<16 ^ hash>>16 ^ h
		at += xattrEntry + (len(x.name)+3)&^3
	}
	return hash
}

func parseXattr(full, value string) (xattr, error) {
	for _, p := range xattrPrefixes {
		name, ok := strings.CutPrefix(full, p.prefix)
		if !ok {
			continue
		}
		x := xattr{p.index, name, []byte(value)}
		whole := !strings.HasSuffix(p.prefix, ".") // the prefix is the name
		switch {
		case whole && name != "":
			continue
		case !whole && (name == "" || len(name) > 255 || strings.IndexByte(name, 0) >= 0):
			return x, errors.New("the name is empty, too long or holds a NUL byte")
		}
		if p.index == 2 || p.index == 3 {
			acl, err := encodeACL([]byte(value))
			x.value = acl
			return x, err
		}
		return x, nil
	}
	return xattr{}, errors.New("not in user, trusted, security or system")
}

// encodeACL turns the portable form of a POSIX ACL (linux/posix_acl_xattr.h)
// into ext4's, whose entries have an id only where it means something.
func encodeACL(v []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(v) < 4 || (len(v)-4)%8 != 0 || le.Uint32(v) != aclXattrVersion {
		return nil, errors.New("not a POSIX ACL of version 2")
	}
	out := le.AppendUint32(nil, aclVersion)
	last := uint16(0)
	for v = v[4:]; len(v) > 0; v = v[8:] {
		tag, perm, id := le.Uint16(v), le.Uint16(v[2:]), le.Uint32(v[4:])
		named := tag == 0x02 || tag == 0x08 // ACL_USER, ACL_GROUP
		switch {
		case !named && tag != 0x01 && tag != 0x04 && tag != 0x10 && tag != 0x20:
			return nil, fmt.Errorf("POSIX ACL: unknown tag %#x", tag)
		case tag < last || (tag == last && !named):
			return nil, fmt.Errorf("POSIX ACL: tag %#x out of order", tag)
		case perm > 7:
			return nil, fmt.Errorf("POSIX ACL: permissions %#x", perm)
		}
		last = tag
		out = le.AppendUint16(le.AppendUint16(out, tag), perm)
		if named {
			out = le.AppendUint32(out, id)
		}
	}
	return out, nil
}
