// Package registry serves a directory of OCI image layouts as a registry:
// distribution-spec 1.1, push, pull, content discovery and management.
//
//	reg, err := registry.New("/srv/images", registry.Options{})
//	if err != nil { … }
//	defer reg.Close()                     // after the last request
//	server := &http.Server{Handler: reg, ReadHeaderTimeout: 30 * time.Second}
//	err = server.Serve(listener)
//
// The repository NAME is the layout DIR/NAME, which any tool may read, copy or
// drop there; docs/registry.md says more. It guarantees: a blob or manifest
// whose push was answered with 201 is durable and is what its digest says; a
// manifest is taken only when all that it refers to is there, in the size it
// says; a tag names the old manifest or the new one, never something
// incomplete, whenever the process is killed; a name never leads out of the
// directory. Memory is bounded by 256 KiB for each request, 4 MiB for each
// manifest that is on its way, and the index.json of the repositories in use
// (16 MiB at most each). It does not scale out, and has one set of users with
// equal rights.
package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/oci"
)

// Options change what a Registry does. The zero value serves everybody, and
// writes.
type Options struct {
	// ReadOnly refuses everything that changes the directory, which may then be
	// on a read-only filesystem.
	ReadOnly bool
	// Users are asked for a name and password; nil serves everybody.
	Users *Users
	// AnonymousPull lets everybody read even so.
	AnonymousPull bool
	// MaxBlob is the largest blob that is taken, in bytes; 0 is 64 GiB.
	MaxBlob int64
	// MaxUploads is how many blobs may be on their way at once, those included
	// that a client has left; 0 is 256.
	MaxUploads int
	// MaxRepositories is up to how many repositories a push makes new ones; 0 is 10,000.
	MaxRepositories int
	// Idle is how long an upload is kept that gets no bytes, and how long a body
	// may stand still in either direction; 0 is 10 minutes and 2 minutes.
	Idle, Stall time.Duration
	// Log is told of every request after it was answered; nil is nobody. It is
	// called from many goroutines.
	Log func(Access)
}

// Access is one request and how it was answered.
type Access struct {
	Remote, User string
	Method, Path string // the path with its query
	Status       int
	Bytes        int64 // of the answer's body
	Duration     time.Duration
	Err          error // what broke, where the answer does not say
}

// Registry is an http.Handler. Close it after the last request.
type Registry struct {
	root    string
	o       Options
	lock    *os.File // shared flock on root: Collect waits for nobody
	uploads sessions

	mu    sync.Mutex
	repos map[string]*repo
	count int // repositories that exist, or -1 before they were counted
}

// ErrInUse is returned by Collect while a Registry serves the directory.
var ErrInUse = oci.ErrInUse

// New opens the directory root, which must exist and is no layout itself.
func New(root string, o Options) (*Registry, error) {
	if _, err := os.Lstat(filepath.Join(root, "oci-layout")); err == nil {
		return nil, &LayoutError{root}
	}
	lock, err := lockRoot(root, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	o.MaxBlob = orDefault(o.MaxBlob, 64<<30)
	o.MaxUploads = orDefault(o.MaxUploads, 256)
	o.MaxRepositories = orDefault(o.MaxRepositories, 10_000)
	o.Idle = orDefault(o.Idle, 10*time.Minute)
	o.Stall = orDefault(o.Stall, 2*time.Minute)
	r := &Registry{root: root, o: o, lock: lock, repos: map[string]*repo{}, count: -1}
	r.uploads = sessions{max: o.MaxUploads, idle: o.Idle, byID: map[string]*session{}}
	return r, nil
}

func orDefault[T int | int64 | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// LayoutError is a directory that is a layout, where one that holds layouts is
// wanted.
type LayoutError struct{ Path string }

func (e *LayoutError) Error() string {
	return e.Path + ": is an image layout itself, not a directory of repositories"
}

// lockRoot locks the directory, without waiting. Where the filesystem has no
// flock, a shared lock is given to all.
func lockRoot(root string, how int) (*os.File, error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s: not a directory", root)
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			err = fmt.Errorf("%s: %w", root, ErrInUse)
		case how == unix.LOCK_SH && (errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)):
			err = nil
		case err != nil:
			err = fmt.Errorf("lock %s: %w", root, err)
		}
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

// Close forgets the uploads that did not end, and lets others collect garbage.
func (r *Registry) Close() error {
	r.uploads.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for name, p := range r.repos {
		if p.dir != nil {
			errs = append(errs, p.dir.Close())
		}
		delete(r.repos, name)
	}
	return errors.Join(append(errs, r.lock.Close())...)
}

// ServeHTTP answers one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	begun := time.Now()
	s := &stream{ResponseWriter: w, control: http.NewResponseController(w), stall: r.o.Stall}
	defer s.close(req)
	user, err := r.admit(req)
	if err == nil {
		err = r.route(s, req)
	}
	if err != nil {
		s.fail(req, err)
	}
	if r.o.Log != nil {
		r.o.Log(Access{Remote: req.RemoteAddr, User: user, Method: req.Method, Path: req.URL.RequestURI(), Status: s.status(),
			Bytes: s.sent, Duration: time.Since(begun), Err: s.broke})
	}
}

// handler answers a request to a repository.
type handler func(*Registry, context.Context, *stream, *http.Request, place) error

// route finds who answers a request.
func (r *Registry) route(s *stream, req *http.Request) error {
	s.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	p, err := parsePath(req.URL.Path)
	if err != nil {
		return err
	}
	h, ok := endpoints[p.kind][req.Method]
	if !ok {
		return notAllowed(s, p.kind)
	}
	if r.o.ReadOnly && changes(req.Method) {
		return fail(http.StatusMethodNotAllowed, codeUnsupported, "this registry is read-only")
	}
	return h(r, req.Context(), s, req, p)
}

func changes(method string) bool { return method != http.MethodGet && method != http.MethodHead }
