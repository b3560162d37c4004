// Package cache is a read-only registry whose blobs come from other
// repositories once and then from disk: docs/cache.md.
//
//	c, err := cache.Open(cache.Options{
//		Dir:      "/var/cache/imgpipe",
//		MaxBytes: 64 << 30,
//		Upstream: func(name string) (cache.Upstream, error) { … },
//		Allow:    func(r *http.Request, name string) bool { … },
//	})
//	if err != nil { … }
//	defer c.Close()                       // after the last request
//	mux.Handle("/v2/", c)
//	staged, err := c.Stage(ctx, "acme/server", "1.4", nil)
//
// It guarantees: what is kept of an image's segments was compared with the
// image's index as it arrived, what is kept as a whole blob with its digest; a
// part of a blob is never given as the whole; what is on its way is fetched
// once, and by the cache, so that no client's end ends it; MaxBytes bounds the
// files, what is on its way included; the directory is right after a kill or a
// power cut at any moment. Bytes of large blobs without an index are given
// before they are compared, and so are bytes that pass through because there is
// no room: clients compare what they get.
//
// Memory: Options.Fetches times a frame and its chunk, the parsed indexes of
// at most maxIndexChunks chunks (about 90 MiB), and the maps of the blobs.
package cache

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/singleflight"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Upstream is where a repository's content comes from: a *remote.Repo, or a
// *oci.Dir.
type Upstream interface {
	// Manifest returns a manifest by tag or digest, compared with its digest.
	Manifest(ctx context.Context, reference string) ([]byte, v1.Descriptor, error)
	// Blob opens a range of a blob, not compared with anything. If the reader
	// has a method Distrust, it is called when the bytes were wrong.
	Blob(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error)
	// Referrers returns what has the digest for its subject.
	Referrers(ctx context.Context, digest diskimage.Digest) ([]v1.Descriptor, error)
}

// Options say what is cached, where, and for whom.
type Options struct {
	Dir      string // made if it is missing
	MaxBytes int64  // of blobs on disk; 0: 32 GiB
	// Upstream finds a repository by the name that it has below /v2/. An error
	// that is oci.ErrNotFound is answered with 404, others with 503.
	Upstream func(name string) (Upstream, error)
	// Allow says whether a request may read a repository; nil lets everybody.
	Allow func(r *http.Request, name string) bool
	// Fetches bounds the requests to upstream that run at once; 0: 16.
	Fetches int
	// Patience is how long a client waits for a byte; 0: one minute. Stall is how
	// long a client may take for 256 KiB; 0: two minutes.
	Patience, Stall time.Duration
	// Rest is how long an upstream that was not reached is left alone; 0: 2 s.
	// Fresh is how long a listing of referrers is not asked for again; 0: 10 s.
	Rest, Fresh time.Duration
	// Save is how often what arrived is made durable; 0: 1 s.
	Save time.Duration
	// Notify is told of what went wrong and was mended or passed over, from any
	// goroutine; nil: nobody.
	Notify func(error)
}

// Stats counts what a cache did since it was opened. Sizes are bytes.
type Stats struct {
	Requests  atomic.Int64 // answered
	Hits      atomic.Int64 // ranges of blobs and manifests that were there
	Misses    atomic.Int64 // those that were not
	Served    atomic.Int64 // of blobs, to clients
	Fetched   atomic.Int64 // of blobs, from upstream
	Passed    atomic.Int64 // of Served, without being kept
	Evictions atomic.Int64 // blobs
	Bad       atomic.Int64 // ranges from upstream, or on disk, that were wrong
	Doubts    atomic.Int64 // requests with Cache-Control: no-cache
	Errors    atomic.Int64 // requests that upstream or the disk failed
	Stale     atomic.Int64 // listings of referrers given although upstream did not answer
}

// Cache is an http.Handler for /v2/. It is safe for concurrent use.
type Cache struct {
	Stats Stats

	o       Options
	lock    *os.File
	ctx     context.Context // of fetching
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	slots   chan struct{}
	flights singleflight.Group // of manifests and listings
	dirty   chan struct{}      // something is to be saved
	indexes indexes
	doubts  chan struct{} // one at a time

	mu        sync.Mutex
	entries   map[key]*entry
	used      int64 // bytes on disk or on their way
	tick      int64 // of uses
	fullUntil time.Time
	pins      map[string]pin // by owner
	repos     map[string]*repository
}

// Open opens a cache, or makes it. Close it after the last request.
func Open(o Options) (*Cache, error) {
	if o.Upstream == nil {
		return nil, errors.New("cache: no upstream")
	}
	o.MaxBytes = orDefault(o.MaxBytes, 32<<30)
	o.Fetches = orDefault(o.Fetches, 16)
	o.Patience = orDefault(o.Patience, time.Minute)
	o.Stall = orDefault(o.Stall, 2*time.Minute)
	o.Rest = orDefault(o.Rest, 2*time.Second)
	o.Fresh = orDefault(o.Fresh, 10*time.Second)
	o.Save = orDefault(o.Save, time.Second)
	if o.Notify == nil {
		o.Notify = func(error) {}
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	c := &Cache{o: o, lock: lock, slots: make(chan struct{}, o.Fetches), dirty: make(chan struct{}, 1), doubts: make(chan struct{}, 1),
		entries: map[key]*entry{}, pins: map[string]pin{}, repos: map[string]*repository{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	err = c.recover()
	if err == nil {
		err = c.loadStaged()
	}
	if err != nil {
		c.cancel()
		return nil, errors.Join(err, lock.Close())
	}
	c.mu.Lock()
	c.makeRoom(0) // MaxBytes may be smaller than last time
	c.mu.Unlock()
	c.wg.Add(1)
	go c.saver()
	return c, nil
}

func orDefault[T int | int64 | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Close ends what is being fetched and saves what is there. After an error the
// next process finds less than there was, and nothing wrong.
func (c *Cache) Close() error {
	c.cancel()
	c.wg.Wait()
	return errors.Join(c.saveAll(), c.lock.Close())
}

// saver saves the maps of what arrived, every Options.Save at most.
func (c *Cache) saver() {
	defer c.wg.Done()
	for {
		select {
		case <-c.dirty:
		case <-c.ctx.Done():
			return
		}
		select {
		case <-time.After(c.o.Save):
		case <-c.ctx.Done():
			return
		}
		if err := c.saveAll(); err != nil {
			c.o.Notify(err) // a crash now loses what was not saved, and no more
		}
	}
}

func (c *Cache) saveAll() error {
	c.mu.Lock()
	var list []*entry
	for _, e := range c.entries {
		if e.isDirty() {
			e.refs++
			list = append(list, e)
		}
	}
	c.mu.Unlock()
	var errs []error
	for _, e := range list {
		err := e.save()
		if err != nil {
			e.mu.Lock()
			e.dirty = true // next time
			e.mu.Unlock()
		}
		errs = append(errs, err)
		c.release(e)
	}
	return errors.Join(errs...)
}

// Usage returns how many bytes are on disk or on their way to it, and how many may be.
func (c *Cache) Usage() (used, limit int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used, c.o.MaxBytes
}
