package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func descriptor(k key) v1.Descriptor {
	return v1.Descriptor{MediaType: "application/octet-stream", Size: k.size, Digest: v1.Hash{Algorithm: "sha256", Hex: k.digest.Hex()}}
}

// fly brings fl, which counts among e.flights until it has ended.
func (e *entry) fly(via *repository, g *grid, fl *flight) {
	defer e.c.wg.Done()
	err := e.fetch(via, g, fl)
	e.mu.Lock()
	fl.err = err
	for i, f := range e.flights {
		if f == fl {
			e.flights = append(e.flights[:i:i], e.flights[i+1:]...)
			break
		}
	}
	if err == nil && len(e.flights) == 0 && e.have.has(e.all()) {
		e.finish()
	}
	e.notify()
	e.mu.Unlock()
	e.c.mu.Lock()
	e.c.tidy(e)
	e.c.mu.Unlock()
}

// fetch reserves room and fetches the units of fl. Where the disk takes nothing
// it is errNoRoom.
func (e *entry) fetch(via *repository, g *grid, fl *flight) (err error) {
	reserved := fl.Len + 2*page
	if !e.c.reserve(reserved) {
		return errNoRoom
	}
	defer func() { e.c.settle(e, fl.came, reserved) }()
	select {
	case e.c.slots <- struct{}{}:
		defer func() { <-e.c.slots }()
	case <-e.c.ctx.Done():
		return errClosed
	}
	f, err := os.OpenFile(e.c.partialPath(e.key, "data"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return e.c.full(err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = e.c.full(cerr)
		}
	}()
	var check checker
	defer check.close()
	tries := 0
	for pos := fl.Off; pos < fl.End(); {
		next, err := e.units(via, g, fl, pos, f, &check)
		if next > pos {
			tries = 0
		}
		pos = next
		if err == nil {
			continue
		}
		if tries++; !errors.Is(err, oci.ErrCorrupt) || tries >= badTries {
			return err
		}
		e.c.o.Notify(err)
	}
	return nil
}

// units fetches from pos to the end of fl, and returns how far it got.
func (e *entry) units(via *repository, g *grid, fl *flight, pos int64, f *os.File, check *checker) (int64, error) {
	body, err := via.upstream().Blob(e.c.ctx, descriptor(e.key), pos, fl.End()-pos)
	if err != nil {
		return pos, via.failed(err)
	}
	defer body.Close()
	var buf []byte
	for pos < fl.End() {
		u := g.at(pos)
		if int64(cap(buf)) < u.Len {
			buf = make([]byte, u.Len)
		}
		buf = buf[:u.Len]
		n, err := io.ReadFull(body, buf)
		e.c.Stats.Fetched.Add(int64(n))
		if err != nil {
			return pos, via.failed(err)
		}
		ok, err := check.right(g, u, buf)
		if err != nil {
			return pos, err
		}
		from, _ := body.(distruster)
		if !ok {
			e.c.Stats.Bad.Add(1)
			if from != nil {
				from.Distrust()
			}
			return pos, &oci.BlobError{Blob: e.digest, Range: u.Extent, Err: oci.ErrCorrupt}
		}
		if _, err := f.WriteAt(buf, u.Off); err != nil {
			return pos, e.c.full(err)
		}
		pos = u.End()
		e.arrived(u.Extent, fl, from)
	}
	return pos, nil
}

// arrived enters a unit that is in the file.
func (e *entry) arrived(x diskimage.Extent, fl *flight, from distruster) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.proved && !fl.proved {
		return // it is fetched again, and compared
	}
	e.have.add(x)
	fl.came += e.recount()
	e.dirty, e.from = true, from
	e.notify()
	select {
	case e.c.dirty <- struct{}{}:
	default:
	}
}

// finish compares the blob with its digest, all of which is there, and makes it
// a whole one, or throws it away. The caller holds e.mu; it is done later.
func (e *entry) finish() {
	if e.hashing || e.whole {
		return
	}
	e.hashing = true
	e.c.wg.Add(1)
	go func() {
		defer e.c.wg.Done()
		err := e.compare()
		if err == nil {
			err = e.promote()
		}
		if err != nil && !errors.Is(err, errClosed) {
			e.c.o.Notify(err)
			e.throwAway(errors.Is(err, oci.ErrCorrupt))
		}
		e.mu.Lock()
		more := e.recount()
		e.mu.Unlock()
		e.c.settle(e, more, 0)
		e.mu.Lock()
		e.hashing = false
		e.notify()
		e.mu.Unlock()
		e.c.mu.Lock()
		e.c.tidy(e)
		e.c.mu.Unlock()
	}()
}

// compare hashes the file.
func (e *entry) compare() error {
	f, err := os.OpenFile(e.path(), os.O_RDWR|os.O_CREATE, 0o600) // made for the empty blob
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, &cancelled{e.c.ctx, f}, make([]byte, 256<<10))
	if err != nil {
		return err
	}
	if diskimage.Digest(h.Sum(nil)) != e.digest || n != e.size {
		return &oci.BlobError{Blob: e.digest, Range: e.all(), Err: oci.ErrCorrupt}
	}
	return nil
}

// cancelled is a reader that ends with the cache.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (r *cancelled) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, errClosed
	}
	return r.r.Read(p)
}

// promote gives the file its name among the whole blobs, durably.
func (e *entry) promote() error {
	from, to := e.c.partialPath(e.key, "data"), e.c.wholePath(e.digest)
	f, err := os.OpenFile(from, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	e.saving.Lock()
	defer e.saving.Unlock()
	e.mu.Lock()
	err = os.Rename(from, to)
	if err == nil {
		e.whole, e.have, e.dirty = true, nil, false
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.Remove(e.c.partialPath(e.key, "map")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.c.o.Notify(err) // it goes at the next start
	}
	if err := atomicfile.OS.SyncDir(e.c.o.Dir + "/" + wholeDir); err != nil {
		e.c.o.Notify(err) // a power cut may lose the blob
	}
	return nil
}

// throwAway removes all that is there, which is wrong or cannot be read. The
// file stays, empty, as long as somebody holds it.
func (e *entry) throwAway(wrong bool) {
	e.mu.Lock()
	e.have, e.dirty = nil, true
	if wrong {
		e.wrong++
		e.c.Stats.Bad.Add(1)
		if e.from != nil {
			e.from.Distrust()
		}
	}
	path := e.pathLocked()
	e.mu.Unlock()
	if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
		punch(f, e.all())
		_ = f.Close() // what it holds is thrown away
	}
	if err := e.save(); err != nil {
		e.c.o.Notify(err)
	}
}

// punch gives back the disk's room for what is not there any more.
func punch(f *os.File, e diskimage.Extent) {
	// Where it is not supported the room is lost until the blob is whole, or goes.
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Off, max(e.Len, 1))
}

// full notes that the disk does not take what is written, and returns errNoRoom.
func (c *Cache) full(err error) error {
	c.o.Notify(fmt.Errorf("nothing is kept for %v: %w", fullTime, err))
	c.stopKeeping()
	return errNoRoom
}
