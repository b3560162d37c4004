package evidence

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func nobody(string) string { return "" }

// counted counts the bytes read of a disk.
type counted struct {
	diskimage.Disk
	read *int64
}

func (c counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Disk.ReadAt(p, off)
	*c.read += int64(n)
	return n, err
}

func TestFilesAreHashedWhole(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 40_000) // some buffers
	tr := newTree(t, map[string]string{"/a": big, "/b/c": "x", "/empty": ""})
	if err := tr.Put("/link", &tree.Inode{Kind: tree.Symlink, Target: "a"}); err != nil {
		t.Fatal(err)
	}
	for _, workers := range []int{0, 1, 7} {
		files, err := HashFiles(t.Context(), tr, nobody, workers)
		if err != nil {
			t.Fatal(err)
		}
		want := []File{}
		for _, f := range []struct{ path, content string }{{"/a", big}, {"/b/c", "x"}, {"/empty", ""}} {
			want = append(want, File{Path: f.path, SHA1: sha1.Sum([]byte(f.content)), SHA256: sha256.Sum256([]byte(f.content))})
		}
		if !slices.Equal(files, want) {
			t.Errorf("%d workers: got %v, want %v", workers, files, want)
		}
	}
}

func TestHardLinksAreReadOnce(t *testing.T) {
	var read int64
	n := &tree.Inode{Data: counted{diskimage.Bytes([]byte("content")), &read}}
	tr := tree.New()
	for _, p := range []string{"/a", "/b"} {
		if err := tr.Put(p, n); err != nil {
			t.Fatal(err)
		}
	}
	files, err := HashFiles(t.Context(), tr, nobody, 1)
	if err != nil || len(files) != 2 || files[0].SHA256 != files[1].SHA256 || read != int64(len("content")) {
		t.Errorf("%v, %v, %d bytes read", files, err, read)
	}
}

// broken is a disk that cannot be read, or ends early.
type broken struct{ err error }

func (broken) Size() int64                 { return 10 }
func (broken) Extents() []diskimage.Extent { return []diskimage.Extent{{Len: 10}} }
func (b broken) ReadAt(p []byte, off int64) (int, error) {
	return 0, b.err
}

func TestFilesThatCannotBeReadAreNamed(t *testing.T) {
	failure := errors.New("input/output error")
	for want, disk := range map[error]diskimage.Disk{failure: broken{failure}, io.ErrUnexpectedEOF: broken{io.EOF}} {
		tr := newTree(t, map[string]string{"/fine": "x"})
		if err := tr.Put("/dir/bad", &tree.Inode{Data: disk}); err != nil {
			t.Fatal(err)
		}
		_, err := HashFiles(t.Context(), tr, nobody, 2)
		if !errors.Is(err, want) || !strings.HasPrefix(fmt.Sprint(err), "/dir/bad: ") {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

func TestHashingStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := HashFiles(ctx, debian(t), nobody, 2); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
