package virtdisk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/virtdisk"
)

// sparse returns a disk of size bytes that has a bit of everything at places of
// its own: noise, text, holes, zeros inside extents, data in the last sector.
func sparse(size int64, seed uint64) diskimage.Disk {
	r := rand.New(rand.NewPCG(seed, 1))
	var parts []diskimage.Part
	for off := int64(0); off < size; {
		n := min(size-off, 512*(1+r.Int64N(600)))
		b := make([]byte, n)
		switch r.IntN(6) {
		case 4: // what a compressor finds again from 1 to 30 KiB before
			period := 1024 * (1 + r.IntN(30))
			for i := range b {
				if b[i] = byte(r.Uint32()); i >= period {
					b[i] = b[i-period]
				}
			}
		case 0:
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		case 1:
			copy(b, bytes.Repeat([]byte("golden image "), len(b)/13))
		case 2: // zeros that are not a hole
		case 3:
			b[r.IntN(len(b))] = 1
		default:
			b = nil
		}
		if b != nil {
			parts = append(parts, diskimage.Part{Off: off, Disk: diskimage.Bytes(b)})
		}
		off += n
	}
	last := diskimage.Bytes(bytes.Repeat([]byte{0xa5}, 512))
	parts = slices.DeleteFunc(parts, func(p diskimage.Part) bool { return p.Off+p.Disk.Size() > size-512 })
	d, err := diskimage.Join(size, append(parts, diskimage.Part{Off: size - 512, Disk: last})...)
	if err != nil {
		panic(err)
	}
	return d
}

func content(t testing.TB, d diskimage.Disk) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if n, err := d.ReadAt(b, 0); n < len(b) {
		t.Fatalf("%d of %d bytes: %v", n, len(b), err)
	}
	return b
}

// memory is a File whose holes are zeros.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Truncate(size int64) error {
	if int(size) > len(m.b) {
		m.b = append(m.b, make([]byte, int(size)-len(m.b))...)
	}
	m.b = m.b[:size]
	return nil
}

func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("qemu-utils is not installed")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func write(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// variant is one kind of file that can be written.
type variant struct {
	format      virtdisk.Format
	compression virtdisk.Compression
	qemu        string // its name of the format
	checks      bool   // qemu-img check knows it
}

var variants = []variant{
	{virtdisk.Raw, "", "raw", false},
	{virtdisk.QCOW2, "", "qcow2", true},
	{virtdisk.QCOW2, virtdisk.Zlib, "qcow2", true},
	{virtdisk.QCOW2, virtdisk.Zstd, "qcow2", true},
	{virtdisk.VMDK, "", "vmdk", true},
	{virtdisk.VHD, "", "vpc", false},
	{virtdisk.VHDDynamic, "", "vpc", false},
}

func (v variant) String() string {
	return strings.TrimSuffix(string(v.format)+"-"+string(v.compression), "-")
}

var id = diskimage.DeriveGUID("virtdisk")

// TestQemuReadsWhatIsWritten lets qemu-img check each file and turn it back into
// the disk.
func TestQemuReadsWhatIsWritten(t *testing.T) {
	for _, size := range []int64{512, 5<<20 + 512, 66<<20 - 4096} {
		d := sparse(size, uint64(size))
		want := content(t, d)
		for _, v := range variants {
			t.Run(fmt.Sprint(size, v), func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "disk")
				f, err := os.Create(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := virtdisk.Write(t.Context(), f, d, v.format, virtdisk.Options{ID: id, Compression: v.compression}); err != nil {
					t.Fatal(err)
				}
				if v.checks {
					if out := qemuImg(t, "check", "-f", v.qemu, path); !strings.Contains(out, "No errors were found") || strings.Contains(out, "leaked") {
						t.Error(out)
					}
				}
				qemuImg(t, "convert", "-f", v.qemu, "-O", "raw", path, path+".raw")
				got, err := os.ReadFile(path + ".raw")
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%d bytes come back, differing at %d of %d", len(got), differ(got, want), len(want))
				}
			})
		}
	}
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestSameBytes writes each format again with other numbers of workers, and as a
// stream.
func TestSameBytes(t *testing.T) {
	d := sparse(20<<20, 7)
	o := virtdisk.Options{ID: id, Time: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	for _, v := range variants {
		t.Run(v.String(), func(t *testing.T) {
			o := o
			o.Compression = v.compression
			var first []byte
			for _, workers := range []int{1, 2, 5} {
				o.Workers = workers
				var last, sum int64
				o.Progress = func(done, total int64) { last, sum = done, total }
				m := &memory{b: []byte("what was there before")}
				if err := virtdisk.Write(t.Context(), m, d, v.format, o); err != nil {
					t.Fatal(err)
				}
				if last != sum || sum == 0 {
					t.Errorf("progress ends at %d of %d", last, sum)
				}
				if first == nil {
					first = m.b
				}
				if !bytes.Equal(m.b, first) {
					t.Errorf("%d workers: other bytes from %d on", workers, differ(m.b, first))
				}
			}
			var b bytes.Buffer
			err := virtdisk.Stream(t.Context(), &b, d, v.format, o)
			if !v.format.Streams() {
				if !errors.Is(err, errors.ErrUnsupported) || b.Len() > 0 {
					t.Errorf("%d bytes, %v", b.Len(), err)
				}
				return
			}
			if err != nil || !bytes.Equal(b.Bytes(), first) {
				t.Errorf("streamed: %d bytes, %v; written: %d bytes", b.Len(), err, len(first))
			}
		})
	}
}

// TestIdentity is about what is in a file besides the disk.
func TestIdentity(t *testing.T) {
	d := sparse(3<<20, 1)
	at := func(v variant, id diskimage.GUID, tm time.Time) []byte {
		m := new(memory)
		if err := virtdisk.Write(t.Context(), m, d, v.format, virtdisk.Options{ID: id, Time: tm, Compression: v.compression}); err != nil {
			t.Fatal(err)
		}
		return m.b
	}
	for _, v := range variants[4:] {
		if bytes.Equal(at(v, id, time.Time{}), at(v, diskimage.DeriveGUID("another"), time.Time{})) {
			t.Errorf("%v: two disks with one identity", v)
		}
	}
	vhd := at(variants[5], id, time.Date(2000, 1, 1, 0, 1, 0, 0, time.UTC))
	foot := vhd[len(vhd)-512:]
	if string(foot[:8]) != "conectix" || !bytes.Equal(foot[24:28], []byte{0, 0, 0, 60}) {
		t.Errorf("footer % x", foot[:40])
	}
	if early := at(variants[5], id, time.Unix(0, 0)); !bytes.Equal(early[len(early)-488:][:4], make([]byte, 4)) {
		t.Errorf("a time before 2000 is % x", early[len(early)-488:][:4])
	}
}

// TestQCOW2IsReadBack reads what this package and qemu-img write.
func TestQCOW2IsReadBack(t *testing.T) {
	for _, c := range []virtdisk.Compression{virtdisk.Plain, virtdisk.Zlib, virtdisk.Zstd} {
		d := sparse(30<<20+512, 3)
		m := new(memory)
		if err := virtdisk.Write(t.Context(), m, d, virtdisk.QCOW2, virtdisk.Options{Compression: c}); err != nil {
			t.Fatal(err)
		}
		same(t, string(c), m.b, content(t, d))
	}
}

// same opens a qcow2 and compares all of it, extents first, and then pieces.
func same(t *testing.T, name string, image, want []byte) {
	t.Helper()
	d, err := virtdisk.OpenQCOW2(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if d.Size() != int64(len(want)) {
		t.Errorf("%s: a disk of %d bytes, want %d", name, d.Size(), len(want))
		return
	}
	got := make([]byte, len(want))
	for _, e := range d.Extents() {
		if n, err := d.ReadAt(got[e.Off:e.End()], e.Off); int64(n) < e.Len {
			t.Errorf("%s: %v: %d bytes, %v", name, e, n, err)
			return
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the extents differ at %d", name, differ(got, want))
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		off := r.IntN(len(want))
		b := bytes.Repeat([]byte{0xee}, 1+r.IntN(200_000))
		n, err := d.ReadAt(b, int64(off))
		if w := want[off:min(off+len(b), len(want))]; !bytes.Equal(b[:n], w) || (n < len(b)) != (err == io.EOF) {
			t.Fatalf("%s: %d bytes at %d: %d, %v", name, len(b), off, n, err)
		}
	}
}

// TestQCOW2OfQemu reads every kind of image that qemu-img makes.
func TestQCOW2OfQemu(t *testing.T) {
	dir := t.TempDir()
	want := content(t, sparse(6<<20+1024, 11))
	raw := write(t, filepath.Join(dir, "raw"), want)
	kinds := map[string][]string{
		"default":                 {},
		"v2":                      {"-o", "compat=0.10"},
		"clusters of 512":         {"-o", "cluster_size=512"},
		"clusters of 4K":          {"-o", "cluster_size=4k"},
		"clusters of 2M":          {"-o", "cluster_size=2M"},
		"zlib":                    {"-c"},
		"zlib 4K":                 {"-c", "-o", "cluster_size=4k"},
		"zlib 2M":                 {"-c", "-o", "cluster_size=2M"},
		"zlib v2":                 {"-c", "-o", "compat=0.10"},
		"zstd":                    {"-c", "-o", "compression_type=zstd"},
		"zstd 2M":                 {"-c", "-o", "compression_type=zstd,cluster_size=2M"},
		"subclusters":             {"-o", "extended_l2=on"},
		"subclusters 16K":         {"-o", "extended_l2=on,cluster_size=16k"},
		"subclusters, compressed": {"-c", "-o", "extended_l2=on"},
		"metadata":                {"-o", "preallocation=metadata"},
		"falloc":                  {"-o", "preallocation=falloc"},
		"full":                    {"-o", "preallocation=full"},
		"lazy refcounts":          {"-o", "lazy_refcounts=on"},
		"refcounts of 1":          {"-o", "refcount_bits=1"},
		"refcounts of 64":         {"-o", "refcount_bits=64"},
		"no holes":                {"-S", "0"},
	}
	for name, args := range kinds {
		path := filepath.Join(dir, "qcow2")
		qemuImg(t, slices.Concat([]string{"convert", "-f", "raw", "-O", "qcow2"}, args, []string{raw, path})...)
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		same(t, name, image, want)
	}
}

// TestQCOW2OfAUsedImage reads an image that a machine wrote to: with a snapshot,
// discarded and zeroed clusters, and subclusters of every kind.
func TestQCOW2OfAUsedImage(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("qemu-utils is not installed")
	}
	for _, options := range []string{"compat=0.10", "compat=1.1", "extended_l2=on", "extended_l2=on,cluster_size=2M"} {
		dir := t.TempDir()
		want := content(t, sparse(8<<20, 5))
		raw, path := write(t, filepath.Join(dir, "raw"), want), filepath.Join(dir, "qcow2")
		qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, raw, path)
		qemuImg(t, "snapshot", "-c", "before", path)
		r := rand.New(rand.NewPCG(9, 9))
		var args []string
		for i := range 120 {
			off := 512 * r.IntN(len(want)/512-1)
			n := min(512*(1+r.IntN(1<<(1+r.IntN(9)))), len(want)-off)
			var fill byte
			switch r.IntN(4) {
			case 0:
				args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, n))
			case 1:
				args = append(args, "-c", fmt.Sprintf("write -z -u %d %d", off, n))
			default:
				fill = byte(1 + i)
				args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", fill, off, n))
			}
			copy(want[off:off+n], bytes.Repeat([]byte{fill}, n))
		}
		if out, err := exec.Command("qemu-io", append(append([]string{"-f", "qcow2"}, args...), path)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		same(t, options, image, want)
	}
}

func TestQCOW2Refuses(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", base, "1M")
	for name, c := range map[string]struct {
		args []string
		want error
	}{
		"backing":  {[]string{"-b", base, "-F", "qcow2"}, virtdisk.ErrBacking},
		"external": {[]string{"-o", "data_file=" + filepath.Join(dir, "data")}, virtdisk.ErrExternal},
	} {
		path := filepath.Join(dir, name)
		args := append([]string{"create", "-q", "-f", "qcow2"}, c.args...)
		qemuImg(t, append(args, path, "1M")...)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := virtdisk.OpenQCOW2(bytes.NewReader(b), int64(len(b))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTooLarge is about disks that a format cannot say the size of.
func TestTooLarge(t *testing.T) {
	hole := func(size int64) diskimage.Disk {
		d, err := diskimage.Join(size)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, v := range variants {
		m := new(memory)
		err := virtdisk.Write(context.Background(), m, hole(1<<44+512), v.format, virtdisk.Options{Compression: v.compression})
		if !errors.Is(err, virtdisk.ErrTooLarge) || len(m.b) > 0 {
			t.Errorf("%v: %v", v, err)
		}
	}
	for _, size := range []int64{0, 100, 513} {
		if err := virtdisk.Write(context.Background(), new(memory), hole(size), virtdisk.QCOW2, virtdisk.Options{}); err == nil {
			t.Errorf("a disk of %d bytes is written", size)
		}
	}
	if err := virtdisk.Write(context.Background(), new(memory), hole(512), virtdisk.VMDK, virtdisk.Options{Compression: virtdisk.Zstd}); err == nil {
		t.Error("a vmdk compressed with zstd")
	}
}

// broken is a disk that cannot be read at one place.
type broken struct {
	diskimage.Disk
	at int64
}

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off <= b.at && b.at < off+int64(len(p)) {
		return 0, errors.New("unreadable")
	}
	return b.Disk.ReadAt(p, off)
}

// full is a file on a disk that is full.
type full struct{ memory }

func (f *full) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > 5<<20 {
		return 0, errors.New("no space")
	}
	return f.memory.WriteAt(p, off)
}

func TestErrorsEndTheWrite(t *testing.T) {
	d := sparse(40<<20, 13)
	for _, v := range variants {
		o := virtdisk.Options{Compression: v.compression, Workers: 3}
		err := virtdisk.Write(t.Context(), new(memory), broken{d, 40<<20 - 1}, v.format, o)
		if err == nil || !strings.Contains(err.Error(), "unreadable") {
			t.Errorf("%v: unreadable disk: %v", v, err)
		}
		if err := virtdisk.Write(t.Context(), new(full), d, v.format, o); err == nil || !strings.Contains(err.Error(), "no space") {
			t.Errorf("%v: full disk: %v", v, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		o.Progress = func(int64, int64) { cancel() }
		if err := virtdisk.Write(ctx, new(memory), d, v.format, o); !errors.Is(err, context.Canceled) {
			t.Errorf("%v: cancelled: %v", v, err)
		}
	}
}
