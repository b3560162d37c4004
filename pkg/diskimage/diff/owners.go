package diff

import (
	"fmt"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	dpkgInfo = "/var/lib/dpkg/info"
	maxList  = 16 << 20 // bytes of one package's list of files
)

// owners tells which of the packages that differ a path of a tree belongs to, by
// dpkg's lists and by the names of what dpkg keeps about a package.
func owners(v *view, t *tree.Tree, changed []PackageChange, of func(PackageChange) *Version) (map[string]string, error) {
	out := map[string]string{}
	lists := map[string]string{} // path of the list to the name of the package
	for _, p := range changed {
		if version := of(p); version != nil {
			for _, name := range []string{p.Name, p.Name + ":" + version.Architecture} {
				lists[dpkgInfo+"/"+name+".list"] = p.Name
			}
		}
	}
	var ahead []diskimage.Extent
	found := map[string]string{}
	for _, name := range t.Children(dpkgInfo) {
		p := dpkgInfo + "/" + name
		dot := strings.LastIndexByte(name, '.')
		if dot < 0 {
			continue
		}
		owner := lists[dpkgInfo+"/"+name[:dot]+".list"]
		if owner == "" {
			continue
		}
		out[p] = owner
		if name[dot:] == ".list" {
			found[p] = owner
			ahead = append(ahead, extentsOf(t.Get(p))...)
		}
	}
	if err := v.Prefetch(diskimage.MergeExtents(ahead)); err != nil {
		return nil, err
	}
	for list, owner := range found {
		b, err := t.ReadFile(list, maxList)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list, err)
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			if real, err := t.ResolveParent(line); err == nil && line != "" { // dpkg says /lib where /usr/lib is meant
				out[real] = owner
			}
		}
	}
	return out, nil
}

// extentsOf returns where the contents of a file lie.
func extentsOf(n *tree.Inode) (out []diskimage.Extent) {
	f, ok := n.Data.(*mapped.File)
	if !ok {
		return nil
	}
	runs, err := f.Runs()
	if err != nil {
		return nil // reading will tell
	}
	for _, r := range runs {
		out = append(out, diskimage.Extent{Off: r.At, Len: r.Len})
	}
	return out
}

// attribute notes the packages of changes: what is there now by the new lists,
// the rest by the old ones.
func attribute(va, vb *view, a, b *tree.Tree, changed []PackageChange, changes []*FileChange) error {
	if len(changed) == 0 || a.Get(dpkgInfo) == nil && b.Get(dpkgInfo) == nil {
		return nil
	}
	before, err := owners(va, a, changed, func(p PackageChange) *Version { return p.Before })
	if err != nil {
		return err
	}
	after, err := owners(vb, b, changed, func(p PackageChange) *Version { return p.After })
	if err != nil {
		return err
	}
	for _, c := range changes {
		if c.Change != Removed {
			c.Package = after[c.Path]
		}
		if c.Package == "" {
			c.Package = before[c.Path]
		}
	}
	return nil
}
