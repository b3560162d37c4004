package erofs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	xattrHeader = 12
	xattrEntry  = 4
	maxXattrs   = blockSize - inodeSize // an inode with its attributes lies in one block
)

// xattrPrefixes are stored as numbers; of two that fit the whole name comes first.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{{"system.posix_acl_access", 2}, {"system.posix_acl_default", 3}, {"user.", 1}, {"trusted.", 4}, {"security.", 6}}

// encodeXattrs returns what follows an inode, nil for no attributes. They are sorted by name.
func encodeXattrs(attrs map[string]string) ([]byte, error) {
	if len(attrs) == 0 {
		return nil, nil
	}
	b := make([]byte, xattrHeader) // none of them is shared with other inodes
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		value := attrs[name]
		i := slices.IndexFunc(xattrPrefixes, func(p struct {
			prefix string
			index  byte
		}) bool {
			return name == p.prefix || strings.HasSuffix(p.prefix, ".") && strings.HasPrefix(name, p.prefix)
		})
		if i < 0 {
			return nil, fmt.Errorf("extended attribute %q: EROFS has none of that kind", name)
		}
		rest := name[len(xattrPrefixes[i].prefix):]
		if len(rest) > 255 || len(value) > 65535 {
			return nil, fmt.Errorf("extended attribute %q: %d bytes, a name of %d", name, len(value), len(name))
		}
		b = append(b, byte(len(rest)), xattrPrefixes[i].index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, rest...), value...)
		b = append(b, make([]byte, -len(b)&(xattrEntry-1))...)
	}
	if len(b) > maxXattrs {
		return nil, fmt.Errorf("extended attributes of %d bytes, at most %d", len(b), maxXattrs)
	}
	return b, nil
}

// xattrCount is how an inode says how long they are.
func xattrCount(b []byte) uint16 {
	if len(b) == 0 {
		return 0
	}
	return uint16((len(b)-xattrHeader)/xattrEntry + 1)
}
