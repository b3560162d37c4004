package base

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	maxFstab  = 1 << 20 // bytes
	maxMounts = 64
)

// mountLine is a line of fstab(5) that mounts a filesystem somewhere.
type mountLine struct{ what, where string }

// parseFstab returns the mounts of an fstab below the root, parents first. What is
// no mount of a disk is left out.
func parseFstab(text []byte) (out []mountLine) {
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
			out = append(out, mountLine{unescape(f[0]), where})
		}
	}
	slices.SortStableFunc(out, func(a, b mountLine) int { return strings.Compare(a.where, b.where) })
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

// names reports whether fstab means this partition by what.
func (p *part) named(what string) bool {
	tag, value, ok := strings.Cut(what, "=")
	if !ok {
		for _, dir := range []string{"uuid", "label", "partuuid", "partlabel"} {
			if v, found := strings.CutPrefix(what, "/dev/disk/by-"+dir+"/"); found {
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
		return strings.EqualFold(p.fs.UUID, value)
	case "LABEL":
		return p.fs.Label == value
	case "PARTUUID":
		return strings.EqualFold(p.partUUID, value)
	case "PARTLABEL":
		return p.name == value
	}
	return false
}

// mount puts what the root's fstab mounts from the same disk at its place.
func (v *volumes) mount(b *Base, root *part) error {
	text, err := b.Tree.ReadFile("/etc/fstab", maxFstab)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range parseFstab(text) {
		found := v.where(func(p *part) bool { return p != root && p.named(m.what) })
		if len(found) != 1 {
			b.Notes = append(b.Notes, fmt.Sprintf("%s (%s) is not on this disk and is left out", m.where, m.what))
			continue
		}
		t, err := v.tree(found[0])
		if err == nil {
			err = graft(b.Tree, m.where, t)
		}
		if err != nil && (m.where == "/boot" || m.where == "/usr") {
			return fmt.Errorf("%s: %w", m.where, err)
		}
		if err != nil {
			b.Notes = append(b.Notes, fmt.Sprintf("%s is left out: %v", m.where, err))
			continue
		}
		b.Notes = append(b.Notes, fmt.Sprintf("%s is %v", m.where, found[0]))
	}
	return nil
}

// graft puts a tree at a directory of another, in place of what is there.
func graft(t *tree.Tree, at string, what *tree.Tree) error {
	where, err := t.Resolve(at)
	if err != nil {
		return err
	}
	if n := t.Get(where); n != nil && n.Kind != tree.Dir {
		return fmt.Errorf("%s is a %s", where, n.Kind)
	}
	if where == "/" {
		return errors.New("leads to the root")
	}
	t.Remove(where)
	for e := range what.All() {
		if err := t.Put(path.Join(where, e.Path), e.Inode); err != nil {
			return err
		}
	}
	return nil
}
