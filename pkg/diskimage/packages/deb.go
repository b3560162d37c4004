package packages

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/decompress"
)

// maxControl bounds the control file of a package, and a line of an index.
const maxControl = 1 << 20

// control returns the control file of a cached package.
func (c *cache) control(d diskimage.Digest) ([]byte, error) {
	f, err := os.Open(c.debPath(d))
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	return readControl(bufio.NewReader(f))
}

// readControl reads the control file out of a .deb: deb(5), an ar archive whose
// second member is a compressed tar.
func readControl(r io.Reader) ([]byte, error) {
	var magic [8]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil || string(magic[:]) != "!<arch>\n" {
		return nil, errors.New("is no Debian package")
	}
	for {
		var h [60]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return nil, fmt.Errorf("has no control member: %w", err)
		}
		size, err := strconv.ParseInt(strings.TrimSpace(string(h[48:58])), 10, 64)
		if err != nil || size < 0 || h[58] != '`' || h[59] != '\n' {
			return nil, errors.New("damaged ar header")
		}
		name := strings.TrimRight(string(h[:16]), " /")
		body := io.LimitReader(r, size)
		if strings.HasPrefix(name, "control.tar") {
			return controlOf(body)
		}
		if _, err := io.CopyN(io.Discard, r, size+size%2); err != nil {
			return nil, err
		}
	}
}

func controlOf(r io.Reader) ([]byte, error) {
	z, err := decompress.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer z.Close() //nolint:errcheck // only read
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err != nil {
			return nil, fmt.Errorf("has no control file: %w", err)
		}
		if path.Clean("/"+h.Name) == "/control" {
			b, err := io.ReadAll(io.LimitReader(tr, maxControl+1))
			if len(b) > maxControl {
				err = fmt.Errorf("its control file is larger than %d bytes", maxControl)
			}
			return b, err
		}
	}
}
