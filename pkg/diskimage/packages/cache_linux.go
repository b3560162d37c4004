package packages

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// cache is the directory that concurrent builds share:
//
//	debs/SHA256.deb          packages as downloaded
//	lists/SHA256.tar.zst     apt's indices
//	lists/BASE.json          which indices a set of sources last had
//	roots/KEY.tar            a finished tree
//	roots/KEY.json           its Result; written after the tar, so it vouches for it
//	requests/REQUEST.json    the key that a request last led to
//	locks/…                  flock files, never removed
//	tmp/…                    what is being written
//
// Every file appears by rename. What is not checked against a digest when it is
// read is flushed first, so that after a power cut it is whole or not there.
type cache struct {
	dir  string
	base string         // hex; of the sources' indices
	plan map[string]uri // by file name; which packages may be stored
}

func openCache(dir string) (*cache, error) {
	for _, d := range []string{"debs", "lists", "roots", "requests", "locks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("package cache: %w", err)
		}
	}
	c := &cache{dir: dir, plan: map[string]uri{}}
	c.sweep()
	return c, nil
}

func (c *cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// put writes a file so that it is there whole or not at all.
func (c *cache) put(path string, write func(*os.File) error) (err error) {
	f, err := c.createTemp(filepath.Base(path))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err = write(f); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	return c.commit(f, path)
}

// commit gives a temporary file its name.
func (c *cache) commit(f *os.File, path string) error {
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (c *cache) putJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return c.put(path, func(f *os.File) error {
		_, err := f.Write(append(b, '\n'))
		return err
	})
}

// maxRecord bounds the JSON files: a Debian of 60,000 packages fits.
const maxRecord = 16 << 20

// getJSON reads a record; a missing or damaged one is as good as none.
func getJSON(path string, v any) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(v) == nil
}

// root returns the tree of a key, nil if it is not cached.
func (c *cache) root(key diskimage.Digest) *Result {
	r := &Result{}
	if !getJSON(c.path("roots", key.Hex()+".json"), r) || r.Key != key {
		return nil
	}
	r.Tar = c.path("roots", key.Hex()+".tar")
	if s, err := os.Stat(r.Tar); err != nil || s.Size() != r.Size {
		return nil
	}
	used(c.path("roots", key.Hex()+".json"))
	return r
}

// lastKey is what requests/REQUEST.json holds.
type lastKey struct {
	Key diskimage.Digest `json:"key"`
}

// last returns the tree that a request last led to, nil if it is not cached.
func (c *cache) last(request diskimage.Digest) *Result {
	key, ok := c.lastKey(request)
	if !ok {
		return nil
	}
	return c.root(key)
}

func (c *cache) lastKey(request diskimage.Digest) (diskimage.Digest, bool) {
	var k lastKey
	name := c.path("requests", request.Hex()+".json")
	ok := getJSON(name, &k)
	if ok {
		used(name)
	}
	return k.Key, ok
}

// used marks a file as used now: what was used longest ago is pruned first. A cache
// that cannot be written to is not pruned either.
func used(name string) {
	now := time.Now()
	_ = os.Chtimes(name, now, now) // as above
}

func (c *cache) setLast(request, key diskimage.Digest) error {
	return c.putJSON(c.path("requests", request.Hex()+".json"), lastKey{key})
}

// listsRecord is what lists/BASE.json holds.
type listsRecord struct {
	Size    int64            `json:"size"`   // of the plain tar
	Digest  diskimage.Digest `json:"digest"` // of the plain tar
	Sources []Source         `json:"sources"`
}

// The indices are a few tens of megabytes; with a bound, a damaged file costs
// no memory.
const maxLists = 2 << 30

// lists decompresses twice, first to check all of it: apt trusts what lies where
// it puts its indices. That goes on while mmdebstrap starts.
func (c *cache) lists() (io.ReadCloser, int64, []Source) {
	var r listsRecord
	if !getJSON(c.path("lists", c.base+".json"), &r) || r.Size <= 0 || r.Size > maxLists {
		return nil, 0, nil
	}
	name := c.path("lists", r.Digest.Hex()+".tar.zst")
	z, err := openZstd(name)
	if err != nil {
		return nil, 0, nil
	}
	defer z.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(z, r.Size+1))
	if err != nil || n != r.Size || diskimage.Digest(h.Sum(nil)) != r.Digest {
		return nil, 0, nil
	}
	again, err := openZstd(name)
	if err != nil {
		return nil, 0, nil
	}
	return again, r.Size, r.Sources
}

type zstdFile struct {
	*zstd.Decoder
	f *os.File
}

func openZstd(name string) (*zstdFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(64<<20), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &zstdFile{z, f}, nil
}

func (z *zstdFile) Close() error {
	z.Decoder.Close()
	return z.f.Close()
}

func (c *cache) putLists(r io.Reader, sources []Source) error {
	record := listsRecord{Sources: sources}
	f, err := c.createTemp("lists")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after a commit
	defer f.Close()
	h := sha256.New()
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if record.Size, err = copyTar(io.MultiWriter(z, h), r); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	h.Sum(record.Digest[:0])
	if err := f.Sync(); err != nil {
		return err
	}
	if err := c.commit(f, c.path("lists", record.Digest.Hex()+".tar.zst")); err != nil {
		return err
	}
	var old listsRecord
	had := getJSON(c.path("lists", c.base+".json"), &old)
	if err := c.putJSON(c.path("lists", c.base+".json"), record); err != nil {
		return err
	}
	if had && old.Digest != record.Digest {
		os.Remove(c.path("lists", old.Digest.Hex()+".tar.zst")) // a reader has it open or does without
	}
	return nil
}

// copyTar copies one tar stream, up to and with its end mark, and returns its
// length in bytes. It reads nothing behind it.
func copyTar(w io.Writer, r io.Reader) (int64, error) {
	n := &countReader{r: r}
	tr := tar.NewReader(io.TeeReader(n, w))
	for {
		_, err := tr.Next()
		if err == io.EOF {
			return n.n, nil
		}
		if err == nil {
			_, err = io.Copy(io.Discard, tr)
		}
		if err != nil {
			return n.n, err
		}
	}
}

func (c *cache) debPath(d diskimage.Digest) string { return c.path("debs", d.Hex()+".deb") }

func (c *cache) hasDeb(u uri) bool {
	c.plan[u.File] = u
	if u.Digest.IsZero() {
		return false
	}
	f, err := os.Open(c.debPath(u.Digest))
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err == nil && n == u.Size && diskimage.Digest(h.Sum(nil)) == u.Digest {
		used(f.Name())
		return true
	}
	os.Remove(f.Name()) // damaged: it is downloaded again
	return false
}

func (c *cache) deb(u uri) (io.ReadCloser, error) { return os.Open(c.debPath(u.Digest)) }

// putDeb stores a downloaded package. apt has checked it; it is checked again
// because its name is its digest.
func (c *cache) putDeb(name string, r io.Reader) error {
	u, planned := c.plan[name]
	if !planned || u.Digest.IsZero() {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	if _, err := os.Stat(c.debPath(u.Digest)); !errors.Is(err, fs.ErrNotExist) {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	return c.storeDeb(u, r)
}

// storeDeb stores a package if it is what u says.
func (c *cache) storeDeb(u uri, r io.Reader) error {
	f, err := c.createTemp("deb")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after a commit
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, h), r); err != nil {
		return err
	}
	if d := diskimage.Digest(h.Sum(nil)); d != u.Digest {
		return fmt.Errorf("digest is %v, want %v", d, u.Digest)
	}
	return c.commit(f, c.debPath(u.Digest))
}
