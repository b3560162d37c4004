package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// The directory's parts: docs/cache.md, "On the disk".
const (
	wholeDir    = "blobs/sha256"
	partialDir  = "partial"
	reposDir    = "repositories"
	stagedDir   = "staged"
	lockFile    = "lock"
	mapMagic    = "IMGPIPEC"
	mapVersion  = 1
	mapHeader   = 32
	maxMapBytes = 64 << 20
)

// ErrInUse is a cache directory that another process uses.
var ErrInUse = errors.New("another process uses this cache")

// key names a blob. What a manifest says of a size is not believed before the
// blob is whole: two that say different things of one digest do not meet.
type key struct {
	digest diskimage.Digest
	size   int64
}

func (c *Cache) wholePath(d diskimage.Digest) string {
	return filepath.Join(c.o.Dir, wholeDir, d.Hex())
}

func (c *Cache) partialPath(k key, what string) string {
	return filepath.Join(c.o.Dir, partialDir, fmt.Sprintf("%s-%d.%s", k.digest.Hex(), k.size, what))
}

// lockDir makes the directory what it must be, for this process alone.
func lockDir(dir string) (*os.File, error) {
	for _, d := range []string{wholeDir, partialDir, reposDir, stagedDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return f, nil
}

// encodeMap returns the file that says which bytes of a partial blob are there:
// magic, version, count, size of the blob, 1 if every byte was compared as it
// came, then (offset, length) each, all little-endian, and the SHA-256 of that.
func encodeMap(size int64, proved bool, have extents) []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, mapHeader+16*len(have)+sha256.Size), mapMagic...)
	b = le.AppendUint32(b, mapVersion)
	b = le.AppendUint32(b, uint32(len(have)))
	b = le.AppendUint64(b, uint64(size))
	if proved {
		b = le.AppendUint64(b, 1)
	} else {
		b = le.AppendUint64(b, 0)
	}
	for _, e := range have {
		b = le.AppendUint64(b, uint64(e.Off))
		b = le.AppendUint64(b, uint64(e.Len))
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

var errMap = errors.New("damaged map")

// parseMap reads what encodeMap wrote.
func parseMap(b []byte) (size int64, proved bool, have extents, err error) {
	le := binary.LittleEndian
	if len(b) < mapHeader+sha256.Size || string(b[:8]) != mapMagic || le.Uint32(b[8:]) != mapVersion || le.Uint64(b[24:]) > 1 {
		return 0, false, nil, errMap
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) || int64(len(body)) != mapHeader+16*int64(le.Uint32(b[12:])) {
		return 0, false, nil, errMap
	}
	size = int64(le.Uint64(b[16:]))
	last := int64(-1)
	for p := body[mapHeader:]; len(p) > 0; p = p[16:] {
		e := diskimage.Extent{Off: int64(le.Uint64(p)), Len: int64(le.Uint64(p[8:]))}
		if size <= 0 || e.Validate(size) != nil || e.Len == 0 || e.Off <= last {
			return 0, false, nil, errMap
		}
		have = append(have, e)
		last = e.End()
	}
	return size, le.Uint64(b[24:]) == 1, have, nil
}

// recover finds what a former process left, and removes what it did not finish.
func (c *Cache) recover() error {
	whole, err := os.ReadDir(filepath.Join(c.o.Dir, wholeDir))
	if err != nil {
		return err
	}
	for _, f := range whole {
		d, err := diskimage.ParseDigest("sha256:" + f.Name())
		info, ierr := f.Info()
		if err != nil || ierr != nil || !info.Mode().IsRegular() {
			_ = os.Remove(filepath.Join(c.o.Dir, wholeDir, f.Name())) // not ours
			continue
		}
		e := c.newEntry(key{d, info.Size()})
		e.whole = true
		c.adopt(e, roundUp(info.Size()), info.ModTime())
	}
	return c.recoverPartial()
}

func (c *Cache) recoverPartial() error {
	dir := filepath.Join(c.o.Dir, partialDir)
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, f := range files {
		name, isMap := strings.CutSuffix(f.Name(), ".map")
		if !isMap || strings.HasPrefix(name, ".") {
			continue
		}
		if e, when := c.readPartial(name); e != nil && c.entries[e.key] == nil {
			c.adopt(e, e.have.pages(), when)
			kept[name] = true
		}
	}
	for _, f := range files { // temporaries, data without a map, maps without data
		if name := strings.TrimSuffix(strings.TrimSuffix(f.Name(), ".map"), ".data"); !kept[name] || name == f.Name() {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// readPartial reads the map NAME.map, nil if it or its data is not usable.
func (c *Cache) readPartial(name string) (*entry, time.Time) {
	hex, number, _ := strings.Cut(name, "-")
	d, err := diskimage.ParseDigest("sha256:" + hex)
	want, nerr := strconv.ParseInt(number, 10, 64)
	if err != nil || nerr != nil {
		return nil, time.Time{}
	}
	k := key{d, want}
	b, err := readLimited(c.partialPath(k, "map"), maxMapBytes)
	if err != nil {
		return nil, time.Time{}
	}
	size, proved, have, err := parseMap(b)
	info, ierr := os.Lstat(c.partialPath(k, "data"))
	if err != nil || ierr != nil || size != want || !info.Mode().IsRegular() || len(have) > 0 && have[len(have)-1].End() > info.Size() {
		return nil, time.Time{}
	}
	e := c.newEntry(k)
	e.have, e.proved = have, proved
	return e, info.ModTime()
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: longer than %d bytes", path, limit)
	}
	return b, err
}

func roundUp(n int64) int64 { return (n + page - 1) / page * page }

// save makes the data durable, then says in the map what was there when it
// began. A whole blob has none.
func (e *entry) save() error {
	e.saving.Lock()
	defer e.saving.Unlock()
	e.mu.Lock()
	e.dirty = false
	have, proved, whole := slices.Clone(e.have), e.proved, e.whole
	e.mu.Unlock()
	if whole {
		return nil
	}
	f, err := os.Open(e.c.partialPath(e.key, "data"))
	if errors.Is(err, fs.ErrNotExist) && len(have) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	err = unix.Fdatasync(int(f.Fd()))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return writeMap(e.c.partialPath(e.key, "map"), e.size, proved, have)
}

func writeMap(path string, size int64, proved bool, have extents) error {
	return atomicfile.WriteFile(path, encodeMap(size, proved, have), 0o600)
}
