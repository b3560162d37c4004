package disktest

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Tar returns a tar of headers; a file's content is its Linkname, and a mode that is not
// given 0644.
func Tar(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// WriteTar writes a tree to a file.
func WriteTar(t testing.TB, name string, tr *tree.Tree) {
	t.Helper()
	var b bytes.Buffer
	if err := tree.WriteTar(&b, tr); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
