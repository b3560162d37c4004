package oci

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// brokenDisk fails, or ends, when byte at is read.
type brokenDisk struct {
	testDisk
	at  int64
	err error
}

func (d brokenDisk) ReadAt(p []byte, off int64) (int, error) {
	if off <= d.at && d.at < off+int64(len(p)) {
		return int(d.at - off), d.err
	}
	return d.testDisk.ReadAt(p, off)
}

func checkNothingOpen(t *testing.T, d *Dir) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(d.Path(), tempDir))
	if err != nil || len(entries) != 0 {
		t.Errorf("temporary files left: %v, %v", entries, err)
	}
	if _, err := d.GC(); err != nil {
		t.Errorf("something still holds the layout: %v", err)
	}
}

func TestPackReportsAReadErrorAndCleansUp(t *testing.T) {
	boom := errors.New("boom")
	disk := sparse(randomDisk(1, 5<<20), 4096)
	for _, c := range []struct {
		at   int64
		err  error
		want error
	}{{0, boom, boom}, {1 << 20, boom, boom}, {3<<20 + 7, io.EOF, errShortDisk}, {5<<20 - 1, nil, errShortDisk}} {
		if c.at = nextData(disk, c.at); c.at < 0 {
			t.Fatal("the sample has no data there")
		}
		d := newDir(t)
		_, err := Pack(context.Background(), brokenDisk{disk, c.at, c.err}, testConfig(), d, small())
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "read disk ") {
			t.Errorf("disk broken at %d: got %v, want %v", c.at, err, c.want)
		}
		checkNothingOpen(t, d)
	}
}

func nextData(d diskimage.Disk, at int64) int64 {
	for _, e := range d.Extents() {
		if e.End() > at {
			return max(at, e.Off)
		}
	}
	last := d.Extents()[len(d.Extents())-1]
	return last.End() - 1
}

func TestPackStopsWhenTold(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	d := newDir(t)
	o := small()
	o.Progress = func(done, total int64) {
		if done > total/2 {
			cancel()
		}
	}
	if _, err := Pack(ctx, sparse(randomDisk(1, 20<<20), 4096), testConfig(), d, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	checkNothingOpen(t, d)
}

func TestPackRefusesBadInput(t *testing.T) {
	good := sparse(randomDisk(1, 100<<10), 4096)
	for name, c := range map[string]struct {
		disk diskimage.Disk
		edit func(*Config)
		want string
	}{
		"size":      {diskimage.Bytes(make([]byte, 1000)), func(*Config) {}, "multiple of the 512-byte sector"},
		"empty":     {diskimage.Bytes(nil), func(*Config) {}, "disk size 0"},
		"sector":    {good, func(c *Config) { c.Disk.SectorSize = 1024 }, "sector size 1024"},
		"name":      {good, func(c *Config) { c.Name = "" }, "name must be set"},
		"requires":  {good, func(c *Config) { c.Requires = []string{"x"} }, `requires "x"`},
		"config":    {good, func(c *Config) { c.Flavour = strings.Repeat("x", MaxConfig) }, "at most 1048576"},
		"extents":   {testDisk{good.Disk, []diskimage.Extent{{Off: 0, Len: 1 << 30}}}, func(*Config) {}, "lies outside"},
		"unordered": {testDisk{good.Disk, []diskimage.Extent{{Off: 9, Len: 1}, {Off: 0, Len: 1}}}, func(*Config) {}, "not in order"},
		"table":     {good, func(c *Config) { c.Disk.Table = &diskimage.Table{DiskSize: 512, SectorSize: 512} }, "table is for"},
	} {
		config := testConfig()
		c.edit(&config)
		_, err := Pack(context.Background(), c.disk, config, newDir(t), small())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestProgressEndsAtTotal(t *testing.T) {
	var last, total int64
	o := small()
	o.Progress = func(d, n int64) {
		if d < last {
			t.Errorf("progress went back from %d to %d", last, d)
		}
		last, total = d, n
	}
	mustPack(t, newDir(t), sparse(randomDisk(1, 5<<20), 4096), o, "v1")
	if last == 0 || last != total {
		t.Errorf("progress ended at %d of %d", last, total)
	}
}

func TestSparseDiskOfATebibytePacks(t *testing.T) {
	d := newDir(t)
	disk := hugeDisk{size: 1 << 40, at: 700<<30 + 12345, data: []byte("needle")}
	p := mustPack(t, d, disk, PackOptions{}, "v1")
	a := mustOpen(t, d, "v1")
	got := make([]byte, 6)
	if _, err := a.Disk(context.Background()).ReadAt(got, disk.at); err != nil || string(got) != "needle" {
		t.Errorf("read %q, %v", got, err)
	}
	if n := len(p.Index.Segments); n != 64 || len(p.Index.Chunks) != 1 || a.StoredSize() > 2<<20 {
		t.Errorf("%d segments, %d chunks, %d bytes stored", n, len(p.Index.Chunks), a.StoredSize())
	}
}

// hugeDisk is zeros but for a few bytes.
type hugeDisk struct {
	size, at int64
	data     []byte
}

func (d hugeDisk) Size() int64 { return d.size }
func (d hugeDisk) Extents() []diskimage.Extent {
	return []diskimage.Extent{{Off: d.at, Len: int64(len(d.data))}}
}

func (d hugeDisk) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if i := d.at - off; i >= 0 && i < int64(len(p)) {
		copy(p[i:], d.data)
	}
	return len(p), nil
}
