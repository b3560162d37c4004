package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

const (
	// requestSize is how much one request to upstream asks for at most.
	requestSize = 4 << 20
	// wholeFirst is up to which size a blob without an index is compared
	// before a byte of it is given.
	wholeFirst = 16 << 20
	// maxFlights bounds the requests for one blob that are ahead of who reads it.
	maxFlights = 4
	// badTries is how often what does not match is asked for.
	badTries = 3
)

var (
	errNoRoom   = errors.New("no room in the cache")
	errPatience = errors.New("nothing came from upstream")
)

// entry is one blob: whole, or parts of it.
type entry struct {
	key
	c *Cache

	// c.mu guards these.
	refs    int
	tick    int64 // of the last use
	bytes   int64 // on disk, as far as c.used knows
	touched time.Time

	saving sync.Mutex // held before mu

	mu      sync.Mutex
	whole   bool
	proved  bool // all of have was compared as it came
	have    extents
	flights []*flight
	counted int64 // bytes on disk, at the last recount
	hashing bool
	wrong   int           // how often the whole did not match
	changed chan struct{} // closed, and replaced, when something of this changes
	dirty   bool
	from    distruster // what the last bytes came from

	grid   *grid // by the index gridBy
	gridBy diskimage.Digest
}

type distruster interface{ Distrust() }

// flight is what is on its way.
type flight struct {
	diskimage.Extent
	proved bool  // its units are compared
	came   int64 // bytes of disk that it took
	err    error
}

func (c *Cache) newEntry(k key) *entry { return &entry{key: k, c: c, changed: make(chan struct{})} }

// notify wakes who waits for a change. The caller holds e.mu.
func (e *entry) notify() {
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *entry) isWhole() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.whole
}

func (e *entry) isDirty() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dirty && !e.whole
}

func (e *entry) isEmpty() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.whole && len(e.have) == 0 && len(e.flights) == 0 && !e.hashing
}

// isBusy reports whether something of it is on its way.
func (e *entry) isBusy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.flights) > 0 || e.hashing
}

// recount returns how many bytes of disk it takes more than at the last call.
// The caller holds e.mu, and tells settle.
func (e *entry) recount() int64 {
	n := e.have.pages()
	if e.whole {
		n = roundUp(e.size)
	}
	more := n - e.counted
	e.counted = n
	return more
}

func (e *entry) path() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pathLocked()
}

func (e *entry) pathLocked() string {
	if e.whole {
		return e.c.wholePath(e.digest)
	}
	return e.c.partialPath(e.key, "data")
}

// open opens the file for reading. It stays the same file whatever becomes of
// the entry while somebody holds it. Where it is gone, nothing is there any more.
func (e *entry) open() (*os.File, error) {
	e.mu.Lock()
	f, err := os.Open(e.pathLocked())
	more := int64(0)
	if errors.Is(err, fs.ErrNotExist) {
		e.whole, e.have, e.dirty = false, nil, false
		more = e.recount()
		e.notify()
	}
	e.mu.Unlock()
	if more != 0 {
		e.c.settle(e, more, 0)
	}
	return f, err
}

func (e *entry) all() diskimage.Extent { return diskimage.Extent{Len: e.size} }

// holds returns how many bytes from off on are there, at most n.
func (e *entry) holds(off, n int64) int64 {
	if e.whole {
		return n
	}
	want := diskimage.Extent{Off: off, Len: n}
	if gap := e.have.missing(want); gap.Len > 0 {
		return gap.Off - off
	}
	return n
}

// await waits until byte want.Off is there, and returns how many are from there
// on, at most want.Len. What is missing of want, two requests ahead, is begun.
func (e *entry) await(ctx context.Context, via *repository, want diskimage.Extent) (int64, error) {
	ahead := diskimage.Extent{Off: want.Off, Len: min(want.Len, 2*requestSize)}
	e.mu.Lock()
	there := e.holds(want.Off, want.Len)
	if !e.whole && len(e.flights) == 0 && e.have.has(e.all()) {
		e.finish() // the last process did not
	}
	e.mu.Unlock()
	if there >= ahead.Len {
		return there, nil
	}
	g, err := via.division(ctx, e)
	if err != nil {
		return there, only(there, err)
	}
	return e.wait(ctx, waiting{
		check:  func() (int64, error) { return e.holds(want.Off, want.Len), nil },
		launch: func() (*flight, error) { return e.launch(via, g, ahead) },
		eager:  true,
	})
}

// only returns err unless there is something to give.
func only(n int64, err error) error {
	if n > 0 {
		return nil
	}
	return err
}

// awaitWhole waits until the blob is whole, which it is when it was compared with
// its digest. moved may be nil; it is told how many bytes are there.
func (e *entry) awaitWhole(ctx context.Context, via *repository, moved func(int64)) error {
	if e.isWhole() {
		return nil
	}
	g, err := via.division(ctx, e)
	if err != nil {
		return err
	}
	e.mu.Lock()
	wrong := e.wrong
	e.mu.Unlock()
	_, err = e.wait(ctx, waiting{
		check: func() (int64, error) {
			if moved != nil && !e.whole {
				moved(e.have.total())
			}
			switch {
			case e.whole:
				return 1, nil
			case e.wrong-wrong >= badTries:
				return 0, fmt.Errorf("blob %v %w", e.digest, oci.ErrCorrupt)
			}
			return 0, nil
		},
		launch: func() (*flight, error) {
			if e.have.has(e.all()) {
				e.finish()
				return nil, nil
			}
			var first *flight
			for range maxFlights {
				fl, err := e.launch(via, g, e.all())
				if err != nil {
					return first, err
				}
				if first == nil {
					first = fl
				}
			}
			return first, nil
		},
	})
	return err
}

// waiting is what somebody waits for; both are called with e.mu held.
type waiting struct {
	check  func() (int64, error)   // more than 0 when it is there
	launch func() (*flight, error) // what it depends on
	eager  bool                    // launch also when it is there
}

// wait calls check at every change until it gives something, or what it depends
// on failed.
func (e *entry) wait(ctx context.Context, w waiting) (int64, error) {
	timer := time.NewTimer(e.c.o.Patience)
	defer timer.Stop()
	var on *flight
	for {
		n, changed, err := e.look(w, &on)
		if n > 0 || err != nil {
			return n, err
		}
		timer.Reset(e.c.o.Patience)
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-e.c.ctx.Done():
			return 0, errClosed
		case <-timer.C:
			return 0, fmt.Errorf("blob %v: %w for %v", e.digest, errPatience, e.c.o.Patience)
		}
	}
}

func (e *entry) look(w waiting, on **flight) (int64, <-chan struct{}, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, err := w.check()
	if err == nil && n == 0 && *on != nil && (*on).err != nil {
		err = (*on).err
	}
	if err != nil || n > 0 && !w.eager {
		return n, nil, err
	}
	*on, err = w.launch()
	return n, e.changed, only(n, err)
}

var errClosed = errors.New("the cache is being closed")

// launch sees to it that what is missing of want is on its way, by one more
// request at most, and returns the one that brings its first missing byte; nil
// if none is missing. The caller holds e.mu.
func (e *entry) launch(via *repository, g *grid, want diskimage.Extent) (*flight, error) {
	if e.whole || e.hashing {
		return nil, nil
	}
	if g.proves() && !e.proved {
		e.have, e.proved, e.dirty = nil, true, true // nothing of it was compared; its room is written over
	} else if !g.proves() && len(e.have) == 0 && len(e.flights) == 0 {
		e.proved = false
	}
	gap := e.have.missing(want)
	if gap.Len == 0 {
		return nil, nil
	}
	var first *flight
	taken := slices.Clone(e.have)
	for _, fl := range e.flights {
		taken.add(fl.Extent)
		if fl.Off <= gap.Off && gap.Off < fl.End() {
			first = fl
		}
	}
	gap = taken.missing(want)
	if gap.Len == 0 || first != nil && len(e.flights) >= maxFlights {
		return first, nil
	}
	if err := via.resting(); err != nil {
		return first, err
	}
	fl := &flight{Extent: g.request(gap, taken), proved: g.proves()}
	e.flights = append(e.flights, fl)
	e.c.wg.Add(1)
	go e.fly(via, g, fl)
	if first == nil {
		first = fl
	}
	return first, nil
}
