package oci

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// benchDisk is the file named by IMGPIPE_BENCH_DISK, with its holes left out,
// or a random disk of 64 MiB.
func benchDisk(b *testing.B) diskimage.Disk {
	name := os.Getenv("IMGPIPE_BENCH_DISK")
	if name == "" {
		return sparse(randomDisk(1, 64<<20), 64<<10)
	}
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	disk := testDisk{Disk: diskimage.Section(f, 0, info.Size())}
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < info.Size(); off += int64(len(buf)) {
		n, _ := f.ReadAt(buf, off)
		if string(buf[:n]) != string(zeros[:n]) {
			disk.extents = append(disk.extents, diskimage.Extent{Off: off, Len: int64(n)})
		}
	}
	disk.extents = diskimage.MergeExtents(disk.extents)
	return disk
}

func dataSize(d diskimage.Disk) (n int64) {
	for _, e := range d.Extents() {
		n += e.Len
	}
	return n
}

// reportCPU adds the processor time of one iteration, which says more than wall
// time on a machine that others use. Call what it returns at the end.
func reportCPU(b *testing.B, who int) func() {
	cpu := func() float64 {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	}
	start := cpu()
	return func() { b.ReportMetric((cpu()-start)/float64(b.N), "cpu-s/op") }
}

func BenchmarkPack(b *testing.B) {
	disk := benchDisk(b)
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression} {
		b.Run(level.String(), func(b *testing.B) {
			b.SetBytes(dataSize(disk))
			defer reportCPU(b, unix.RUSAGE_SELF)()
			for b.Loop() {
				d := newDir(b)
				mustPack(b, d, disk, PackOptions{Level: level}, "v1")
				b.ReportMetric(float64(mustOpen(b, d, "v1").StoredSize())/1e6, "MB-stored")
			}
		})
	}
}

// BenchmarkZstdTool is what BenchmarkPack is held against: the real zstd over
// the raw disk.
func BenchmarkZstdTool(b *testing.B) {
	disk := benchDisk(b)
	name := os.Getenv("IMGPIPE_BENCH_DISK")
	if name == "" {
		name = filepath.Join(b.TempDir(), "raw")
		if err := os.WriteFile(name, readAll(b, disk), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(dataSize(disk))
	out := filepath.Join(b.TempDir(), "out.zst")
	defer reportCPU(b, unix.RUSAGE_CHILDREN)()
	for b.Loop() {
		if msg, err := exec.Command("zstd", "-3", "-T0", "-q", "-f", "-o", out, name).CombinedOutput(); err != nil {
			b.Skipf("zstd: %v %s", err, msg)
		}
		info, err := os.Stat(out)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Size())/1e6, "MB-stored")
	}
}

func BenchmarkPackAgain(b *testing.B) {
	disk := benchDisk(b)
	d := newDir(b)
	mustPack(b, d, disk, PackOptions{}, "v1")
	o := PackOptions{Previous: mustOpen(b, d, "v1")}
	b.SetBytes(dataSize(disk))
	defer reportCPU(b, unix.RUSAGE_SELF)()
	for b.Loop() {
		mustPack(b, d, disk, o, "v2")
	}
}

func BenchmarkExport(b *testing.B) {
	disk := benchDisk(b)
	d := newDir(b)
	mustPack(b, d, disk, PackOptions{}, "v1")
	a := mustOpen(b, d, "v1")
	b.SetBytes(dataSize(disk))
	defer reportCPU(b, unix.RUSAGE_SELF)()
	for b.Loop() {
		f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
		if err != nil {
			b.Fatal(err)
		}
		if err := a.Export(context.Background(), f, ExportOptions{}); err != nil {
			b.Fatal(err)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
