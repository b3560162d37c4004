package sandbox

import (
	"fmt"
	"io"
	"maps"
	"path"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// push makes the helper's tree t, sending only what it does not hold.
func (s *session) push(t *tree.Tree) error {
	r := request{Lay: &layRequest{Dir: "root", Stamp: true, Clear: s.lost}}
	if s.lost {
		s.held, s.lost = map[string]*tree.Inode{}, false
	}
	want := map[string]*tree.Inode{}
	for e := range t.All() {
		if e.Inode.Kind != tree.Socket && !hidden(e.Path) {
			want[e.Path] = e.Inode
		}
	}
	gone := map[string]bool{}
	for _, p := range slices.Sorted(maps.Keys(s.held)) { // a folder before what is in it
		n, was := want[p], s.held[p]
		above := gone[path.Dir(p)] && p != "/"
		if !above && n != nil && was != nil && (n.Kind == tree.Dir) == (was.Kind == tree.Dir) {
			continue
		}
		if !above {
			r.Lay.Remove = append(r.Lay.Remove, p)
		}
		gone[p] = true
		delete(s.held, p)
	}
	if err := s.send(r); err != nil {
		return err
	}
	if err := s.entries(t, s.held); err != nil {
		return err
	}
	s.held = want
	return s.answer(nil)
}

// entries sends what of t is not in held, then the metadata of all folders.
func (s *session) entries(t *tree.Tree, held map[string]*tree.Inode) error {
	first := map[*tree.Inode]string{}
	for p, n := range held {
		if q, ok := first[n]; n != nil && n.Kind != tree.Dir && t.Get(p) == n && (!ok || p < q) {
			first[n] = p
		}
	}
	var folders []entry
	buf := make([]byte, maxChunk)
	for e := range t.All() {
		n := e.Inode
		if n.Kind == tree.Socket || hidden(e.Path) {
			continue
		}
		if n.Kind == tree.Dir {
			folders = append(folders, describe(e))
			folders[len(folders)-1].Finish = true
		}
		if was, ok := held[e.Path]; ok && (was == n || n.Kind == tree.Dir) {
			continue
		}
		out := describe(e)
		if n.Kind != tree.Dir {
			if q, ok := first[n]; ok {
				out.Link = q
			} else {
				first[n] = e.Path
			}
		}
		if err := s.entry(out, n, buf); err != nil {
			return err
		}
	}
	slices.Reverse(folders) // a folder after what is in it
	for _, f := range folders {
		if err := s.enc.Encode(f); err != nil {
			return s.broken(err)
		}
	}
	if err := s.enc.Encode(entry{}); err != nil {
		return s.broken(err)
	}
	if err := s.w.Flush(); err != nil {
		return s.broken(err)
	}
	return nil
}

func describe(e tree.Entry) entry {
	n := e.Inode
	return entry{Path: e.Path, Kind: n.Kind, Mode: n.Mode, UID: n.UID, GID: n.GID, MTime: n.MTime, Xattrs: n.Xattrs, Target: n.Target, Size: n.Size()}
}

// entry sends one path. A file that cannot be read breaks the session: the helper
// waits for it.
func (s *session) entry(e entry, n *tree.Inode, buf []byte) error {
	contents := e.Kind == tree.Regular && e.Link == "" && e.Size > 0
	if contents && e.Size <= maxChunk {
		if m, err := n.Data.ReadAt(buf[:e.Size], 0); int64(m) < e.Size {
			s.kill()
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		e.Data, contents = buf[:e.Size], false
	}
	e.More = contents
	if err := s.enc.Encode(e); err != nil {
		return s.broken(err)
	}
	if !contents {
		return nil
	}
	for _, x := range n.Data.Extents() {
		for off := x.Off; off < x.End(); off += maxChunk {
			b := buf[:min(maxChunk, x.End()-off)]
			if m, err := n.Data.ReadAt(b, off); m < len(b) {
				s.kill()
				return fmt.Errorf("%s: %w", e.Path, err)
			}
			if err := s.enc.Encode(chunk{off, b}); err != nil {
				return s.broken(err)
			}
		}
	}
	if err := s.enc.Encode(chunk{}); err != nil {
		return s.broken(err)
	}
	return nil
}

// mounts lays out what a step is shown.
func (s *session) mounts(step Step) error {
	for i, m := range step.Mounts {
		r := request{Lay: &layRequest{Dir: fmt.Sprintf("mounts/%d", i), Clear: true}}
		if err := s.send(r); err != nil {
			return err
		}
		t := tree.New()
		for e := range m.Tree.All() {
			n := e.Inode.Clone()
			n.UID, n.GID, n.MTime, n.Xattrs = 0, 0, s.o.Epoch, nil
			if err := t.Put(e.Path, n); err != nil {
				return err
			}
		}
		if err := s.entries(t, map[string]*tree.Inode{"/": nil}); err != nil {
			return err
		}
		if err := s.answer(nil); err != nil {
			return err
		}
	}
	return nil
}

// remote is the contents of a file of the sandbox's tree.
type remote struct {
	s    *session
	path string
	size int64
	used uint64 // the session's count of uses at which it can be read
}

func (r *remote) Size() int64 { return r.size }

func (r *remote) Extents() []diskimage.Extent { return []diskimage.Extent{{Len: r.size}} }

// ReadAt implements [io.ReaderAt].
func (r *remote) ReadAt(p []byte, off int64) (int, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.used != r.s.uses {
		return 0, fmt.Errorf("%s: the sandbox has gone on", r.path)
	}
	n := 0
	for n < len(p) && off < r.size {
		want := min(int64(len(p)-n), maxChunk, r.size-off)
		if err := r.s.send(request{Read: &readRequest{r.path, off, int(want)}}); err != nil {
			return n, err
		}
		got := 0
		err := r.s.answer(func(a *reply) error { got += copy(p[n+got:], a.Data); return nil })
		if err != nil {
			return n, err
		}
		if got == 0 {
			return n, io.ErrUnexpectedEOF
		}
		n, off = n+got, off+int64(got)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
