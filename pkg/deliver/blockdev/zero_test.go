//go:build linux

package blockdev

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// TestWithoutPunching runs the suite on a target that cannot punch holes, and
// one that cannot do direct I/O either, as USB sticks and odd filesystems.
func TestWithoutPunching(t *testing.T) {
	for _, direct := range []bool{true, false} {
		delivertest.TestTarget(t, func(t *testing.T) deliver.Target {
			d := withoutPunch(t)
			if !direct {
				if d.direct != nil {
					if err := d.direct.Close(); err != nil {
						t.Fatal(err)
					}
				}
				d.direct, d.mode = nil, deliver.ReadDropped
			}
			return d
		})
	}
}

func withoutPunch(t *testing.T) *Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xA5}, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	d.noPunch.Store(true)
	return d
}

// TestZeroByWritingWritesOnlyWhatIsNotZero keeps a sparse file sparse.
func TestZeroByWritingWritesOnlyWhatIsNotZero(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.noPunch.Store(true)
	if _, err := d.WriteAt([]byte("x"), 9<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(diskimage.Extent{Len: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 2<<20 {
		t.Errorf("%d bytes are allocated, %v", st.Blocks*512, err)
	}
	b := make([]byte, 1<<20)
	if _, err := d.ReadAt(b, 9<<20); err != nil || !bytes.Equal(b, make([]byte, 1<<20)) {
		t.Errorf("not zeros: %v", err)
	}
}
