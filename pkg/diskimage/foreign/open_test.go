package foreign

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/virtdisk"
)

// memory is a File of package virtdisk.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Truncate(size int64) error {
	m.b = append(m.b, make([]byte, max(0, int(size)-len(m.b)))...)[:size]
	return nil
}

func in(t testing.TB, format virtdisk.Format, disk []byte) []byte {
	t.Helper()
	m := new(memory)
	if err := virtdisk.Write(t.Context(), m, diskimage.Bytes(disk), format, virtdisk.Options{}); err != nil {
		t.Fatal(err)
	}
	return m.b
}

func compress(t testing.TB, b []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(look(t, args[0]), args[1:]...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func stored(t testing.TB, b []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// pipe gives b without an end that can be seen before it comes.
func pipe(t testing.TB, b []byte) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = w.Write(b) // the reader may have gone
		w.Close()
	}()
	t.Cleanup(func() { r.Close(); <-done })
	return r
}

func all(t testing.TB, d diskimage.Disk) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	for _, e := range d.Extents() {
		if n, err := d.ReadAt(b[e.Off:e.End()], e.Off); int64(n) < e.Len {
			t.Fatalf("%v: %d bytes, %v", e, n, err)
		}
	}
	return b
}

// TestOpen gives the same disk in every wrapping, as a file and through a pipe.
func TestOpen(t *testing.T) {
	disk := gptDisk(t, 512, "")
	qcow2 := in(t, virtdisk.QCOW2, disk)
	for name, c := range map[string]struct {
		file                []byte
		format, compression string
	}{
		"raw":      {disk, "raw", ""},
		"qcow2":    {qcow2, "qcow2", ""},
		"vhd":      {in(t, virtdisk.VHD, disk), "vhd", ""},
		"raw.gz":   {compress(t, disk, "gzip", "-1"), "raw", "gzip"},
		"raw.xz":   {compress(t, disk, "xz", "-0"), "raw", "xz"},
		"raw.bz2":  {compress(t, disk, "bzip2", "-1"), "raw", "bzip2"},
		"raw.zst":  {compress(t, disk, "zstd", "-q"), "raw", "zstd"},
		"qcow2.xz": {compress(t, qcow2, "xz", "-0"), "qcow2", "xz"},
	} {
		for way, open := range map[string]func(testing.TB, []byte) *os.File{"file": stored, "pipe": pipe} {
			scratch := t.TempDir()
			var done, total int64
			s, err := Open(t.Context(), open(t, c.file), OpenOptions{Scratch: scratch, Progress: func(d, n int64) { done, total = d, n }})
			if err != nil {
				t.Errorf("%s, %s: %v", name, way, err)
				continue
			}
			if s.Format != c.format || s.Compression != c.compression || !bytes.Equal(all(t, s), disk) {
				t.Errorf("%s, %s: %s, %q, or another disk", name, way, s.Format, s.Compression)
			}
			spooled := way == "pipe" || c.compression != ""
			if spooled && done != int64(len(c.file)) || !spooled && done != 0 || way == "file" && spooled && total != done {
				t.Errorf("%s, %s: progress ends at %d of %d", name, way, done, total)
			}
			if left, _ := os.ReadDir(scratch); len(left) > 0 {
				t.Errorf("%s, %s: %v is left in the scratch folder", name, way, left)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestHolesAreNotData is about a sparse file, and about what is spooled.
func TestHolesAreNotData(t *testing.T) {
	const size = 256 << 20
	path := hole(t, size)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{0, 30 << 20, 30<<20 + 8192, 150 << 20, size - 512} {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name string, f *os.File, o OpenOptions) {
		s, err := Open(t.Context(), f, o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer s.Close()
		total := int64(0)
		for _, e := range s.Extents() {
			total += e.Len
		}
		var b [4]byte
		if _, err := s.ReadAt(b[:], 150<<20); err != nil || string(b[:]) != "data" || s.Size() != size {
			t.Errorf("%s: %q, %v, %d bytes", name, b, err, s.Size())
		}
		if len(s.Extents()) != 4 || total > 1<<20 {
			t.Errorf("%s: extents %v", name, s.Extents())
		}
	}
	check("sparse file", f, OpenOptions{})
	out, err := exec.Command(look(t, "zstd"), "-q", "-c", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	check("zstd", stored(t, out), OpenOptions{Scratch: t.TempDir()})
}

// TestCutShort cuts each stream at every class of place.
func TestCutShort(t *testing.T) {
	disk := gptDisk(t, 512, "")[:2<<20]
	for _, args := range [][]string{{"gzip", "-1"}, {"xz", "-0"}, {"bzip2", "-1"}, {"zstd", "-q"}} {
		b := compress(t, disk, args...)
		for _, n := range []int{7, 30, len(b) / 3, len(b) - 9, len(b) - 1} {
			if _, err := Open(t.Context(), stored(t, b[:n]), OpenOptions{}); err == nil || !strings.Contains(err.Error(), "decompress") {
				t.Errorf("%s: the first %d of %d bytes: %v", args[0], n, len(b), err)
			}
		}
		if args[0] != "gzip" && args[0] != "zstd" {
			if _, err := Open(t.Context(), stored(t, b[:len(b)-1]), OpenOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: %v", args[0], err)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	at := func(off int, magic string) []byte {
		b := make([]byte, 4096)
		copy(b[off:], magic)
		return b
	}
	disk := gptDisk(t, 512, "")
	for name, c := range map[string]struct {
		file    []byte
		want    string
		convert bool
	}{
		"vmdk":        {in(t, virtdisk.VMDK, disk), "a VMDK disk", true},
		"dynamic vhd": {in(t, virtdisk.VHDDynamic, disk), "a dynamic VHD disk", true},
		"vdi":         {at(64, "\x7f\x10\xda\xbe"), "a VDI disk", true},
		"vhdx":        {at(0, "vhdxfile"), "a VHDX disk", true},
		"ova":         {at(257, "ustar\x0000"), "a tar archive", false},
		"zip":         {at(0, "PK\x03\x04"), "a zip archive", false},
		"simg":        {at(0, "\x3a\xff\x26\xed"), "an Android sparse image", false},
		"lz4":         {at(0, "\x04\x22\x4d\x18"), "compressed with lz4", false},
		"twice":       {compress(t, compress(t, disk, "gzip"), "gzip", "-1"), "compressed twice, with gzip and with gzip", false},
		"zipped vmdk": {compress(t, in(t, virtdisk.VMDK, disk), "gzip"), "a VMDK disk", true},
	} {
		_, err := Open(t.Context(), stored(t, c.file), OpenOptions{})
		e, ok := errors.AsType[*UnsupportedError](err)
		if !ok || e.Kind != c.want || e.Convert != c.convert {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "empty gzip": compress(t, nil, "gzip")} {
		if _, err := Open(t.Context(), stored(t, b), OpenOptions{}); err == nil || err.Error() != "is empty" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A footer with another sum is part of the disk.
	b := in(t, virtdisk.VHD, disk)
	b[len(b)-1]++
	if s, err := Open(t.Context(), stored(t, b), OpenOptions{}); err != nil || s.Format != "raw" || s.Size() != int64(len(b)) {
		t.Errorf("a damaged VHD footer: %+v, %v", s, err)
	}
}

func TestOpenStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := compress(t, gptDisk(t, 512, ""), "zstd", "-q")
	_, err := Open(ctx, pipe(t, append(bytes.Repeat(b, 50), 0)), OpenOptions{Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := Open(t.Context(), pipe(t, b), OpenOptions{Scratch: "/nonexistent"}); err == nil {
		t.Error("a scratch folder that is not there")
	}
}
