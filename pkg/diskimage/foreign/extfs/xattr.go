package extfs

import (
	"errors"
	"fmt"
	"io"
)

const (
	xattrMagic  = 0xEA020000
	xattrHeader = 32 // of an attribute block
	xattrEntry  = 16 // without the name
	maxXattr    = 64 << 10
)

// xattrPrefixes are the names that the format stores as a number.
var xattrPrefixes = map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default",
	4: "trusted.", 6: "security.", 7: "system.", 8: "system.richacl"}

// xattrs reads the extended attributes of an inode, and what is stored among
// them of contents that lie in the inode.
func (fs *FS) xattrs(n *inode) (map[string]string, error) {
	out := map[string]string{}
	if n.flags&flagInline != 0 {
		n.inlined = append([]byte(nil), n.iblock()...)
	}
	if at := 128 + n.extra(); n.extra() > 0 && at+4 <= len(n.raw) && le.Uint32(n.raw[at:]) == xattrMagic {
		room := n.raw[at+4:]
		if err := fs.xattrEntries(n, out, room, room); err != nil {
			return nil, err
		}
	}
	if block := n.attrBlock(); block != 0 {
		b, err := fs.block(block)
		if err != nil {
			return nil, fmt.Errorf("extended attributes: %w", err)
		}
		if le.Uint32(b) != xattrMagic || le.Uint32(b[8:]) != 1 {
			return nil, fmt.Errorf("extended attributes: block %d holds none", block)
		}
		if err := fs.xattrEntries(n, out, b[xattrHeader:], b); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// xattrEntries reads the entries at the start of room; values lie in base.
func (fs *FS) xattrEntries(n *inode, out map[string]string, room, base []byte) error {
	for len(room) >= 4 && le.Uint32(room) != 0 {
		if len(room) < xattrEntry || len(room) < xattrEntry+int(room[0]) {
			return errors.New("extended attributes: an entry leaves its block")
		}
		name := string(room[xattrEntry : xattrEntry+int(room[0])])
		value, err := fs.xattrValue(room, base)
		if err != nil {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
		prefix, known := xattrPrefixes[room[1]]
		switch {
		case room[1] == 7 && name == "data" && n.flags&flagInline != 0:
			n.inlined = append(n.inlined, value...)
		case !known:
			return fmt.Errorf("extended attribute %q: unknown prefix %d", name, room[1])
		case room[1] == 2 || room[1] == 3:
			if value, err = decodeACL(value); err != nil {
				return fmt.Errorf("%s: %w", prefix, err)
			}
			out[prefix] = string(value)
		default:
			out[prefix+name] = string(value)
		}
		room = room[min(len(room), xattrEntry+(len(name)+3)&^3):]
	}
	return nil
}

// xattrValue returns the value of the entry e: in base, or in an inode of its own.
func (fs *FS) xattrValue(e, base []byte) ([]byte, error) {
	off, ino, size := int64(le.Uint16(e[2:])), le.Uint32(e[4:]), int64(le.Uint32(e[8:]))
	if size > maxXattr {
		return nil, fmt.Errorf("a value of %d bytes", size)
	}
	if ino == 0 {
		if off+size > int64(len(base)) {
			return nil, errors.New("its value leaves the block")
		}
		return base[off : off+size], nil
	}
	at, err := fs.inodeAt(ino, map[int64]int64{})
	if err != nil {
		return nil, err
	}
	n, err := fs.inode(ino, at)
	if err != nil {
		return nil, err
	}
	if n.flags&flagEAInode == 0 || n.flags&flagInline != 0 || n.size != size || size == 0 {
		return nil, fmt.Errorf("inode %d does not hold its value", ino)
	}
	b := make([]byte, size)
	if _, err := fs.contents(n).ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

// decodeACL turns ext4's form of a POSIX ACL, whose entries have an id only
// where it means something, into the portable one (linux/posix_acl_xattr.h).
func decodeACL(v []byte) ([]byte, error) {
	if len(v) < 4 || le.Uint32(v) != 1 {
		return nil, errors.New("not an ACL of version 1")
	}
	out := le.AppendUint32(nil, 2)
	for v = v[4:]; len(v) > 0; {
		if len(v) < 4 {
			return nil, errors.New("an entry is cut")
		}
		tag := le.Uint16(v)
		out = append(out, v[:4]...)
		id := uint32(1<<32 - 1) // ACL_UNDEFINED_ID
		v = v[4:]
		if tag == 0x02 || tag == 0x08 { // ACL_USER, ACL_GROUP
			if len(v) < 4 {
				return nil, errors.New("an entry is cut")
			}
			id, v = le.Uint32(v), v[4:]
		}
		out = le.AppendUint32(out, id)
	}
	return out, nil
}
