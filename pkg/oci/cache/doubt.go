package cache

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// doubt compares what is there of want with what is known of it, and removes
// what is wrong, or cannot be compared: docs/cache.md, "Doubt". One at a time:
// a client that doubts everything costs one core.
func (e *entry) doubt(ctx context.Context, via *repository, want diskimage.Extent) error {
	e.c.Stats.Doubts.Add(1)
	g, err := via.division(ctx, e)
	if err != nil {
		return nil // upstream does not answer: what is there is all that there is
	}
	select {
	case e.c.doubts <- struct{}{}:
		defer func() { <-e.c.doubts }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if e.isWhole() {
		return e.doubtWhole(g, want)
	}
	e.mu.Lock()
	proved := e.proved
	have := slices.Clone(e.have)
	e.mu.Unlock()
	bad := extents{want}
	if g.proves() && proved {
		if bad, err = e.badUnits(g, want, have); err != nil {
			return err
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return e.drop(bad)
}

// doubtWhole makes a whole blob a partial one again, of its units that are right,
// if it is not what it was.
func (e *entry) doubtWhole(g *grid, want diskimage.Extent) error {
	if g.proves() {
		if bad, err := e.badUnits(g, want, extents{e.all()}); err != nil || len(bad) == 0 {
			return err
		}
	} else if err := e.compare(); err == nil || !errors.Is(err, oci.ErrCorrupt) && e.c.ctx.Err() != nil {
		return err
	}
	var have extents
	if g.proves() {
		have.add(e.all())
		bad, err := e.badUnits(g, e.all(), extents{e.all()})
		if err != nil {
			return err
		}
		for _, x := range bad {
			have.remove(x)
		}
	}
	return e.demote(g.proves(), have)
}

// demote writes the map before the data loses its name among the whole blobs: a
// crash between leaves what was there.
func (e *entry) demote(proved bool, have extents) error {
	e.c.Stats.Bad.Add(1)
	more := int64(0)
	e.saving.Lock()
	err := writeMap(e.c.partialPath(e.key, "map"), e.size, proved, have)
	if err == nil {
		e.mu.Lock()
		if err = os.Rename(e.c.wholePath(e.digest), e.c.partialPath(e.key, "data")); err == nil {
			e.whole, e.proved, e.have = false, proved, have
			more = e.recount()
			e.notify()
		}
		e.mu.Unlock()
	}
	e.saving.Unlock()
	e.c.settle(e, more, 0)
	return err
}

// badUnits returns the units of want, as far as they are there, that are wrong.
func (e *entry) badUnits(g *grid, want diskimage.Extent, have extents) (bad extents, err error) {
	f, err := e.open()
	if err != nil {
		return extents{want}, nil
	}
	defer f.Close()
	var check checker
	defer check.close()
	var buf []byte
	for off := want.Off; off < want.End(); {
		u := g.at(off)
		off = u.End()
		if have.missing(u.Extent) == u.Extent {
			continue
		}
		if int64(cap(buf)) < u.Len {
			buf = make([]byte, u.Len)
		}
		ok := false
		if _, err := f.ReadAt(buf[:u.Len], u.Off); err == nil && have.has(u.Extent) { // a sector that cannot be read is wrong
			if ok, err = check.right(g, u, buf[:u.Len]); err != nil {
				return nil, err
			}
		}
		if !ok {
			bad.add(u.Extent)
		}
	}
	return bad, nil
}

// drop removes what is wrong, durably, so that it may be written over.
func (e *entry) drop(bad extents) error {
	e.mu.Lock()
	before := e.have.total()
	if e.whole {
		before = 0
	}
	for _, x := range bad {
		e.have.remove(x)
	}
	removed := before > e.have.total()
	e.dirty = true
	more := e.recount()
	e.mu.Unlock()
	if removed {
		e.c.Stats.Bad.Add(1)
	}
	err := e.save()
	e.c.settle(e, more, 0)
	return err
}
