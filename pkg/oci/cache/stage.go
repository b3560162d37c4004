package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

const (
	stagePrefix   = "staged "
	maxStaged     = 1 << 20 // bytes of a file that says what is staged
	maxImageParts = 512     // manifests of one image, its signatures included
	stageReads    = 4       // blobs at once
)

// pin is what an owner keeps.
type pin struct {
	manifests []diskimage.Digest
	blobs     []key
}

// Staged is an image that is kept until it is unstaged.
type Staged struct {
	Repository string           `json:"repository"`
	Reference  string           `json:"reference"` // as it was asked for
	Digest     diskimage.Digest `json:"digest"`
	Bytes      int64            `json:"bytes"` // of all its blobs
	Moved      int64            `json:"moved"` // of these, how many were not there
}

// Stage fetches an image whole, its signatures and other referrers too, and
// pins it. reference is a tag or a digest. progress, which may be nil, is told
// how many of how many bytes are there, from any goroutine. What was fetched
// stays if it fails. An image that cannot fit is errors.Is ErrTooLarge.
func (c *Cache) Stage(ctx context.Context, name, reference string, progress func(done, total int64)) (*Staged, error) {
	r, err := c.repository(name)
	if err != nil {
		return nil, err
	}
	digest, err := r.resolve(ctx, reference)
	if err != nil {
		return nil, err
	}
	p, err := r.image(ctx, digest)
	if err != nil {
		return nil, err
	}
	s := &Staged{Repository: name, Reference: reference, Digest: digest}
	owner := stagePrefix + stagedName(name, digest)
	restore, err := c.pinIfFits(owner, p, &s.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s@%v: %w", name, digest, err)
	}
	s.Moved, err = r.fill(ctx, p.blobs, s.Bytes, progress)
	if err == nil {
		err = c.saveStaged(s)
	}
	if err != nil {
		restore()
		return nil, err
	}
	return s, nil
}

// ErrTooLarge is an image that does not fit beside what is pinned.
var ErrTooLarge = errors.New("does not fit into the cache beside what is staged and in use")

// Resolve returns the digest that a tag, or a digest, means upstream now.
func (c *Cache) Resolve(ctx context.Context, name, reference string) (diskimage.Digest, error) {
	r, err := c.repository(name)
	if err != nil {
		return diskimage.Digest{}, err
	}
	return r.resolve(ctx, reference)
}

func (r *repository) resolve(ctx context.Context, reference string) (diskimage.Digest, error) {
	if d, err := diskimage.ParseDigest(reference); err == nil {
		return d, nil
	}
	b, desc, err := r.upstream().Manifest(ctx, reference)
	if err != nil {
		return diskimage.Digest{}, r.failed(err)
	}
	digest := diskimage.DigestOf(b)
	if desc.Digest.String() != digest.String() || len(b) > maxManifest {
		return digest, fmt.Errorf("%s:%s: manifest %w", r.name, reference, oci.ErrCorrupt)
	}
	if _, err := r.learn(digest, b); err != nil {
		return digest, err
	}
	return digest, r.keep(digest.Hex(), b)
}

// Pin keeps an image's blobs, as far as they are there or come, for owner: a job
// that is open. Referrers are not pinned. It replaces what owner pinned before.
func (c *Cache) Pin(ctx context.Context, owner, name string, digest diskimage.Digest) error {
	r, err := c.repository(name)
	if err != nil {
		return err
	}
	var p pin
	if err := r.walk(ctx, &p, digest, false); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pins["job "+owner] = p
	return nil
}

// Unpin lets go of what Pin keeps for owner.
func (c *Cache) Unpin(owner string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pins, "job "+owner)
}

// Pins returns how many images are pinned, by jobs and by being staged.
func (c *Cache) Pins() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pins)
}

// image returns all that belongs to an image.
func (r *repository) image(ctx context.Context, digest diskimage.Digest) (pin, error) {
	var p pin
	return p, r.walk(ctx, &p, digest, true)
}

// walk adds a manifest and what is below it, and its referrers.
func (r *repository) walk(ctx context.Context, p *pin, digest diskimage.Digest, referrers bool) error {
	for _, d := range p.manifests {
		if d == digest {
			return nil
		}
	}
	if len(p.manifests) >= maxImageParts {
		return fmt.Errorf("%s: more than %d manifests belong to the image", r.name, maxImageParts)
	}
	_, doc, _, err := r.manifest(ctx, digest)
	if err != nil {
		return err
	}
	p.manifests = append(p.manifests, digest)
	seen := map[key]bool{}
	for _, k := range p.blobs {
		seen[k] = true
	}
	for _, d := range doc.content() {
		k, err := keyOf(d)
		if err != nil {
			return err
		}
		if !seen[k] {
			seen[k] = true
			p.blobs = append(p.blobs, k)
		}
	}
	below := doc.Manifests
	if referrers {
		list, _, err := r.referrers(ctx, digest, false)
		if err != nil {
			return err
		}
		below = append(append([]v1.Descriptor(nil), below...), list...)
	}
	for _, d := range below {
		k, err := keyOf(d)
		if err != nil {
			return err
		}
		if err := r.walk(ctx, p, k.digest, referrers); err != nil {
			return err
		}
	}
	return nil
}

// pinIfFits pins before anything is fetched, so that nothing evicts what comes.
// restore undoes it.
func (c *Cache) pinIfFits(owner string, p pin, size *int64) (restore func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, was := c.pins[owner]
	undo := func() {
		if delete(c.pins, owner); was {
			c.pins[owner] = old
		}
	}
	c.pins[owner] = p
	for _, k := range p.blobs {
		*size += k.size
	}
	sum := int64(0)
	for k := range c.pinned() {
		sum += roundUp(k.size)
	}
	if sum > c.o.MaxBytes {
		undo()
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrTooLarge, *size, c.o.MaxBytes)
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		undo()
	}, nil
}

// fill fetches blobs until they are whole, the small ones first: the index
// among them proves the others.
func (r *repository) fill(ctx context.Context, blobs []key, total int64, progress func(done, total int64)) (moved int64, err error) {
	blobs = append([]key(nil), blobs...)
	sort.SliceStable(blobs, func(i, j int) bool { return blobs[i].size < blobs[j].size })
	var mu sync.Mutex
	done := int64(0)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(stageReads)
	for _, k := range blobs {
		g.Go(func() error {
			e := r.c.acquire(k)
			defer r.c.release(e)
			last, had := int64(0), int64(-1)
			tell := func(n int64) {
				mu.Lock()
				defer mu.Unlock()
				if had < 0 {
					had = n
				}
				done += n - last
				last = n
				if progress != nil {
					progress(done, total)
				}
			}
			if !e.isWhole() {
				if err := e.awaitWhole(ctx, r, tell); err != nil {
					return fmt.Errorf("blob %v: %w", k.digest, err)
				}
			}
			tell(k.size)
			mu.Lock()
			moved += k.size - had
			mu.Unlock()
			return nil
		})
	}
	return moved, g.Wait()
}

func stagedName(name string, digest diskimage.Digest) string {
	return diskimage.DigestOf([]byte(name + "@" + digest.String())).Hex()
}

func (c *Cache) saveStaged(s *Staged) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(c.o.Dir, stagedDir, stagedName(s.Repository, s.Digest)), append(b, '\n'), 0o600)
}

// Staged lists what is staged, by repository and digest.
func (c *Cache) Staged() ([]Staged, error) {
	files, err := os.ReadDir(filepath.Join(c.o.Dir, stagedDir))
	if err != nil {
		return nil, err
	}
	list := []Staged{}
	for _, f := range files {
		path := filepath.Join(c.o.Dir, stagedDir, f.Name())
		if strings.HasPrefix(f.Name(), ".") {
			continue // is being written
		}
		var s Staged
		b, err := readLimited(path, maxStaged)
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		list = append(list, s)
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i], list[j]
		return a.Repository < b.Repository || a.Repository == b.Repository && a.Digest.String() < b.Digest.String()
	})
	return list, nil
}

// Unstage unpins an image. What it holds stays until there is need of its room.
// An image that is not staged is oci.ErrNotFound.
func (c *Cache) Unstage(name string, digest diskimage.Digest) error {
	file := stagedName(name, digest)
	err := os.Remove(filepath.Join(c.o.Dir, stagedDir, file))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s@%v is not staged: %w", name, digest, oci.ErrNotFound)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.pins, stagePrefix+file)
	c.mu.Unlock()
	return atomicfile.OS.SyncDir(filepath.Join(c.o.Dir, stagedDir))
}

// loadStaged pins again what was staged, from the manifests on disk alone.
func (c *Cache) loadStaged() error {
	dir := filepath.Join(c.o.Dir, stagedDir)
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") {
			_ = os.Remove(filepath.Join(dir, f.Name())) // a temporary of a process that was killed
		}
	}
	list, err := c.Staged()
	if err != nil {
		return err
	}
	for _, s := range list {
		r := c.newRepository(s.Repository, nowhere{})
		if err := r.load(); err != nil {
			return err
		}
		p := pin{}
		if err := r.walk(c.ctx, &p, s.Digest, true); err != nil {
			c.o.Notify(fmt.Errorf("%s@%v was staged: %w", s.Repository, s.Digest, err))
		}
		c.pins[stagePrefix+stagedName(s.Repository, s.Digest)] = p
	}
	return nil
}

// pinnedManifests returns the names of files that are not removed.
func (c *Cache) pinnedManifests() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := map[string]bool{}
	for _, p := range c.pins {
		for _, d := range p.manifests {
			set[d.Hex()] = true
		}
	}
	return set
}
