package virtdisk

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const (
	tableCache  = 16 << 20 // bytes of L2 tables that are kept, or four tables
	subclusters = 32
	minGrain    = 64 << 10 // extents closer than this are one
	maxExtents  = 1 << 18
)

// qcow2 is a Disk that reads an image.
type qcow2 struct {
	r       io.ReaderAt
	file    int64 // bytes
	h       qcowHeader
	cluster int64
	entries int64 // of an L2 table
	l1      []int64
	extents []diskimage.Extent

	decoders sync.Pool // of *qcowDecoder

	mu     sync.Mutex
	cached map[int64]*list.Element // by offset in the file; values are table
	order  list.List               // the last used first
	keep   int
}

type table struct {
	off int64
	b   []byte
}

// OpenQCOW2 returns the disk that a qcow2 image of size bytes holds, its active
// state: internal snapshots are not looked at. It reads versions 2 and 3, any
// cluster size, compressed clusters (zlib, zstd), zero clusters, subclusters. It
// refuses a backing file (ErrBacking), encryption (ErrEncrypted), an external data
// file (ErrExternal), images that are marked as corrupt, and features that it does
// not know. All L1 and L2 tables are read and checked: what they point to lies
// in the file, and no two entries of L1 share a table.
//
// The disk is safe for concurrent use. Memory: the L1 table (at most 32 MiB), 16
// MiB of L2 tables, 4 MiB of extents, and two clusters for each reader.
func OpenQCOW2(r io.ReaderAt, size int64) (diskimage.Disk, error) {
	q, err := openQCOW2(r, size)
	if err != nil {
		return nil, fmt.Errorf("qcow2: %w", err)
	}
	return q, nil
}

func openQCOW2(r io.ReaderAt, size int64) (*qcow2, error) {
	head := make([]byte, min(size, 112))
	if err := readFull(r, head, 0); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	h, err := parseQCOW2(head)
	if err != nil {
		return nil, err
	}
	q := &qcow2{r: r, file: size, h: h, cluster: 1 << h.clusterBits, cached: map[int64]*list.Element{}}
	q.entries = q.cluster / q.entrySize()
	q.keep = int(max(4, tableCache/q.cluster))
	if err := q.readL1(); err != nil {
		return nil, err
	}
	if err := q.walk(); err != nil {
		return nil, err
	}
	return q, nil
}

func (q *qcow2) entrySize() int64 {
	if q.h.extended {
		return 16
	}
	return 8
}

// readFull reads all of b at off; an early end is io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// readL1 reads the L1 table and checks that each L2 table is a cluster of the
// file, and another one: then walking them costs no more than the file is long.
func (q *qcow2) readL1() error {
	e := diskimage.Extent{Off: q.h.l1Off, Len: 8 * q.h.l1Entries}
	if err := e.Validate(q.file); err != nil {
		return fmt.Errorf("L1 table: %w", err)
	}
	b := make([]byte, e.Len)
	if err := readFull(q.r, b, e.Off); err != nil {
		return fmt.Errorf("L1 table: %w", err)
	}
	q.l1 = make([]int64, q.h.l1Entries)
	var used []int64
	for i := range q.l1 {
		off := int64(binary.BigEndian.Uint64(b[8*i:]) & offsetMask)
		if off == 0 {
			continue
		}
		if off%q.cluster != 0 {
			return fmt.Errorf("L1 entry %d: %d is no cluster", i, off)
		}
		if err := (diskimage.Extent{Off: off, Len: q.cluster}).Validate(q.file); err != nil {
			return fmt.Errorf("L1 entry %d: L2 table: %w", i, err)
		}
		q.l1[i] = off
		used = append(used, off)
	}
	slices.Sort(used)
	for i := 1; i < len(used); i++ {
		if used[i] == used[i-1] {
			return fmt.Errorf("two L1 entries share the L2 table at %d", used[i])
		}
	}
	return nil
}

// mapping is where a cluster's bytes are.
type mapping struct {
	kind mappingKind
	off  int64  // in the file
	len  int64  // of compressed bytes, up to
	data uint32 // with subclusters: those that are stored
}

type mappingKind uint8

const (
	mapZero mappingKind = iota
	mapData
	mapCompressed
)

// entry decodes an L2 entry and checks that what it points to is in the file.
func (q *qcow2) entry(b []byte) (m mapping, err error) {
	v := binary.BigEndian.Uint64(b)
	if v&l2Compressed != 0 {
		if q.h.extended && binary.BigEndian.Uint64(b[8:]) != 0 {
			return m, errors.New("a compressed cluster with subclusters")
		}
		// x offset bits, then the number of further sectors of 512 bytes.
		x := 62 - (q.h.clusterBits - 8)
		off := int64(v & (1<<x - 1))
		sectors := int64(v>>x) & (1<<(62-x) - 1)
		m = mapping{kind: mapCompressed, off: off, len: (sectors+1)*sector - off%sector}
		if off >= q.file {
			return m, fmt.Errorf("compressed bytes at %d, the file has %d", off, q.file)
		}
		m.len = min(m.len, q.file-off) // the last sector may be cut
		return m, nil
	}
	off := int64(v & offsetMask)
	if !q.h.extended && q.h.version >= 3 && v&l2Zero != 0 {
		return m, nil // zeros, with or without a place
	}
	if off == 0 {
		if v&l2Copied != 0 || q.h.extended && uint32(binary.BigEndian.Uint64(b[8:])) != 0 {
			return m, errors.New("data that is stored nowhere")
		}
		return m, nil
	}
	m = mapping{kind: mapData, off: off, data: 1<<subclusters - 1}
	if q.h.extended {
		bitmap := binary.BigEndian.Uint64(b[8:])
		m.data = uint32(bitmap)
		if uint32(bitmap>>32)&m.data != 0 {
			return m, errors.New("subclusters that are stored and zeros")
		}
		if m.data == 0 {
			return mapping{}, nil
		}
	}
	// The host cluster of the last one may be cut where the disk is.
	if off%q.cluster != 0 || off >= q.file {
		return m, fmt.Errorf("data at %d, which is no cluster of the file's %d bytes", off, q.file)
	}
	return m, nil
}

// walk reads all L2 tables, and notes where there is data.
func (q *qcow2) walk() error {
	grain := int64(minGrain)
	for q.h.size/grain > maxExtents {
		grain *= 2
	}
	span := q.entries * q.cluster
	var last diskimage.Extent
	b := make([]byte, q.cluster)
	for i, off := range q.l1 {
		if off == 0 {
			continue
		}
		if err := readFull(q.r, b, off); err != nil {
			return fmt.Errorf("L2 table at %d: %w", off, err)
		}
		base := int64(i) * span
		for j := range min(q.entries, (q.h.size-base+q.cluster-1)/q.cluster) {
			m, err := q.entry(b[j*q.entrySize():][:q.entrySize()])
			if err != nil {
				return fmt.Errorf("L2 table at %d, entry %d: %w", off, j, err)
			}
			if m.kind == mapZero {
				continue
			}
			at := base + j*q.cluster
			e := diskimage.Extent{Off: at, Len: min(q.cluster, q.h.size-at)}
			if last.Len > 0 && e.Off-last.End() < grain {
				last.Len = e.End() - last.Off
				continue
			}
			if last.Len > 0 {
				q.extents = append(q.extents, last)
			}
			last = e
		}
	}
	if last.Len > 0 {
		q.extents = append(q.extents, last)
	}
	return nil
}

func (q *qcow2) Size() int64                 { return q.h.size }
func (q *qcow2) Extents() []diskimage.Extent { return q.extents }

func (q *qcow2) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("qcow2: read at negative offset %d", off)
	}
	if off >= q.h.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), q.h.size-off))
	for done := 0; done < n; {
		at := off + int64(done)
		in := at % q.cluster
		part := p[done:min(n, done+int(q.cluster-in))]
		if err := q.read(part, at, in); err != nil {
			clear(part)
			return done, fmt.Errorf("qcow2: disk at %d: %w", at, err)
		}
		done += len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// read fills p with the bytes from in on of the cluster that at lies in.
func (q *qcow2) read(p []byte, at, in int64) error {
	span := q.entries * q.cluster
	l2 := q.l1[at/span]
	if l2 == 0 {
		clear(p)
		return nil
	}
	t, err := q.table(l2)
	if err != nil {
		return fmt.Errorf("L2 table at %d: %w", l2, err)
	}
	m, err := q.entry(t[at%span/q.cluster*q.entrySize():][:q.entrySize()])
	if err != nil {
		return err // the file changed since it was opened
	}
	switch m.kind {
	case mapCompressed:
		return q.decompress(p, m, in)
	case mapData:
		return q.data(p, m, in)
	}
	clear(p)
	return nil
}

// data reads stored bytes of a cluster; what lies behind the file's end, which
// only its last cluster can have, and subclusters that are not stored, are zeros.
func (q *qcow2) data(p []byte, m mapping, in int64) error {
	sub := q.cluster / subclusters
	for len(p) > 0 {
		n, stored := int64(len(p)), true
		if m.data != 1<<subclusters-1 {
			n = min(n, sub-in%sub)
			stored = m.data>>(in/sub)&1 != 0
		}
		part := p[:n]
		have := min(n, max(0, q.file-m.off-in))
		if !stored {
			have = 0
		}
		if have > 0 {
			if err := readFull(q.r, part[:have], m.off+in); err != nil {
				return err
			}
		}
		clear(part[have:])
		p, in = p[n:], in+n
	}
	return nil
}

// table returns an L2 table through the cache.
func (q *qcow2) table(off int64) ([]byte, error) {
	q.mu.Lock()
	e := q.cached[off]
	if e != nil {
		q.order.MoveToFront(e)
	}
	q.mu.Unlock()
	if e != nil {
		return e.Value.(table).b, nil
	}
	b := make([]byte, q.cluster)
	if err := readFull(q.r, b, off); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.cached[off] == nil {
		q.cached[off] = q.order.PushFront(table{off, b})
	}
	if q.order.Len() > q.keep {
		delete(q.cached, q.order.Remove(q.order.Back()).(table).off)
	}
	return b, nil
}

// qcowDecoder decompresses clusters. It is not for concurrent use. It keeps the
// last cluster, since readers take one in parts.
type qcowDecoder struct {
	src, dst []byte
	off      int64 // of the cluster in dst; -1 is none
	deflate  io.ReadCloser
	zstd     *zstd.Decoder
}

func (q *qcow2) decompress(p []byte, m mapping, in int64) error {
	d, _ := q.decoders.Get().(*qcowDecoder)
	if d == nil {
		d = &qcowDecoder{dst: make([]byte, q.cluster), off: -1}
	}
	defer q.decoders.Put(d)
	if d.off != m.off {
		d.off = -1
		if err := d.cluster(q, m); err != nil {
			return fmt.Errorf("compressed bytes at %d: %w", m.off, err)
		}
		d.off = m.off
	}
	copy(p, d.dst[in:])
	return nil
}

// cluster decompresses one whole cluster. The compressed bytes are followed by
// whatever fills their last sector.
func (d *qcowDecoder) cluster(q *qcow2, m mapping) error {
	if int64(cap(d.src)) < m.len {
		d.src = make([]byte, m.len)
	}
	src := d.src[:m.len]
	if err := readFull(q.r, src, m.off); err != nil {
		return err
	}
	in := bytes.NewReader(src)
	if q.h.compression == typeZstd {
		if d.zstd == nil {
			var err error
			if d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20)); err != nil {
				return err
			}
		}
		if err := d.zstd.Reset(in); err != nil {
			return err
		}
		_, err := io.ReadFull(d.zstd, d.dst)
		return err
	}
	if d.deflate == nil {
		d.deflate = flate.NewReader(in)
	} else if err := d.deflate.(flate.Resetter).Reset(in, nil); err != nil {
		return err
	}
	_, err := io.ReadFull(d.deflate, d.dst)
	return err
}
