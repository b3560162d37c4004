package cache

import (
	"bytes"
	"sort"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/frame"
)

// blockSize is the unit in which a blob without an index is fetched.
const blockSize = 64 << 10

// zeroUnit bounds the zero run of one unit, in plain bytes: its frames then have
// a few hundred KiB.
const zeroUnit = 1024 * frame.MaxZeros

// unit is what of a blob is fetched and compared at once: a data frame of a
// segment, the zero frames between two, or a block of any other blob.
type unit struct {
	diskimage.Extent                  // bytes of the blob
	plain            int64            // bytes that the frame holds, or the length of the zero run
	digest           diskimage.Digest // of the plain bytes; zero for zero frames
}

// grid says how a blob is divided.
type grid struct {
	size  int64
	units []unit // tile the blob; nil: blocks
}

func blocks(size int64) *grid { return &grid{size: size} }

// segmentGrid divides the blob of a segment of x, which has been validated.
// Equal segments are equal blobs: the first that has the digest will do.
func segmentGrid(x *diskimage.Index, digest diskimage.Digest) *grid {
	for i, s := range x.Segments {
		if s.Digest != digest {
			continue
		}
		g := &grid{size: s.Size, units: []unit{}}
		at, plain := int64(0), s.Off
		zeros := func(blob, disk int64) {
			for at < blob {
				n := min(disk-plain, zeroUnit)
				u := unit{Extent: diskimage.Extent{Off: at, Len: frame.ZerosLen(n)}, plain: n}
				g.units = append(g.units, u)
				at, plain = u.End(), plain+n
			}
		}
		for _, c := range x.Within(s.Extent) {
			if c.Segment != i {
				continue
			}
			zeros(c.Frame.Off, c.Off)
			g.units = append(g.units, unit{Extent: c.Frame, plain: c.Len, digest: c.Digest})
			at, plain = c.Frame.End(), c.End()
		}
		zeros(s.Size, s.End())
		return g
	}
	return nil
}

// proves reports whether units are compared as they arrive.
func (g *grid) proves() bool { return g.units != nil }

// at returns the unit that holds byte off.
func (g *grid) at(off int64) unit {
	if g.units == nil {
		from := off / blockSize * blockSize
		return unit{Extent: diskimage.Extent{Off: from, Len: min(blockSize, g.size-from)}}
	}
	return g.units[sort.Search(len(g.units), func(i int) bool { return g.units[i].End() > off })]
}

// request returns whole units around the start of gap, up to requestSize unless
// one alone has more, and up to the next unit that is there in part.
func (g *grid) request(gap diskimage.Extent, taken extents) diskimage.Extent {
	e := g.at(gap.Off).Extent
	for e.End() < gap.End() {
		u := g.at(e.End())
		if e.Len+u.Len > requestSize || taken.has(u.Extent) {
			break
		}
		e.Len += u.Len
	}
	return e
}

// checker compares units with what is known of them. It is for one goroutine.
type checker struct {
	dec   *frame.Decoder
	plain []byte
}

func (c *checker) close() {
	if c.dec != nil {
		c.dec.Close()
	}
}

// right reports whether b can be unit u of g; what nothing is known of can.
func (c *checker) right(g *grid, u unit, b []byte) (bool, error) {
	switch {
	case !g.proves():
		return true, nil
	case u.digest.IsZero():
		// An index whose parser compared the length of this with that of the run.
		c.plain = frame.AppendZeros(c.plain[:0], u.plain)
		return bytes.Equal(b, c.plain), nil
	}
	if c.dec == nil {
		var err error
		if c.dec, err = frame.NewDecoder(); err != nil {
			return false, err
		}
	}
	if int64(cap(c.plain)) < u.plain {
		c.plain = make([]byte, u.plain)
	}
	plain := c.plain[:u.plain]
	return c.dec.Decode(plain, b) == nil && diskimage.DigestOf(plain) == u.digest, nil
}
