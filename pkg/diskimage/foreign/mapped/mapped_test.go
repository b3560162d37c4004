package mapped

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func TestFileReadsItsRuns(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	disk := make([]byte, 5000)
	for i := range disk {
		disk[i] = byte(1 + rnd.IntN(255))
	}
	for range 200 {
		size := int64(1 + rnd.IntN(3000))
		want := make([]byte, size)
		var runs []Run
		for off := int64(rnd.IntN(50)); off < 3000; off += int64(rnd.IntN(100)) { // some lie beyond the size
			r := Run{off, int64(rnd.IntN(4000)), int64(rnd.IntN(900))}
			if n := len(runs); n > 0 && rnd.IntN(3) == 0 { // goes on where the last one ended
				r.Off, r.At = runs[n-1].Off+runs[n-1].Len, min(runs[n-1].At+runs[n-1].Len, 4000)
			}
			if r.Off < size {
				copy(want[r.Off:], disk[r.At:r.At+r.Len])
			}
			runs = append(runs, r)
			off = r.Off + r.Len
		}
		f := New(bytes.NewReader(disk), size, func() ([]Run, error) { return runs, nil })
		if err := iotest.TestReader(io.NewSectionReader(f, 0, size), want); err != nil {
			t.Fatal(err)
		}
		covered := make([]byte, size)
		for _, e := range f.Extents() {
			if err := e.Validate(size); err != nil {
				t.Fatal(err)
			}
			copy(covered[e.Off:e.End()], want[e.Off:])
		}
		if !bytes.Equal(covered, want) {
			t.Fatal("contents outside of the extents")
		}
	}
}

func TestFileRefusesWhatCannotBe(t *testing.T) {
	disk := bytes.NewReader(make([]byte, 100))
	broken := errors.New("broken")
	for i, load := range []func() ([]Run, error){
		func() ([]Run, error) { return nil, broken },
		func() ([]Run, error) { return []Run{{0, 0, 10}, {9, 20, 5}}, nil },
		func() ([]Run, error) { return []Run{{5, 0, 10}, {0, 20, 5}}, nil },
		func() ([]Run, error) { return []Run{{0, 0, -1}}, nil },
		func() ([]Run, error) { return []Run{{0, -1, 5}}, nil },
		func() ([]Run, error) { return []Run{{0, 95, 10}}, nil },
		func() ([]Run, error) { return []Run{{0, 1 << 62, 1 << 62}, {1 << 62, 0, 1}}, nil },
	} {
		f := New(disk, 50, load)
		if n, err := f.ReadAt(make([]byte, 50), 0); err == nil || err == io.EOF {
			t.Errorf("%d: read %d bytes, %v", i, n, err)
		}
		if got := fmt.Sprint(f.Extents()); i < 5 && got != fmt.Sprint([]diskimage.Extent{{Len: 50}}) {
			t.Errorf("%d: extents %s", i, got)
		}
	}
}
