package virtdisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// What is written: version 3, clusters of 64 KiB, refcounts of 16 bits. QEMU
// makes the same by default.
const (
	qcowBits     = 16
	qcowCluster  = 1 << qcowBits
	l2Entries    = qcowCluster / 8
	l2Span       = l2Entries * qcowCluster // bytes of the disk
	refsPerBlock = qcowCluster / 2
	qcowHead     = 112 // bytes, with the compression type
	// The sector count of a compressed cluster begins at this bit.
	compressedBits = 62 - (qcowBits - 8)
	// QEMU gives zlib a window of 4 KiB to decompress with.
	deflateWindow = 4 << 10
)

// qcowWriter lays the file out as the clusters come: the header's cluster, data,
// each L2 table behind its data, then L1 table and refcounts.
type qcowWriter struct {
	f    File
	next int64 // the end of the file so far
	l1   []byte
	l2   []byte // entries since the last table
	at   int64  // number of that table
	refs []byte // 16 bits for each cluster; only with compression, else all are 1
}

func writeQCOW2(ctx context.Context, f File, disk diskimage.Disk, o Options) error {
	size := disk.Size()
	w := &qcowWriter{f: f, next: qcowCluster, l1: make([]byte, 8*((size+l2Span-1)/l2Span)), l2: make([]byte, qcowCluster)}
	p := &pipe{disk: disk, unit: qcowCluster, o: o, emit: w.data}
	if o.Compression != Plain {
		p.encoder = func() (encoder, error) { return clusterEncoder(o.Compression) }
		p.emit = w.compressed
		w.ref(0, 1)
	}
	if err := p.run(ctx); err != nil {
		return err
	}
	return w.end(size, o.Compression)
}

// alloc takes n bytes of whole clusters at the end of the file.
func (w *qcowWriter) alloc(n int64) (off int64) {
	off = (w.next + qcowCluster - 1) / qcowCluster * qcowCluster
	clusters := (n + qcowCluster - 1) / qcowCluster
	w.next = off + clusters*qcowCluster
	if w.refs != nil {
		w.ref(off/qcowCluster, clusters)
	}
	return off
}

// ref counts one more reference to each of n clusters.
func (w *qcowWriter) ref(cluster, n int64) {
	for ; n > 0; cluster, n = cluster+1, n-1 {
		for int64(len(w.refs)) < 2*(cluster+1) {
			w.refs = append(w.refs, 0, 0)
		}
		b := w.refs[2*cluster:]
		binary.BigEndian.PutUint16(b, binary.BigEndian.Uint16(b)+1)
	}
}

// data stores a cluster as it is.
func (w *qcowWriter) data(c cell) error {
	if err := w.turn(c.off); err != nil {
		return err
	}
	off := w.alloc(qcowCluster)
	w.set(c.off, l2Copied|uint64(off))
	_, err := w.f.WriteAt(c.plain, off)
	return err
}

// compressed stores a cluster's compressed bytes right behind the last ones, and
// as it is where that is not shorter.
func (w *qcowWriter) compressed(c cell) error {
	if len(c.data) >= qcowCluster {
		return w.data(c)
	}
	if err := w.turn(c.off); err != nil {
		return err
	}
	off, end := w.next, w.next+int64(len(c.data))
	w.next = end
	first, last := off/sector, (end-1)/sector
	w.set(c.off, l2Compressed|uint64(last-first)<<compressedBits|uint64(off))
	// Each cluster that one of these sectors lies in is referred to.
	from := off / qcowCluster
	w.ref(from, (end-1)/qcowCluster-from+1)
	_, err := w.f.WriteAt(c.data, off)
	return err
}

func (w *qcowWriter) set(off int64, entry uint64) {
	binary.BigEndian.PutUint64(w.l2[off%l2Span/qcowCluster*8:], entry)
}

// turn writes the L2 table that ended, if off is beyond it.
func (w *qcowWriter) turn(off int64) error {
	if n := off / l2Span; n != w.at {
		if err := w.flush(); err != nil {
			return err
		}
		w.at = n
	}
	return nil
}

func (w *qcowWriter) flush() error {
	if isZero(w.l2) {
		return nil
	}
	off := w.alloc(qcowCluster)
	binary.BigEndian.PutUint64(w.l1[8*w.at:], l2Copied|uint64(off))
	_, err := w.f.WriteAt(w.l2, off)
	clear(w.l2)
	return err
}

// end writes what is left: L2, L1, refcounts, and the header.
func (w *qcowWriter) end(size int64, c Compression) error {
	if err := w.flush(); err != nil {
		return err
	}
	l1 := w.alloc(int64(len(w.l1)))
	if _, err := w.f.WriteAt(w.l1, l1); err != nil {
		return err
	}
	// Refcount blocks count themselves and their table.
	used := (w.next + qcowCluster - 1) / qcowCluster
	blocks, tables := int64(0), int64(0)
	for {
		b := (used + blocks + tables + refsPerBlock - 1) / refsPerBlock
		t := (8*b + qcowCluster - 1) / qcowCluster
		if b == blocks && t == tables {
			break
		}
		blocks, tables = b, t
	}
	table := w.alloc(tables * qcowCluster)
	first := w.alloc(blocks * qcowCluster)
	if err := w.refcounts(table, first, blocks); err != nil {
		return err
	}
	if err := w.f.Truncate(w.next); err != nil {
		return err
	}
	_, err := w.f.WriteAt(qcow2Header(size, l1, int64(len(w.l1)/8), table, tables, c), 0)
	return err
}

func (w *qcowWriter) refcounts(table, first, blocks int64) error {
	entries := make([]byte, 8*blocks)
	for i := range blocks {
		binary.BigEndian.PutUint64(entries[8*i:], uint64(first+i*qcowCluster))
	}
	if _, err := w.f.WriteAt(entries, table); err != nil {
		return err
	}
	if w.refs != nil {
		_, err := w.f.WriteAt(w.refs, first)
		return err
	}
	ones := bytes.Repeat([]byte{0, 1}, refsPerBlock)
	for off, left := first, 2*(w.next/qcowCluster); left > 0; {
		n, err := w.f.WriteAt(ones[:min(left, int64(len(ones)))], off)
		if err != nil {
			return err
		}
		off, left = off+int64(n), left-int64(n)
	}
	return nil
}

func qcow2Header(size, l1, entries, refs, refClusters int64, c Compression) []byte {
	b := make([]byte, qcowHead+8) // and the end of the header extensions
	be := binary.BigEndian
	copy(b, qcowMagic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], qcowBits)
	be.PutUint64(b[24:], uint64(size))
	be.PutUint32(b[36:], uint32(entries))
	be.PutUint64(b[40:], uint64(l1))
	be.PutUint64(b[48:], uint64(refs))
	be.PutUint32(b[56:], uint32(refClusters))
	be.PutUint32(b[96:], 4) // refcounts of 2^4 bits
	be.PutUint32(b[100:], qcowHead)
	if c == Zstd {
		be.PutUint64(b[72:], incompatCompression)
		b[104] = typeZstd
	}
	return b
}

// clusterEncoder compresses clusters; the one that the disk ends in is filled
// up with zeros.
func clusterEncoder(c Compression) (encoder, error) {
	whole := make([]byte, qcowCluster)
	fill := func(plain []byte) []byte {
		if len(plain) == qcowCluster {
			return plain
		}
		clear(whole[copy(whole, plain):])
		return whole
	}
	if c == Zstd {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(qcowCluster))
		if err != nil {
			return nil, fmt.Errorf("zstd encoder: %w", err)
		}
		return func(dst, plain []byte) ([]byte, error) { return z.EncodeAll(fill(plain), dst), nil }, nil
	}
	var buf bytes.Buffer
	z, err := flate.NewWriterWindow(&buf, deflateWindow)
	if err != nil {
		return nil, err
	}
	return func(dst, plain []byte) ([]byte, error) {
		buf.Reset()
		z.Reset(&buf)
		if _, err := z.Write(fill(plain)); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		return append(dst, buf.Bytes()...), nil
	}, nil
}
