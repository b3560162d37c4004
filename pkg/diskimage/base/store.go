package base

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// store is a folder of unpacked archives, shared by concurrent builds:
//
//	HEX.tar    the archive of a key
//	HEX.json   its digest, and what the file looked like when it was compared with that
//
// The tar appears whole and before its record. One that does not look as its
// record says is hashed again, and made again if it is another.
type store struct{ dir string }

// record is what HEX.json holds.
type record struct {
	Digest   diskimage.Digest `json:"digest"` // of the tar
	Size     int64            `json:"size"`
	Modified time.Time        `json:"modified"`
}

const maxRecord = 64 << 10

func (s store) path(key diskimage.Digest, ext string) string {
	return filepath.Join(s.dir, key.Hex()+ext)
}

// get opens the archive of a key, and makes it first where there is none: fill
// writes it.
func (s store) get(key diskimage.Digest, fill func(io.Writer) error) (*file, error) {
	if f := s.open(key); f != nil {
		return f, nil
	}
	if err := s.fill(key, fill); err != nil {
		return nil, err
	}
	f := s.open(key)
	if f == nil {
		return nil, fmt.Errorf("%s: is gone as soon as it was there", s.path(key, ".tar"))
	}
	return f, nil
}

// open returns the archive of a key if it is there and whole, else nil.
func (s store) open(key diskimage.Digest) *file {
	b, err := os.ReadFile(s.path(key, ".json"))
	var r record
	if err != nil || len(b) > maxRecord || json.Unmarshal(b, &r) != nil {
		return nil
	}
	f, err := openFile(s.path(key, ".tar"))
	if err != nil {
		return nil
	}
	if f.size() == r.Size && f.info.ModTime().Equal(r.Modified) {
		return f
	}
	if digest, err := f.digest(); err != nil || digest != r.Digest || s.vouch(key, digest) != nil {
		_ = f.Close() // it was only read
		return nil
	}
	return f
}

func (s store) fill(key diskimage.Digest, fill func(io.Writer) error) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	w, err := atomicfile.Create(s.path(key, ".tar"), 0o644)
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	defer w.Abort() // does nothing after Commit
	h := sha256.New()
	to := &cacheWriter{w: w}
	if err := fill(io.MultiWriter(to, h)); err != nil {
		if to.err != nil {
			return fmt.Errorf("cache: %w", to.err)
		}
		return err
	}
	if err := w.Commit(); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return s.vouch(key, diskimage.Digest(h.Sum(nil)))
}

// cacheWriter remembers that it was the cache that failed, not the source.
type cacheWriter struct {
	w   io.Writer
	err error
}

func (c *cacheWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err != nil {
		c.err = err
	}
	return n, err
}

// vouch writes the record of an archive that was just compared with its digest.
func (s store) vouch(key, digest diskimage.Digest) error {
	info, err := os.Stat(s.path(key, ".tar"))
	if err != nil {
		return err
	}
	b, err := json.Marshal(record{digest, info.Size(), info.ModTime()})
	return errors.Join(err, atomicfile.WriteFile(s.path(key, ".json"), b, 0o644))
}
