package environment

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// MaxManifest bounds the manifest, in bytes, and MaxFiles its lines.
const (
	MaxManifest = 8 << 20
	MaxFiles    = 65536
)

// File is a regular file of the environment.
type File struct {
	Digest diskimage.Digest
	Size   int64
	Path   string // absolute and clean, in printable ASCII without spaces
}

// Manifest lists the regular files of the environment but itself, sorted by
// path. Why there is one: a kernel whose memory is too small for the initramfs
// says so, and boots on with files missing or cut short.
type Manifest []File

// Marshal returns the manifest's text: for each file its SHA-256 in hex, its size
// and its path, one space between them.
func (m Manifest) Marshal() ([]byte, error) {
	var b bytes.Buffer
	for _, f := range m {
		fmt.Fprintf(&b, "%s %d %s\n", f.Digest.Hex(), f.Size, f.Path)
	}
	if _, err := ParseManifest(b.Bytes()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// ParseManifest reads a manifest. An error names the line. The build puts the
// manifest before everything it lists, so that where memory ends it is whole.
func ParseManifest(b []byte) (Manifest, error) {
	if len(b) == 0 || b[len(b)-1] != '\n' || len(b) > MaxManifest {
		return nil, fmt.Errorf("manifest: %d bytes, or the last line is cut; the memory may be too small for the initramfs", len(b))
	}
	var m Manifest
	for line := range strings.Lines(string(b)) {
		f, err := parseFile(strings.TrimSuffix(line, "\n"))
		if err == nil && len(m) > 0 && m[len(m)-1].Path >= f.Path {
			err = errors.New("not in order")
		}
		if err == nil && len(m) == MaxFiles {
			err = fmt.Errorf("more than %d files", MaxFiles)
		}
		if err != nil {
			return nil, fmt.Errorf("manifest: line %d: %w", len(m)+1, err)
		}
		m = append(m, f)
	}
	return m, nil
}

func parseFile(line string) (File, error) {
	fields := strings.Split(line, " ")
	if len(fields) != 3 {
		return File{}, errors.New("want SHA-256, size and path")
	}
	d, err := diskimage.ParseDigest("sha256:" + fields[0])
	if err != nil {
		return File{}, err
	}
	n, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != fields[1] {
		return File{}, fmt.Errorf("size %.20q", fields[1])
	}
	f := File{Digest: d, Size: n, Path: fields[2]}
	return f, f.check()
}

// check wants a path that fs.ValidPath takes without its slash, and that one
// line can say.
func (f File) check() error {
	rest, ok := strings.CutPrefix(f.Path, "/")
	plain := !strings.ContainsFunc(f.Path, func(r rune) bool { return r <= ' ' || r > '~' })
	if !ok || rest == "." || !fs.ValidPath(rest) || path.Clean(f.Path) != f.Path || !plain {
		return fmt.Errorf("path %.80q: want an absolute one in ASCII", f.Path)
	}
	return nil
}

// Problem is a file that is not as the manifest says.
type Problem struct {
	Path string
	What string // "missing", "has 4096 bytes of 13062409", "altered"
}

// Verify reads the files of root that the manifest lists, and returns those that
// are not as they should be, at most limit of them (0 is all). Files that it does
// not list are not looked for. The error is one of reading, other than that a
// file is not there. It takes one buffer of 64 KiB.
func (m Manifest) Verify(root fs.FS, limit int) ([]Problem, error) {
	var out []Problem
	buf := make([]byte, 64<<10)
	for _, f := range m {
		what, err := f.verify(root, buf)
		if err != nil {
			return out, fmt.Errorf("%s: %w", f.Path, err)
		}
		if what == "" {
			continue
		}
		if out = append(out, Problem{f.Path, what}); len(out) == limit {
			break
		}
	}
	return out, nil
}

func (f File) verify(root fs.FS, buf []byte) (what string, err error) {
	r, err := root.Open(strings.TrimPrefix(f.Path, "/"))
	if errors.Is(err, fs.ErrNotExist) {
		return "missing", nil
	}
	if err != nil {
		return "", err
	}
	defer r.Close()
	info, err := r.Stat()
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "no regular file", nil
	case info.Size() != f.Size:
		return fmt.Sprintf("has %d bytes of %d", info.Size(), f.Size), nil
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{r}, buf); err != nil {
		return "", err
	}
	if diskimage.Digest(h.Sum(nil)) != f.Digest {
		return "altered", nil
	}
	return "", nil
}

// Sort puts the manifest in its order.
func (m Manifest) Sort() {
	slices.SortFunc(m, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
}
