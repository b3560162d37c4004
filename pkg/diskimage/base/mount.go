package base

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/imgpipe/imgpipe/pkg/diskimage/fstab"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// identity is by what an fstab may mean this partition.
func (p *part) identity() fstab.Identity {
	return fstab.Identity{UUID: p.fs.UUID, Label: p.fs.Label, PartUUID: p.partUUID, PartLabel: p.name}
}

// mount puts what the root's fstab mounts from the same disk at its place.
func (v *volumes) mount(b *Base, root *part) error {
	text, err := b.Tree.ReadFile("/etc/fstab", fstab.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range fstab.Parse(text) {
		found := v.where(func(p *part) bool { return p != root && m.Means(p.identity()) })
		if len(found) != 1 {
			b.Notes = append(b.Notes, fmt.Sprintf("%s (%s) is not on this disk and is left out", m.Where, m.What))
			continue
		}
		t, err := v.tree(found[0])
		if err == nil {
			err = graft(b.Tree, m.Where, t)
		}
		if err != nil && (m.Where == "/boot" || m.Where == "/usr") {
			return fmt.Errorf("%s: %w", m.Where, err)
		}
		if err != nil {
			b.Notes = append(b.Notes, fmt.Sprintf("%s is left out: %v", m.Where, err))
			continue
		}
		b.Notes = append(b.Notes, fmt.Sprintf("%s is %v", m.Where, found[0]))
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
