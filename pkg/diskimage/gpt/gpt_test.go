package gpt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// sample is the table of a golden image: ESP, config, growing root.
func sample(size, sector int64) *diskimage.Table {
	return &diskimage.Table{
		DiskGUID: diskimage.DeriveGUID("test", "disk"), DiskSize: size, SectorSize: sector,
		Partitions: []diskimage.Partition{
			{Name: "esp", Type: diskimage.TypeESP, GUID: diskimage.DeriveGUID("test", "esp"), Role: diskimage.RoleESP,
				Attributes: diskimage.AttrRequired, Extent: diskimage.Extent{Off: mib, Len: 64 * mib}},
			{Name: "config", Type: diskimage.TypeBasicData, GUID: diskimage.DeriveGUID("test", "config"),
				Attributes: diskimage.AttrNoAutoMount, Extent: diskimage.Extent{Off: 65 * mib, Len: 8 * mib}},
			{Name: "würzel 根 🌱", Type: diskimage.TypeRootX86_64, GUID: diskimage.DeriveGUID("test", "root"),
				Attributes: diskimage.AttrGrowFS, Extent: diskimage.Extent{Off: 73 * mib, Len: size - 74*mib}},
		},
	}
}

// onDisk returns a whole disk that holds a table and zeros.
func onDisk(t testing.TB, table *diskimage.Table) diskimage.Disk {
	t.Helper()
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	d, err := diskimage.Join(table.DiskSize,
		diskimage.Part{Off: 0, Disk: diskimage.Bytes(primary)},
		diskimage.Part{Off: table.DiskSize - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// image returns the bytes of a small disk with a table.
func image(t testing.TB, table *diskimage.Table) []byte {
	t.Helper()
	d := onDisk(t, table)
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseOfEncode(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, size := range []int64{128 * mib, 128*mib + 4096, 3 << 40, 20 << 40} {
			want := sample(size, sector)
			d := onDisk(t, want)
			got, err := gpt.Parse(d, size, sector)
			if err != nil {
				t.Fatalf("%d bytes of %d: %v", size, sector, err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%d bytes of %d: got %+v\nwant %+v", size, sector, got, want)
			}
			if _, err := gpt.Parse(d, size, 4608-sector); !errors.Is(err, gpt.ErrNone) {
				t.Errorf("read with the other sector size: %v, want no GPT", err)
			}
		}
	}
}

func TestPlaces(t *testing.T) {
	for sector, first := range map[int64]int{512: 34, 4096: 6} {
		table := sample(128*mib, sector)
		primary, backup, err := gpt.Encode(table)
		if err != nil {
			t.Fatal(err)
		}
		if len(primary) != first*int(sector) || len(backup) != 16384+int(sector) {
			t.Errorf("%d: %d and %d bytes", sector, len(primary), len(backup))
		}
		usable := gpt.Usable(128*mib, sector)
		if usable.Off != int64(len(primary)) || usable.End() != 128*mib-int64(len(backup)) {
			t.Errorf("%d: usable %v", sector, usable)
		}
		again, _, err := gpt.Encode(table)
		if err != nil || !bytes.Equal(primary, again) {
			t.Errorf("%d: a second encoding differs (%v)", sector, err)
		}
	}
}

func TestProtectiveMBR(t *testing.T) {
	for _, c := range []struct {
		size, sector int64
		want         uint32
	}{{128 * mib, 512, 262143}, {128 * mib, 4096, 32767}, {2 << 40, 512, 0xffffffff}, {3 << 40, 512, 0xffffffff}, {20 << 40, 4096, 0xffffffff}} {
		primary, _, err := gpt.Encode(sample(c.size, c.sector))
		if err != nil {
			t.Fatal(err)
		}
		e := primary[446:462]
		if got := binary.LittleEndian.Uint32(e[12:]); got != c.want || e[4] != 0xee || e[8] != 1 || primary[510] != 0x55 || primary[511] != 0xaa {
			t.Errorf("%d bytes of %d: entry % x, want size %#x", c.size, c.sector, e, c.want)
		}
	}
}

func TestNumbersSurvive(t *testing.T) {
	// Debian's cloud images number their partitions 14, 15, 1 in disk order.
	want := sample(128*mib, 512)
	for i, n := range []int{14, 15, 1} {
		want.Partitions[i].Number = n
	}
	got, err := gpt.Parse(onDisk(t, want), want.DiskSize, 512)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestEncodeErrors(t *testing.T) {
	for want, change := range map[string]func(t *diskimage.Table){
		"sector size 520":                      func(t *diskimage.Table) { t.SectorSize = 520 },
		"no room for a GPT":                    func(t *diskimage.Table) { t.DiskSize, t.Partitions = 16384, nil },
		"the disk has no GUID":                 func(t *diskimage.Table) { t.DiskGUID = diskimage.GUID{} },
		"partition 1 (esp): no type":           func(t *diskimage.Table) { t.Partitions[0].Type = diskimage.GUID{} },
		"partition 1 (esp): no GUID":           func(t *diskimage.Table) { t.Partitions[0].GUID = diskimage.GUID{} },
		"has the GUID of partition 1":          func(t *diskimage.Table) { t.Partitions[1].GUID = t.Partitions[0].GUID },
		"the name has 37 UTF-16 units":         func(t *diskimage.Table) { t.Partitions[0].Name = strings.Repeat("🌱", 18) + "x" },
		"the name is not UTF-8 without NUL":    func(t *diskimage.Table) { t.Partitions[0].Name = "a\x00" },
		"number 129":                           func(t *diskimage.Table) { t.Partitions[0].Number = 129 },
		"has the number 2 of partition 1":      func(t *diskimage.Table) { t.Partitions[0].Number = 2 },
		"is not within 17408-134200832, which": func(t *diskimage.Table) { t.Partitions[0].Extent.Off = 16896 },
		"is not within 17408-134200832":        func(t *diskimage.Table) { t.Partitions[2].Extent.Len = 55*mib - 16384 },
		"starts before the previous one ends":  func(t *diskimage.Table) { t.Partitions[1].Extent.Off = 2 * mib },
	} {
		table := sample(128*mib, 512)
		change(table)
		if _, _, err := gpt.Encode(table); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// fixCRCs makes the checksums of a changed GPT right, header by header.
func fixCRCs(b []byte, sector int) {
	le := binary.LittleEndian
	for _, lba := range []int{1, len(b)/sector - 1} {
		h := b[lba*sector:][:sector]
		at, n := le.Uint64(h[72:])*uint64(sector), uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
		if n <= uint64(len(b)) && at <= uint64(len(b))-n {
			le.PutUint32(h[88:], crc32.ChecksumIEEE(b[at:at+n]))
		}
		if size := le.Uint32(h[12:]); size >= 20 && size <= uint32(sector) {
			clear(h[16:20])
			le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:size]))
		}
	}
}

// small is a table on a disk of a few sectors.
func small(sector int64) *diskimage.Table {
	usable := gpt.Usable(64<<10+40*sector, sector)
	t := sample(128*mib, sector)
	t.DiskSize = 64<<10 + 40*sector
	for i := range t.Partitions {
		t.Partitions[i].Extent = diskimage.Extent{Off: usable.Off + int64(2*i)*sector, Len: 2 * sector}
	}
	return t
}

func TestDamage(t *testing.T) {
	le := binary.LittleEndian
	for _, sector := range []int{512, 4096} {
		want := small(int64(sector))
		good := image(t, want)
		last := len(good) - sector
		for name, c := range map[string]struct {
			change func(b []byte)
			fix    bool
			err    string // "" is: the table is read all the same
		}{
			"primary signature":       {func(b []byte) { b[sector] ^= 1 }, false, ""},
			"primary header":          {func(b []byte) { b[sector+60] ^= 1 }, false, ""},
			"primary entries":         {func(b []byte) { b[2*sector+60] ^= 1 }, false, ""},
			"backup":                  {func(b []byte) { clear(b[last:]) }, false, ""},
			"no protective MBR":       {func(b []byte) { clear(b[:sector]) }, false, "LBA 0: no GPT: no protective MBR"},
			"both signatures":         {func(b []byte) { b[sector] ^= 1; b[last] ^= 1 }, false, "LBA 1: no GPT"},
			"both headers":            {func(b []byte) { b[sector+60] ^= 1; b[last+60] ^= 1 }, false, "LBA 1: header: CRC32"},
			"header and no backup":    {func(b []byte) { b[sector+60] ^= 1; clear(b[last:]) }, false, "no backup"},
			"both entries":            {func(b []byte) { b[2*sector+60] ^= 1; b[last-16384+60] ^= 1 }, false, "LBA 2: entries: CRC32"},
			"another LBA":             {func(b []byte) { b[sector+24]++; b[last+24]++ }, true, "says it is for LBA 2"},
			"revision":                {func(b []byte) { b[sector+10]++; b[last+10]++ }, true, "revision 0x20000"},
			"header size":             {func(b []byte) { le.PutUint32(b[sector+12:], 1<<31); b[last+12] = 91 }, true, "header: 2147483648 bytes"},
			"usable LBAs":             {func(b []byte) { le.PutUint64(b[sector+48:], 1<<63); le.PutUint64(b[last+48:], 1<<63) }, true, "usable LBAs"},
			"entries elsewhere":       {func(b []byte) { le.PutUint64(b[sector+72:], 1<<63); le.PutUint64(b[last+72:], 1) }, true, "entries of 128 bytes at LBA"},
			"too many entries":        {func(b []byte) { le.PutUint32(b[sector+80:], 1<<31); le.PutUint32(b[last+80:], 1025) }, true, "2147483648 entries of 128 bytes"},
			"size of entries":         {func(b []byte) { le.PutUint32(b[sector+84:], 0); le.PutUint32(b[last+84:], 192) }, true, "128 entries of 0 bytes"},
			"partition over the end":  {func(b []byte) { le.PutUint64(b[2*sector+40:], 1<<40); le.PutUint64(b[last-16384+40:], 1<<40) }, true, "entry 1: LBAs"},
			"partition over another":  {func(b []byte) { b[2*sector+40]++; b[last-16384+40]++ }, true, "starts before the previous one ends"},
			"partition of zero GUID":  {func(b []byte) { clear(b[2*sector+16:][:16]); clear(b[last-16384+16:][:16]) }, true, "no GUID"},
			"partition end too early": {func(b []byte) { clear(b[2*sector+40:][:8]); clear(b[last-16384+40:][:8]) }, true, "entry 1: LBAs"},
		} {
			b := bytes.Clone(good)
			c.change(b)
			if c.fix {
				fixCRCs(b, sector)
			}
			got, err := gpt.Parse(bytes.NewReader(b), int64(len(b)), int64(sector))
			if c.err == "" && (err != nil || !reflect.DeepEqual(got, want)) {
				t.Errorf("%d, %s: got %+v, %v", sector, name, got, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%d, %s: got %v, want %q", sector, name, err, c.err)
			}
		}
		// Both ways to have none are told from damage.
		if _, err := gpt.Parse(bytes.NewReader(make([]byte, mib)), mib, int64(sector)); !errors.Is(err, gpt.ErrNone) {
			t.Errorf("zeros: %v, want ErrNone", err)
		}
		if _, err := gpt.Parse(bytes.NewReader(good[:sector+1]), int64(len(good)), int64(sector)); errors.Is(err, gpt.ErrNone) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut off: %v, want an unexpected EOF", err)
		}
	}
}

// badSector cannot read one place of a disk.
type badSector struct {
	io.ReaderAt
	at int64
}

func (d badSector) ReadAt(p []byte, off int64) (int, error) {
	if off <= d.at && d.at < off+int64(len(p)) {
		return 0, syscall.EIO
	}
	return d.ReaderAt.ReadAt(p, off)
}

func TestUnreadablePrimary(t *testing.T) {
	want := small(512)
	good := bytes.NewReader(image(t, want))
	for _, lba := range []int64{1, 2, 33} {
		got, err := gpt.Parse(badSector{good, lba * 512}, want.DiskSize, 512)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("LBA %d unreadable: got %+v, %v", lba, got, err)
		}
	}
	if _, err := gpt.Parse(badSector{good, 0}, want.DiskSize, 512); !errors.Is(err, syscall.EIO) || errors.Is(err, gpt.ErrNone) {
		t.Errorf("LBA 0 unreadable: %v", err)
	}
}

// FuzzParse lays a header and entries over a good table and makes the
// checksums right, so that every other check is reached. What is accepted is
// written and read again as an equal table.
func FuzzParse(f *testing.F) {
	for _, large := range []bool{false, true} {
		sector := 512
		if large {
			sector = 4096
		}
		b := image(f, small(int64(sector)))
		f.Add(b[sector:][:92], b[2*sector:][:3*128], large)
		f.Add([]byte{}, b[2*sector:][128:3*128], large)
		f.Add(b[sector:][:16], []byte{}, large)
	}
	f.Fuzz(func(t *testing.T, header, entries []byte, large bool) {
		sector := 512
		if large {
			sector = 4096
		}
		b := image(t, small(int64(sector)))
		clear(b[len(b)-sector:]) // no backup to fall back on
		copy(b[sector:], header[:min(len(header), sector)])
		copy(b[2*sector:], entries[:min(len(entries), 16384)])
		fixCRCs(b, sector)
		table, err := gpt.Parse(bytes.NewReader(b), int64(len(b)), int64(sector))
		if err != nil {
			return
		}
		again, err := gpt.Parse(onDisk(t, table), table.DiskSize, table.SectorSize)
		if err != nil || !reflect.DeepEqual(again, table) {
			t.Fatalf("accepted %+v\nagain %+v, %v", table, again, err)
		}
	})
}
