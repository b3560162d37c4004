// Package fstab reads which partitions of a disk are mounted where: fstab(5).
//
//	for _, m := range fstab.Parse(text) {
//		if m.Means(fstab.Identity{UUID: fs.UUID, PartUUID: guid}) { … } // m.Where
//	}
//
// It guarantees clean absolute paths below the root, and at most 64 of them,
// whatever the text is.
package fstab

import (
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// MaxSize bounds an fstab that is worth reading, in bytes.
const MaxSize = 1 << 20

const maxMounts = 64

// Mount is a line that mounts a filesystem below the root.
type Mount struct{ What, Where string }

// Parse returns the mounts of an fstab below the root, parents first. What is
// no mount of a disk is left out.
func Parse(text []byte) (out []Mount) {
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") || f[2] == "swap" {
			continue
		}
		where, err := tree.CleanPath(unescape(f[1]))
		if err != nil || !strings.HasPrefix(f[1], "/") || where == "/" {
			continue
		}
		if len(out) < maxMounts {
			out = append(out, Mount{unescape(f[0]), where})
		}
	}
	slices.SortStableFunc(out, func(a, b Mount) int { return strings.Compare(a.Where, b.Where) })
	return out
}

// unescape undoes fstab's \040 and its like (getmntent(3)).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Identity is by what a partition can be meant; "" is nothing.
type Identity struct {
	UUID, Label         string // of the filesystem
	PartUUID, PartLabel string // of the partition, as the kernel writes it
}

// Means reports whether the line means the partition: by a tag, or by a link
// below /dev/disk.
func (m Mount) Means(i Identity) bool {
	tag, value, ok := strings.Cut(m.What, "=")
	if !ok {
		for _, dir := range []string{"uuid", "label", "partuuid", "partlabel"} {
			if v, found := strings.CutPrefix(m.What, "/dev/disk/by-"+dir+"/"); found {
				tag, value, ok = strings.ToUpper(dir), v, true
			}
		}
	}
	value = strings.Trim(value, `"'`)
	if !ok || value == "" {
		return false
	}
	switch tag {
	case "UUID":
		return strings.EqualFold(i.UUID, value)
	case "LABEL":
		return i.Label == value
	case "PARTUUID":
		return strings.EqualFold(i.PartUUID, value)
	case "PARTLABEL":
		return i.PartLabel == value
	}
	return false
}
