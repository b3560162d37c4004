package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// GCReport says what a collection removed.
type GCReport struct {
	Blobs int   `json:"blobs"` // unreferenced blobs
	Temps int   `json:"temps"` // files of processes that were killed
	Bytes int64 `json:"bytes"` // freed, as far as file lengths tell
}

// GC removes blobs that nothing in index.json reaches, and temporary files
// that killed processes left. It returns ErrInUse, having removed nothing, when
// anyone else has the layout open or a blob is being written; a manifest that
// cannot be read, or is of a kind not known, stops it as well. Blobs written through d and not yet
// published are garbage to it.
func (d *Dir) GC() (report GCReport, err error) {
	if !d.mu.TryLock() {
		return report, ErrInUse
	}
	defer d.mu.Unlock()
	// One collector at a time, and none while index.json changes.
	alone, err := os.Open(d.path)
	if err != nil {
		return report, err
	}
	defer alone.Close()
	if err := tryFlock(alone, unix.LOCK_EX); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return report, err
	}
	// Turning the shared lock into an exclusive one drops it if that fails, so
	// it is taken again. Whoever slipped in between has a shared one: only a
	// collector asks for more, and there is no other.
	if err := tryFlock(d.lock, unix.LOCK_EX); err != nil {
		if again := tryFlock(d.lock, unix.LOCK_SH); again != nil {
			return report, fmt.Errorf("lock %s: %w", d.path, again)
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return report, err
	}
	defer func() {
		if again := tryFlock(d.lock, unix.LOCK_SH); err == nil && again != nil {
			err = fmt.Errorf("lock %s: %w", d.path, again)
		}
	}()

	x, err := d.Index()
	if err != nil {
		return report, err
	}
	keep := map[diskimage.Digest]bool{}
	for _, m := range x.Manifests {
		if err := d.mark(m, keep, 0); err != nil {
			return report, fmt.Errorf("collect garbage: %w", err)
		}
	}
	if err := d.sweep(keep, &report); err != nil {
		return report, fmt.Errorf("collect garbage: %w", err)
	}
	return report, nil
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

func (d *Dir) sweep(keep map[diskimage.Digest]bool, report *GCReport) error {
	sweepDir := func(dir string, count *int, garbage func(fs.DirEntry) bool) error {
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
			report.Bytes += info.Size()
		}
		return nil
	}
	err := sweepDir(tempDir, &report.Temps, func(fs.DirEntry) bool { return true })
	if err != nil {
		return err
	}
	err = sweepDir(".", &report.Temps, func(e fs.DirEntry) bool { return isTemp(e.Name()) })
	if err != nil {
		return err
	}
	return sweepDir("blobs/sha256", &report.Blobs, func(e fs.DirEntry) bool {
		digest, err := diskimage.ParseDigest("sha256:" + e.Name())
		_, kept := keep[digest]
		return err == nil && !kept // what is not named by a digest is not ours
	})
}
