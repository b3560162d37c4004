package content

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/rpmdb"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	dpkgInfo   = "/var/lib/dpkg/info"
	maxList    = 16 << 20  // bytes of one package's list of files
	maxAllList = 512 << 20 // and of all of them
)

// owners tells which package a path belongs to, by dpkg's lists, else by RPM's
// database; of several the first by name. A database of RPM that cannot be read is a note of the view.
func (v *View) owners() (map[string]string, error) {
	out, err := v.dpkgOwners()
	if err != nil {
		return nil, err
	}
	t := readable{v}
	db, err := rpmdb.Read(t)
	if err != nil {
		v.Notes = append(v.Notes, fmt.Sprintf("package database: %v", err))
	}
	if len(db.Packages) == 0 {
		return out, nil
	}
	all := db.Owners(t)
	maps.Copy(all, out)
	return all, nil
}

// readable is a view as rpmdb reads one.
type readable struct{ view *View }

func (r readable) Resolve(p string) (string, error) {
	f, err := r.view.Lookup(p, true)
	if err != nil {
		return "", err
	}
	return f.Path, nil
}

func (r readable) ReadFile(p string, limit int64) ([]byte, error) {
	f, err := r.view.Lookup(p, true)
	if err != nil {
		return nil, err
	}
	if f.Inode.Kind != tree.Regular {
		return nil, fs.ErrNotExist
	}
	return r.view.read(f, limit)
}

func (v *View) dpkgOwners() (map[string]string, error) {
	dir, err := v.Lookup(dpkgInfo, true)
	if err != nil || dir.Inode.Kind != tree.Dir {
		return nil, nil // no packages of dpkg's
	}
	files, err := v.List(dir)
	if err != nil {
		return nil, err
	}
	out, parents := map[string]string{}, map[string]string{}
	room := int64(maxAllList)
	var lists []*File
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".list") && f.Inode.Kind == tree.Regular {
			lists = append(lists, f)
			if room -= f.Inode.Size(); room < 0 {
				return nil, fmt.Errorf("%s: lists of more than %d bytes", dpkgInfo, int64(maxAllList))
			}
		}
	}
	if err := v.prefetchAll(lists); err != nil {
		return nil, err
	}
	for _, f := range lists {
		name, _, _ := strings.Cut(strings.TrimSuffix(f.Name(), ".list"), ":")
		b, err := v.read(f, maxList)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			if !strings.HasPrefix(line, "/") {
				continue
			}
			parent, base := path.Split(line)
			real, known := parents[parent]
			if !known { // dpkg says /lib where /usr/lib is meant
				real = path.Clean(parent)
				if d, err := v.Lookup(parent, true); err == nil {
					real = d.Path
				}
				parents[parent] = real
			}
			if p := path.Join(real, base); out[p] == "" {
				out[p] = name
			}
		}
	}
	return out, nil
}

// prefetchAll tells the disk that several files come next.
func (v *View) prefetchAll(files []*File) error {
	for len(files) > 0 {
		if err := v.prefetch(wholeFile, files[:min(len(files), 1024)]...); err != nil {
			return err
		}
		files = files[min(len(files), 1024):]
	}
	return nil
}
