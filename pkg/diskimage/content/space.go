package content

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Space is what a thing takes.
type Space struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`            // of its extents on the disk
	Stored int64  `json:"stored,omitempty"` // its share of the artifact's frames
}

// Spaces are the spaces of an image, by different divisions of it. The lists are
// whole, the largest first.
type Spaces struct {
	Partitions []Space // "metadata" of all of them is the last
	Packages   []Space // "unowned" among them
	Folders    []Space
	Files      []Space
}

// Names of what is no package and no partition.
const (
	Unowned  = "unowned"
	Metadata = "metadata"
)

// taken is a file's space while it is added up.
type taken struct {
	path, owner string
	extents     []diskimage.Extent // of the disk
	bytes       int64
	stored      float64
}

// Space adds up what takes the space of the view's partitions, and of the rest of the
// image as partitions. x is the index of the artifact; nil is a disk that is in none.
// Folders are depth levels deep. It reads the names of all files.
func (v *View) Space(x *diskimage.Index, depth int) (*Spaces, error) {
	files, partitions, err := v.files()
	if err != nil {
		return nil, err
	}
	shares := share(x, files)
	out := &Spaces{}
	packages, folders := newSum(), newSum()
	var inFiles taken
	for _, f := range files {
		packages.add(f.owner, f)
		for dir := path.Dir(f.path); ; dir = path.Dir(dir) {
			if dir == "/" || strings.Count(dir, "/") <= depth {
				folders.add(dir, f)
			}
			if dir == "/" {
				break
			}
		}
		out.Files = append(out.Files, f.space(f.path))
		inFiles.bytes, inFiles.stored = inFiles.bytes+f.bytes, inFiles.stored+f.stored
	}
	for _, p := range v.image.parts {
		s := Space{Name: p.String()}
		if x == nil {
			for _, f := range files { // what a file has is known, what else is not
				if partitions[f] == s.Name {
					s.Bytes += f.bytes
				}
			}
		} else {
			s.Bytes, s.Stored = inChunks(x, p.Extent)
		}
		out.Partitions = append(out.Partitions, s)
	}
	out.Packages, out.Folders = packages.spaces(), folders.spaces()
	if x != nil {
		var viewed Space
		for _, p := range out.Partitions {
			if v.shows(p.Name) {
				viewed.Bytes, viewed.Stored = viewed.Bytes+p.Bytes, viewed.Stored+p.Stored
			}
		}
		out.Packages = append(out.Packages, Space{Metadata, max(0, viewed.Bytes-inFiles.bytes), max(0, viewed.Stored-int64(math.Round(shares)))})
	}
	slices.SortStableFunc(out.Files, largest)
	slices.SortStableFunc(out.Packages, largest)
	return out, nil
}

// shows reports whether a partition is part of the view.
func (v *View) shows(partition string) bool {
	if v.top.partition == partition {
		return true
	}
	for _, m := range v.mounts {
		if m.partition == partition {
			return true
		}
	}
	return false
}

// inChunks returns the bytes of a stretch of the disk that are in chunks, and what
// their frames take.
func inChunks(x *diskimage.Index, e diskimage.Extent) (plain, stored int64) {
	for _, c := range x.Within(e) {
		n := c.Intersect(e).Len
		plain += n
		stored += int64(math.Round(float64(c.Frame.Len) * float64(n) / float64(c.Len)))
	}
	return plain, stored
}

// files reads all files of the view with the extents of the disk that they have.
func (v *View) files() ([]*taken, map[*taken]string, error) {
	owner, err := v.owners()
	if err != nil {
		return nil, nil, err
	}
	var out []*taken
	partitions := map[*taken]string{}
	places := map[string]place{"/": v.top}
	for p, m := range v.mounts {
		places[p] = m
	}
	for at, pl := range places {
		i := slices.IndexFunc(v.image.parts, func(p Part) bool { return p.String() == pl.partition })
		t, err := v.image.tree(i)
		if err != nil {
			return nil, nil, err
		}
		off, seen := v.image.parts[i].Extent.Off, map[*tree.Inode]bool{}
		for e := range t.All() {
			full := path.Join(at, e.Path)
			if e.Inode.Kind != tree.Regular || seen[e.Inode] || hidden(full, at, v.mounts) {
				continue
			}
			seen[e.Inode] = true
			f := &taken{path: full, owner: cmp.Or(owner[full], Unowned)}
			if data, ok := e.Inode.Data.(*mapped.File); ok {
				runs, err := data.Runs()
				if err != nil {
					return nil, nil, fmt.Errorf("%s: %w", full, err)
				}
				for _, r := range runs {
					f.extents = append(f.extents, diskimage.Extent{Off: off + r.At, Len: r.Len})
					f.bytes += r.Len
				}
			}
			out = append(out, f)
			partitions[f] = pl.partition
		}
	}
	slices.SortFunc(out, func(a, b *taken) int { return cmp.Compare(a.path, b.path) })
	return out, partitions, nil
}

// hidden reports whether another mount covers a path of the one at a place.
func hidden(full, at string, mounts map[string]place) bool {
	for m := range mounts {
		if len(m) > len(at) && (full == m || strings.HasPrefix(full, m+"/")) {
			return true
		}
	}
	return false
}

// tree reads all names of a partition.
func (im *Image) tree(i int) (*tree.Tree, error) {
	p := im.parts[i]
	vol, err := im.volume(i)
	if err != nil {
		return nil, err
	}
	switch vol := vol.(type) {
	case ext:
		t, err := vol.fs.Tree()
		return t, wrap(p, err)
	case whole:
		return vol.t, nil
	}
	return nil, fmt.Errorf("partition %v: %w", p, foreign.ErrNoReader)
}

func wrap(p Part, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("partition %v: %w", p, err)
}

// share gives each file its part of the frames of the chunks that it lies in, by its
// bytes there, and returns what all have.
func share(x *diskimage.Index, files []*taken) (all float64) {
	if x == nil {
		return 0
	}
	for _, f := range files {
		for _, e := range f.extents {
			for _, c := range x.Within(e) {
				f.stored += float64(c.Frame.Len) * float64(c.Intersect(e).Len) / float64(c.Len)
			}
		}
		all += f.stored
	}
	return all
}

func (t *taken) space(name string) Space { return Space{name, t.bytes, int64(math.Round(t.stored))} }

func largest(a, b Space) int {
	return cmp.Or(cmp.Compare(max(b.Stored, 0), max(a.Stored, 0)), cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name))
}

// sum adds up by name.
type sum map[string]*taken

func newSum() sum { return sum{} }

func (s sum) add(name string, f *taken) {
	if s[name] == nil {
		s[name] = &taken{}
	}
	s[name].bytes += f.bytes
	s[name].stored += f.stored
}

func (s sum) spaces() (out []Space) {
	for name, t := range s {
		out = append(out, t.space(name))
	}
	slices.SortFunc(out, largest)
	return out
}
