package registry

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// maxOpen is how many repositories stay open that nobody uses: an open one
// needs two files and its parsed index.json.
const maxOpen = 256

// maxDepth is how many directories deep repositories are looked for: a name of
// 255 bytes has no more parts.
const maxDepth = 128

// repo is a repository in use.
type repo struct {
	name  string
	users int        // guarded by Registry.mu
	mu    sync.Mutex // held while it is opened
	dir   *oci.Dir

	// content is held exclusively by who deletes, and shared by who lets a
	// manifest refer to what is there.
	content sync.RWMutex
	// damaged holds the digests of blobs found not to match: they count as
	// missing until they are pushed again.
	damaged sync.Map
}

// open returns a repository, which the caller gives back by release. A missing
// one is made if create says so, else NAME_UNKNOWN.
func (r *Registry) open(ctx context.Context, name string, create bool) (*repo, error) {
	for {
		r.mu.Lock()
		p := r.repos[name]
		if p == nil {
			p = &repo{name: name}
			r.repos[name] = p
		}
		p.users++
		r.mu.Unlock()
		moved, err := r.ready(ctx, p, create)
		if err == nil && !moved {
			return p, nil
		}
		if moved { // somebody removed or replaced the directory
			r.mu.Lock()
			if r.repos[name] == p {
				delete(r.repos, name)
			}
			r.mu.Unlock()
		}
		r.release(p)
		if err != nil {
			return nil, err
		}
	}
}

// ready opens the layout of p, unless it is open.
func (r *Registry) ready(ctx context.Context, p *repo, create bool) (moved bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dir != nil {
		return p.dir.Moved(), nil
	}
	path := filepath.Join(r.root, filepath.FromSlash(p.name))
	p.dir, err = oci.OpenDir(ctx, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		if !create {
			return false, fail(http.StatusNotFound, codeNameUnknown, "repository %s: there is none", p.name)
		}
		if err := r.countOne(); err != nil {
			return false, err
		}
		p.dir, err = oci.CreateRepository(ctx, path)
	}
	if err != nil {
		return false, err
	}
	if !r.o.ReadOnly {
		// What a killed server left. If somebody else uses the layout, or it cannot
		// be removed, Collect will see to it.
		_, _ = p.dir.RemoveTemps()
	}
	return false, nil
}

// countOne counts a repository that is to be made.
func (r *Registry) countOne() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count < 0 || r.count >= r.o.MaxRepositories { // some may have been removed
		names, err := repositories(r.root)
		if err != nil {
			return err
		}
		r.count = len(names)
	}
	if r.count >= r.o.MaxRepositories {
		return fail(http.StatusForbidden, codeDenied, "this registry has %d repositories, and makes no more", r.count)
	}
	r.count++
	return nil
}

// release ends a use of p.
func (r *Registry) release(p *repo) {
	r.mu.Lock()
	p.users--
	shut := p.users == 0 && (p.dir == nil || r.repos[p.name] != p || len(r.repos) > maxOpen)
	if shut && r.repos[p.name] == p {
		delete(r.repos, p.name)
	}
	r.mu.Unlock()
	if shut && p.dir != nil {
		_ = p.dir.Close() // a lock and a file that was read
	}
}

// repositories returns the names of all layouts below root, in the order of
// their bytes. Directories that no repository can be named by are left out, and
// links are followed to a layout, not through others.
func repositories(root string) ([]string, error) {
	var names []string
	var walk func(name string, depth int) error
	walk = func(name string, depth int) error {
		entries, err := os.ReadDir(filepath.Join(root, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) && name != "" {
			return nil // gone meanwhile, or not for us
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			child := strings.TrimPrefix(name+"/"+e.Name(), "/")
			link := e.Type()&fs.ModeSymlink != 0
			if !e.IsDir() && !link || oci.CheckName(child) != nil {
				continue
			}
			if info, err := os.Stat(filepath.Join(root, filepath.FromSlash(child), "oci-layout")); err == nil && info.Mode().IsRegular() {
				names = append(names, child)
			}
			if !link && depth < maxDepth {
				if err := walk(child, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk("", 0); err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// openBlob opens a blob, or says BLOB_UNKNOWN.
func (p *repo) openBlob(digest diskimage.Digest) (*os.File, int64, error) {
	if _, bad := p.damaged.Load(digest); !bad {
		f, size, err := p.dir.OpenBlob(digest)
		if !errors.Is(err, oci.ErrNotFound) {
			return f, size, err
		}
	}
	return nil, 0, fail(http.StatusNotFound, codeBlobUnknown, "blob %v: not in repository %s", digest, p.name)
}
