package virtdisk

import (
	"context"
	"io"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// sink takes a file from front to back.
type sink interface {
	io.Writer
	skip(n int64) error // n zero bytes
	at() int64          // bytes so far
}

// sparse leaves zeros out. The file must be cut to off at the end.
type sparse struct {
	f   File
	off int64
}

func (s *sparse) Write(p []byte) (int, error) {
	n, err := s.f.WriteAt(p, s.off)
	s.off += int64(n)
	return n, err
}

// data writes p without the blocks of 4 KiB in it that are zeros.
func (s *sparse) data(p []byte) error {
	const block = 4096
	for len(p) > 0 {
		n := 0
		for n < len(p) && !isZero(p[n:min(n+block, len(p))]) {
			n = min(n+block, len(p))
		}
		if n == 0 {
			n = min(block, len(p))
			s.off += int64(n)
		} else if _, err := s.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (s *sparse) skip(n int64) error { s.off += n; return nil }
func (s *sparse) at() int64          { return s.off }

// stream writes zeros out.
type stream struct {
	w   io.Writer
	off int64
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.off += int64(n)
	return n, err
}

var zeros [64 << 10]byte

func (s *stream) skip(n int64) error {
	for n > 0 {
		m, err := s.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

func (s *stream) at() int64 { return s.off }

// pad fills up to a multiple of align bytes.
func pad(s sink, align int64) error { return s.skip((align - s.at()%align) % align) }

// writeRaw writes the disk as it is.
func writeRaw(ctx context.Context, s sink, disk diskimage.Disk, o Options) error {
	base := s.at()
	p := &pipe{disk: disk, unit: 64 << 10, o: o, emit: func(c cell) error {
		if err := s.skip(base + c.off - s.at()); err != nil {
			return err
		}
		_, err := s.Write(c.data)
		return err
	}}
	if err := p.run(ctx); err != nil {
		return err
	}
	return s.skip(base + disk.Size() - s.at())
}
