package diff

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/extfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Filesystem is how the files of a partition compare.
type Filesystem struct {
	Partition string       `json:"partition"`
	Type      string       `json:"type,omitempty"`
	Change    string       `json:"change"`
	Added     int          `json:"added"`
	Removed   int          `json:"removed"`
	Changed   int          `json:"changed"`
	Touched   int          `json:"touched"` // only the time differs
	Equal     int          `json:"equal"`
	Problem   string       `json:"problem,omitempty"` // why files were not compared
	Files     []FileChange `json:"files,omitempty"`   // added, removed and changed, by path
}

// FileChange is a path that differs.
type FileChange struct {
	Path    string
	Change  string
	What    []string    // of a changed one
	Package string      // that it belongs to, if that is one that differs
	Before  *Attributes // nil if it was not there
	After   *Attributes
}

// Attributes are what `ls -l` shows.
type Attributes struct {
	Kind   string    `json:"kind"`
	Mode   string    `json:"mode"` // octal
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Size   int64     `json:"size"`
	Time   time.Time `json:"time"`
	Target string    `json:"target,omitempty"`
}

// MarshalJSON implements json.Marshaler. JSON holds no bytes that are not
// UTF-8: such a path is there once more as it is, in base64.
func (f FileChange) MarshalJSON() ([]byte, error) {
	out := struct {
		Path    string      `json:"path"`
		Raw     []byte      `json:"raw,omitempty"`
		Change  string      `json:"change"`
		What    []string    `json:"what,omitempty"`
		Package string      `json:"package,omitempty"`
		Before  *Attributes `json:"before,omitempty"`
		After   *Attributes `json:"after,omitempty"`
	}{f.Path, nil, f.Change, f.What, f.Package, f.Before, f.After}
	if !utf8.ValidString(f.Path) {
		out.Raw = []byte(f.Path)
	}
	return json.Marshal(out)
}

// Files compares the filesystems of two images, partition by partition in the
// order of Tables. What belongs to one of the packages that differ says so. An
// error is one of reading a disk.
func Files(a, b Image, changed []PackageChange) ([]Filesystem, Read, error) {
	s := newStore(keepBytes)
	var out []Filesystem
	for _, p := range Tables(a.Table, b.Table) {
		fs := s.partition(a, b, p, changed)
		if s.err != nil {
			return nil, s.read, fmt.Errorf("partition %s: %w", p.Name, s.err)
		}
		out = append(out, fs)
	}
	return out, s.read, nil
}

// partition compares the files of one partition.
func (s *store) partition(a, b Image, p Partition, changed []PackageChange) Filesystem {
	out := Filesystem{Partition: p.Name, Change: p.Change}
	var va, vb *view
	if p.Before != nil {
		va = &view{s, a, p.Before.Extent}
		out.Type = p.Before.Filesystem.Type
	}
	if p.After != nil {
		vb = &view{s, b, p.After.Extent}
		out.Type = p.After.Filesystem.Type
	}
	if out.Type == "" {
		out.Problem = "no filesystem is known in it"
		return out
	}
	if va != nil && vb != nil {
		if differ, open := comparePiece(va, vb, va.area.Off, vb.area.Off, min(va.area.Len, vb.area.Len)); !differ && open == nil &&
			va.area.Len == vb.area.Len && p.Before.Filesystem.Type == out.Type {
			out.Change = Same
			return out
		}
	}
	var ta, tb *tree.Tree
	var err error
	if va != nil {
		ta, err = read(va, p.Before.Filesystem.Type)
	}
	if vb != nil && err == nil {
		tb, err = read(vb, p.After.Filesystem.Type)
	}
	if err == nil {
		switch {
		case ta == nil:
			out.Added = tb.Len()
		case tb == nil:
			out.Removed = ta.Len()
		default:
			out.Change = Changed
			err = out.trees(va, vb, ta, tb, changed)
		}
	}
	if err != nil {
		out.Problem = err.Error()
	}
	return out
}

// read returns the tree of a filesystem.
func read(v *view, kind string) (*tree.Tree, error) {
	t, err := foreign.Tree(v, v.area.Len, kind)
	if err != nil && !errors.Is(err, foreign.ErrNoReader) { // which names it
		err = fmt.Errorf("%s: %w", kind, err)
	}
	return t, err
}

// trees compares two trees path by path.
func (out *Filesystem) trees(va, vb *view, a, b *tree.Tree, packages []PackageChange) error {
	names := link{map[*tree.Inode]string{}, map[*tree.Inode]string{}}
	for e := range a.All() {
		if n := b.Get(e.Path); n != nil {
			names.see(e.Path, e.Inode, n)
		}
	}
	asked := map[[2]*tree.Inode]*question{}
	var questions []*question
	var changes []*FileChange
	for e := range a.All() {
		now := b.Get(e.Path)
		if now == nil {
			changes = append(changes, &FileChange{Path: e.Path, Change: Removed, Before: attributesOf(e.Inode)})
			continue
		}
		c := &FileChange{Path: e.Path, Change: Changed, What: metadata(e.Inode, now), Before: attributesOf(e.Inode), After: attributesOf(now)}
		if names.a[e.Inode] != names.b[now] {
			c.What = append(c.What, "links")
		}
		changes = append(changes, c)
		if e.Inode.Kind != tree.Regular || now.Kind != tree.Regular || e.Inode.Size() == 0 && now.Size() == 0 {
			continue
		}
		if e.Inode.Size() != now.Size() {
			c.What = append(c.What, "size", "contents")
			continue
		}
		key := [2]*tree.Inode{e.Inode, now}
		if q := asked[key]; q != nil { // another name of it
			q.also = append(q.also, c)
			continue
		}
		differ, open, err := compareByDigest(va, vb, e.Inode, now)
		if err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
		q := &question{a: e.Inode, b: now, spans: open, also: []*FileChange{c}, differ: differ}
		asked[key] = q
		if open != nil {
			questions = append(questions, q)
		}
	}
	if err := answer(va, vb, questions); err != nil {
		return err
	}
	for _, q := range asked {
		for _, c := range q.also {
			if q.differ {
				c.What = append(c.What, "contents")
			}
		}
	}
	for e := range b.All() {
		if a.Get(e.Path) == nil {
			changes = append(changes, &FileChange{Path: e.Path, Change: Added, After: attributesOf(e.Inode)})
		}
	}
	if err := attribute(va, vb, a, b, packages, changes); err != nil {
		return err
	}
	out.count(changes)
	return nil
}

// count sorts changes by path, and keeps what is one.
func (out *Filesystem) count(changes []*FileChange) {
	slices.SortFunc(changes, func(x, y *FileChange) int { return comparePaths(x.Path, y.Path) })
	for _, c := range changes {
		switch {
		case c.Change == Added:
			out.Added++
		case c.Change == Removed:
			out.Removed++
		case len(c.What) > 0:
			out.Changed++
		case !c.Before.Time.Equal(c.After.Time):
			out.Touched++
			continue
		default:
			out.Equal++
			continue
		}
		if c.Change == Changed && !c.Before.Time.Equal(c.After.Time) {
			c.What = append(c.What, "time")
		}
		out.Files = append(out.Files, *c)
	}
}

// link remembers by which name each inode was seen first, of the names that
// both trees have.
type link struct{ a, b map[*tree.Inode]string }

func (l link) see(path string, a, b *tree.Inode) {
	if _, seen := l.a[a]; !seen {
		l.a[a] = path
	}
	if _, seen := l.b[b]; !seen {
		l.b[b] = path
	}
}

// metadata names what differs, apart from contents and the time.
func metadata(a, b *tree.Inode) (what []string) {
	if a.Kind != b.Kind {
		what = append(what, "kind")
	}
	if a.Mode != b.Mode {
		what = append(what, "mode")
	}
	if a.UID != b.UID || a.GID != b.GID {
		what = append(what, "owner")
	}
	if a.Kind == b.Kind && a.Target != b.Target {
		what = append(what, "target")
	}
	if a.Kind == b.Kind && (a.Major != b.Major || a.Minor != b.Minor) {
		what = append(what, "device")
	}
	if !maps.Equal(a.Xattrs, b.Xattrs) {
		what = append(what, "xattrs")
	}
	return what
}

func attributesOf(n *tree.Inode) *Attributes {
	return &Attributes{Kind: n.Kind.String(), Mode: fmt.Sprintf("%04o", n.Mode), UID: n.UID, GID: n.GID,
		Size: n.Size(), Time: n.MTime, Target: n.Target}
}

// comparePaths orders a directory before what it holds, and that before the
// directory's next sibling.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

var _ extfs.Prefetcher = (*view)(nil)
