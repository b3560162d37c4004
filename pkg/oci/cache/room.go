package cache

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// touchEvery is how exactly a file's time tells, after a restart, when a blob
// was used.
const touchEvery = time.Minute

// adopt enters a blob that was found on disk.
func (c *Cache) adopt(e *entry, bytes int64, used time.Time) {
	e.bytes, e.counted, e.touched, e.tick = bytes, bytes, used, used.UnixNano()
	c.tick = max(c.tick, e.tick)
	c.entries[e.key] = e
	c.used += bytes
}

// acquire returns the entry of a blob, which stays until it is released.
func (c *Cache) acquire(k key) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		e = c.newEntry(k)
		c.entries[k] = e
	}
	c.hold(e)
	return e
}

// hold is acquire for an entry that is there. The caller holds c.mu.
func (c *Cache) hold(e *entry) {
	c.tick++
	e.tick = c.tick
	e.refs++
}

// release gives an entry back. One that holds nothing is forgotten.
func (c *Cache) release(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.refs == 0 && !c.tidy(e) {
		e.touch()
	}
}

// tidy forgets an entry that nobody holds and that holds nothing, and reports
// whether it did. The caller holds c.mu.
func (c *Cache) tidy(e *entry) bool {
	if e.refs > 0 || c.entries[e.key] != e || !e.isEmpty() {
		return false
	}
	c.remove(e)
	return true
}

// touch keeps the time of the use for the next process.
func (e *entry) touch() {
	if now := time.Now(); now.Sub(e.touched) > touchEvery {
		e.touched = now
		_ = os.Chtimes(e.path(), now, now) // it only orders evictions
	}
}

// remove forgets an entry without references and removes its files, the name of
// what a map belongs to first. The caller holds c.mu.
func (c *Cache) remove(e *entry) {
	delete(c.entries, e.key)
	c.used -= e.bytes
	for _, path := range []string{c.wholePath(e.digest), c.partialPath(e.key, "map"), c.partialPath(e.key, "data")} {
		if path == c.wholePath(e.digest) {
			// A file that was cut while no process ran has another entry by now.
			if info, err := os.Lstat(path); !e.isWhole() || err != nil || info.Size() != e.size {
				continue
			}
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.o.Notify(err)
		}
	}
}

// reserve makes room for n bytes that are to be fetched, and reports whether
// there is any. They are given back by settle.
func (c *Cache) reserve(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.fullUntil) || !c.makeRoom(n) {
		return false
	}
	c.used += n
	return true
}

// makeRoom evicts until n bytes more fit. The caller holds c.mu.
func (c *Cache) makeRoom(n int64) bool {
	var pinned map[key]bool
	for c.used+n > c.o.MaxBytes {
		if pinned == nil {
			pinned = c.pinned()
		}
		var victim *entry
		for _, e := range c.entries {
			if e.refs == 0 && !pinned[e.key] && (victim == nil || e.tick < victim.tick) && !e.isBusy() {
				victim = e
			}
		}
		if victim == nil {
			return false
		}
		c.remove(victim)
		c.Stats.Evictions.Add(1)
	}
	return true
}

// settle gives back a reservation, and counts what came instead of it.
func (c *Cache) settle(e *entry, came, reserved int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used += came - reserved
	e.bytes += came
}

// fullTime is how long nothing is kept after the disk took nothing.
const fullTime = 10 * time.Second

func (c *Cache) stopKeeping() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fullUntil = time.Now().Add(fullTime)
}

// pinned returns the blobs that are not evicted. The caller holds c.mu.
func (c *Cache) pinned() map[key]bool {
	set := map[key]bool{}
	for _, p := range c.pins {
		for _, k := range p.blobs {
			set[k] = true
		}
	}
	return set
}
