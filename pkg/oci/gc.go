package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// GCReport says what a collection removed.
type GCReport struct {
	Manifests int   `json:"manifests"` // entries of index.json whose subject is gone
	Blobs     int   `json:"blobs"`     // unreferenced blobs
	Temps     int   `json:"temps"`     // files of processes that were killed
	Bytes     int64 `json:"bytes"`     // freed, as far as file lengths tell
}

// GC removes what docs/format.md, section 9, calls garbage: referrers whose
// subject is gone, blobs that nothing in index.json reaches, and temporary files
// that killed processes left. It returns ErrInUse, having removed nothing, when
// anyone else has the layout open or a blob is being written; a manifest that
// cannot be read, or is of a kind not known, stops it as well. Blobs written
// through d and not yet published are garbage to it.
func (d *Dir) GC() (report GCReport, err error) {
	err = d.alone(func() error {
		x, err := d.Index()
		if err != nil {
			return err
		}
		keep, stay, err := d.live(x.Manifests)
		if err != nil {
			return err
		}
		report.Manifests = len(x.Manifests) - len(stay)
		if report.Manifests > 0 {
			if err := d.writeIndex(x, func(x *v1.IndexManifest) error { x.Manifests = stay; return nil }); err != nil {
				return err
			}
		}
		if err := d.sweepTemps(&report); err != nil {
			return err
		}
		return d.sweep("blobs/sha256", &report.Blobs, &report.Bytes, func(e fs.DirEntry) bool {
			digest, err := diskimage.ParseDigest("sha256:" + e.Name())
			_, kept := keep[digest]
			return err == nil && !kept // what is not named by a digest is not ours
		})
	})
	if err != nil && !errors.Is(err, ErrInUse) {
		err = fmt.Errorf("collect garbage: %w", err)
	}
	return report, err
}

// RemoveTemps removes the temporary files that killed processes left, unless
// someone else has the layout open, which is ErrInUse.
func (d *Dir) RemoveTemps() (report GCReport, err error) {
	err = d.alone(func() error { return d.sweepTemps(&report) })
	return report, err
}

// alone calls f while nobody else has the layout open, or returns ErrInUse.
func (d *Dir) alone(f func() error) (err error) {
	if !d.mu.TryLock() {
		return ErrInUse
	}
	defer d.mu.Unlock()
	// One collector at a time, and none while index.json changes.
	alone, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer alone.Close()
	if err := tryFlock(alone, unix.LOCK_EX); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return err
	}
	// Turning the shared lock into an exclusive one drops it if that fails, so
	// it is taken again. Whoever slipped in between has a shared one: only a
	// collector asks for more, and there is no other.
	if err := tryFlock(d.lock, unix.LOCK_EX); err != nil {
		if again := tryFlock(d.lock, unix.LOCK_SH); again != nil {
			return fmt.Errorf("lock %s: %w", d.path, again)
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return err
	}
	defer func() {
		if again := tryFlock(d.lock, unix.LOCK_SH); err == nil && again != nil {
			err = fmt.Errorf("lock %s: %w", d.path, again)
		}
	}()
	return f()
}

// referrersTag is the tag under which clients list what refers to a digest
// where there is no referrers API: distribution-spec 1.1, "Referrers Tag
// Schema", and with a suffix what cosign before 3 uses.
var referrersTag = regexp.MustCompile(`^sha256-([0-9a-f]{64})(\.[a-z]+)?$`)

// follows returns the digest that an entry of index.json is about and goes
// away with, if it is a referrer without a tag, or a tag that lists referrers.
func (d *Dir) follows(m v1.Descriptor) (*v1.Hash, error) {
	tag := m.Annotations[annotationRefName]
	if match := referrersTag.FindStringSubmatch(tag); match != nil {
		return &v1.Hash{Algorithm: "sha256", Hex: match[1]}, nil
	}
	if tag != "" {
		return nil, nil
	}
	n, err := d.readNode(m)
	if err != nil {
		return nil, err
	}
	return n.subject, nil
}

// live returns what the manifests of index.json reach that are there for
// themselves, and the entries that stay: those, and what follows them, and what
// follows that. Where none is there for itself, the layout is a place for
// referrers to what is elsewhere, and all stay.
func (d *Dir) live(manifests []v1.Descriptor) (keep map[diskimage.Digest]bool, stay []v1.Descriptor, err error) {
	keep = map[diskimage.Digest]bool{}
	subjects := make([]*v1.Hash, len(manifests))
	roots := 0
	for i, m := range manifests {
		if subjects[i], err = d.follows(m); err != nil {
			return nil, nil, err
		}
		if subjects[i] == nil {
			roots++
		}
	}
	marked := make([]bool, len(manifests))
	for more := true; more; {
		more = false
		for i, m := range manifests {
			if marked[i] || roots > 0 && subjects[i] != nil && !reached(keep, *subjects[i]) {
				continue
			}
			if err := d.mark(m, keep, 0); err != nil {
				return nil, nil, err
			}
			marked[i], more = true, true
		}
	}
	for i, m := range manifests {
		if marked[i] {
			stay = append(stay, m)
		}
	}
	return keep, stay, nil
}

func reached(keep map[diskimage.Digest]bool, h v1.Hash) bool {
	digest, err := digestOf(h)
	_, ok := keep[digest]
	return err == nil && ok
}

// maxNesting is how deep indexes may hold indexes.
const maxNesting = 4

// mark adds the manifest that desc describes, and all that it reaches, to keep:
// true for a manifest whose children were marked, too.
func (d *Dir) mark(desc v1.Descriptor, keep map[diskimage.Digest]bool, depth int) error {
	digest, err := digestOf(desc.Digest)
	if err != nil {
		return err
	}
	if keep[digest] {
		return nil
	}
	keep[digest] = true
	if !desc.MediaType.IsImage() && !desc.MediaType.IsIndex() {
		return fmt.Errorf("manifest %v: media type %q is not known, nor what it reaches", digest, desc.MediaType)
	}
	if depth > maxNesting {
		return fmt.Errorf("manifest %v: nested too deep", digest)
	}
	b, err := d.ReadBlob(digest, desc.Size, maxIndexDoc)
	if err != nil {
		return err
	}
	var doc struct {
		Config    v1.Descriptor   `json:"config"`
		Layers    []v1.Descriptor `json:"layers"`
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("manifest %v: %w", digest, err)
	}
	if desc.MediaType.IsImage() {
		doc.Layers = append(doc.Layers, doc.Config)
	}
	for _, l := range doc.Layers {
		leaf, err := digestOf(l.Digest)
		if err != nil {
			return fmt.Errorf("manifest %v: %w", digest, err)
		}
		if _, ok := keep[leaf]; !ok {
			keep[leaf] = false
		}
	}
	for _, m := range doc.Manifests {
		if err := d.mark(m, keep, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) sweepTemps(report *GCReport) error {
	if err := d.sweep(tempDir, &report.Temps, &report.Bytes, func(fs.DirEntry) bool { return true }); err != nil {
		return err
	}
	return d.sweep(".", &report.Temps, &report.Bytes, func(e fs.DirEntry) bool { return isTemp(e.Name()) })
}

// sweep removes the files of a directory that are garbage.
func (d *Dir) sweep(dir string, count *int, freed *int64, garbage func(fs.DirEntry) bool) error {
	entries, err := os.ReadDir(filepath.Join(d.path, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !garbage(e) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if err := d.fs.Remove(filepath.Join(d.path, dir, e.Name())); err != nil {
			return err
		}
		*count++
		if links, ok := info.Sys().(*syscall.Stat_t); !ok || links.Nlink < 2 {
			*freed += info.Size() // nobody else's name for the same file
		}
	}
	return nil
}
