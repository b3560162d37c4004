package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// run runs a step in t and returns the tree as it is then.
func (s *session) run(t *tree.Tree, step Step, c *config) (*tree.Tree, error) {
	s.uses++
	if err := s.push(t); err != nil {
		return nil, err
	}
	if err := s.mounts(step); err != nil {
		return nil, err
	}
	c.UserNS = s.userNS
	out := newOutput(s.o, step.Secrets)
	scan := &changes{session: s, old: t, step: step}
	var res *result
	if err := s.send(request{Run: c}); err != nil {
		return nil, err
	}
	err := s.answer(func(r *reply) error {
		switch {
		case r.Output != nil:
			return out.write(r.Output)
		case r.Result != nil:
			res = r.Result
		case r.Entry != nil:
			if len(scan.entries) == tree.MaxEntries {
				return fmt.Errorf("more than %d paths", tree.MaxEntries)
			}
			scan.entries = append(scan.entries, r.Entry)
		default:
			scan.removed = append(scan.removed, r.Removed...)
		}
		return nil
	})
	if err = errors.Join(err, out.end()); err != nil {
		return nil, fmt.Errorf("step %s: %w", step.Name, err)
	}
	if res.Status != "" {
		s.lost = true
		failure := &ExitError{Step: step.Name, Status: res.Status, Tail: out.tail()}
		if res.Full {
			return nil, fmt.Errorf("%w: %w", errFull, failure)
		}
		return nil, failure
	}
	after, err := scan.apply()
	if err != nil {
		return nil, fmt.Errorf("step %s: %w", step.Name, err)
	}
	return after, nil
}

// shell lets a person look at what the last run left.
func (s *session) shell(step Step, c *config) error {
	if err := s.mounts(step); err != nil {
		return err
	}
	c.Terminal, c.UserNS = true, s.userNS
	restore := foreground(s.o.Terminal)
	defer restore()
	if err := s.send(request{Run: c}); err != nil {
		return err
	}
	return s.answer(nil) // how the shell ended is nobody's business
}

// changes turns what the helper found into a tree.
type changes struct {
	session *session
	old     *tree.Tree
	step    Step
	entries []*entry
	removed []string
	raw     map[*tree.Inode]time.Time // of the inodes that are new: when they were really written
}

func (c *changes) apply() (*tree.Tree, error) {
	out := c.old.Clone()
	for _, p := range c.removed {
		out.Remove(p)
		delete(c.session.held, p)
	}
	files := map[uint64][]*entry{} // by inode
	for _, e := range c.entries {
		if e.Kind == tree.Socket {
			out.Remove(e.Path)
			c.session.held[e.Path] = nil
			continue
		}
		files[e.Ino] = append(files[e.Ino], e)
	}
	c.raw = map[*tree.Inode]time.Time{}
	claimed := map[*tree.Inode]bool{}
	for _, e := range c.entries {
		group := files[e.Ino]
		if e.Kind == tree.Socket || group[0] != e {
			continue
		}
		was := c.before(group)
		n, same, err := c.inode(e, was)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Path, err)
		}
		if same = same && !claimed[was]; same {
			claimed[was], n = true, was
		}
		for _, e := range group {
			if same && c.old.Get(e.Path) == was {
				if !e.Read && e.Kind != tree.Dir { // it may have other times: it is sent again
					c.session.held[e.Path] = nil
				}
				continue
			}
			if err := out.Put(e.Path, n); err != nil {
				return nil, err
			}
			c.session.held[e.Path] = nil
		}
	}
	if err := c.compiled(out); err != nil {
		return nil, err
	}
	return out, c.secrets(out)
}

// before returns the inode that the paths of a file had, the first that had one;
// nil for none.
func (c *changes) before(group []*entry) *tree.Inode {
	for _, e := range group {
		if n := c.old.Get(e.Path); n != nil {
			return n
		}
	}
	return nil
}

// inode makes an inode of a found file, and says whether it is as it was.
func (c *changes) inode(e *entry, was *tree.Inode) (n *tree.Inode, same bool, err error) {
	epoch := c.session.o.Epoch
	n = &tree.Inode{Kind: e.Kind, Mode: e.Mode, UID: e.UID, GID: e.GID, MTime: e.MTime, Xattrs: e.Xattrs, Target: e.Target}
	if e.Kind == tree.Regular && e.Size > 0 {
		n.Data = &remote{s: c.session, path: e.Path, size: e.Size, used: c.session.uses}
	}
	if was != nil && (was.Kind == tree.CharDevice || was.Kind == tree.BlockDevice) && n.Kind == tree.Regular && e.Size == 0 {
		n.Kind, n.Major, n.Minor = was.Kind, was.Major, was.Minor
	}
	now := n.MTime.After(epoch)
	if now {
		c.raw[n] = n.MTime
		n.MTime = epoch
	}
	if was == nil {
		return n, false, nil
	}
	same = n.Kind == was.Kind && n.Mode == was.Mode && n.UID == was.UID && n.GID == was.GID && maps.Equal(n.Xattrs, was.Xattrs) &&
		n.Target == was.Target && n.Major == was.Major && n.Minor == was.Minor && n.Size() == was.Size() && (now || n.MTime.Equal(was.MTime))
	if !same || n.Kind != tree.Regular || n.Size() == 0 {
		return n, same, nil
	}
	same, err = equal(n, was)
	return n, same, err
}

// equal compares the contents of two files of one size.
func equal(a, b *tree.Inode) (bool, error) {
	x, y := make([]byte, maxChunk), make([]byte, maxChunk)
	for off, size := int64(0), a.Size(); off < size; off += maxChunk {
		n := min(maxChunk, size-off)
		for _, r := range []struct {
			n   *tree.Inode
			buf []byte
		}{{a, x[:n]}, {b, y[:n]}} {
			if m, err := r.n.Data.ReadAt(r.buf, off); int64(m) < n {
				return false, err
			}
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// compiled keeps Python's files valid: they name the time at which their source was
// really written.
func (c *changes) compiled(out *tree.Tree) error {
	for _, e := range c.entries {
		n := out.Get(e.Path)
		if n == nil || n.Kind != tree.Regular || !strings.HasSuffix(e.Path, ".pyc") || c.raw[n].IsZero() {
			continue
		}
		src := packages.PycSource(out, e.Path)
		if src == nil {
			continue
		}
		was, ok := c.raw[src]
		if !ok {
			continue
		}
		data, err := packages.RetimePyc(n, was, src.MTime)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		if data != nil {
			n.Data = data
		}
	}
	return nil
}

// secrets looks for secrets in all that is new.
func (c *changes) secrets(out *tree.Tree) error {
	for _, secret := range c.step.Secrets {
		value := trimmed(secret.Value)
		for _, e := range c.entries {
			n := out.Get(e.Path)
			if n == nil || n == c.old.Get(e.Path) {
				continue
			}
			found := strings.Contains(e.Path+"\x00"+n.Target, string(value)) ||
				slices.ContainsFunc(slices.Collect(maps.Values(n.Xattrs)), func(v string) bool { return strings.Contains(v, string(value)) })
			if !found && n.Kind == tree.Regular && n.Size() > 0 {
				var err error
				if found, err = contains(n, value); err != nil {
					return fmt.Errorf("%s: %w", e.Path, err)
				}
			}
			if found {
				return &SecretError{c.step.Name, secret.Name, strings.ReplaceAll(e.Path, string(value), "***")}
			}
		}
	}
	return nil
}

// contains searches a file, in pieces that overlap by one byte less than the value.
func contains(n *tree.Inode, value []byte) (bool, error) {
	buf := make([]byte, max(1<<20, 4*len(value)))
	for off := int64(0); off < n.Size(); off += int64(len(buf) - len(value) + 1) {
		b := buf[:min(int64(len(buf)), n.Size()-off)]
		if m, err := n.Data.ReadAt(b, off); m < len(b) {
			return false, err
		}
		if bytes.Contains(b, value) {
			return true, nil
		}
	}
	return false, nil
}
