package signature_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// scrap is a disk of 0xA5 in memory.
type scrap []byte

func newScrap(size int64) scrap { return bytes.Repeat([]byte{0xA5}, int(size)) }

func (s scrap) WriteAt(p []byte, off int64) (int, error) { return copy(s[off:], p), nil }

func plant(t testing.TB, w io.WriterAt, name string, e diskimage.Extent) {
	t.Helper()
	if err := delivertest.Plant(w, name, e); err != nil {
		t.Fatal(err)
	}
}

func probe(t testing.TB, b []byte, sector int64, also ...signature.Region) *signature.Found {
	t.Helper()
	f, err := signature.Probe(bytes.NewReader(b), int64(len(b)), sector, also...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// places lists name@offset.
func places(f *signature.Found) (out []string) {
	for _, s := range f.Signatures {
		out = append(out, s.Name+"@"+size(s.Off))
	}
	return out
}

func size(n int64) string {
	switch {
	case n%mib == 0:
		return itoa(n/mib) + "M"
	case n%kib == 0:
		return itoa(n/kib) + "K"
	}
	return itoa(n)
}

func itoa(n int64) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

func equal(t *testing.T, what string, got []string, want string) {
	t.Helper()
	if g := strings.Join(got, " "); g != want {
		t.Errorf("%s: got %s, want %s", what, g, want)
	}
}

// TestFindsEveryKind plants each kind on a disk and in a region of one whose
// size is odd, and expects it at each of its places and nothing else.
func TestFindsEveryKind(t *testing.T) {
	want := map[string]string{
		"md0.90": "md@95M+960K", "md1.0": "md@95M+1016K", "md1.1": "md@0M", "md1.2": "md@4K", "lvm": "lvm@512", "luks1": "luks@0M",
		"luks2": "luks@0M luks@16K", "zfs": "zfs@16K zfs@272K zfs@95M+528K zfs@95M+784K", "btrfs": "btrfs@64K+64 btrfs@64M+64", "ext4": "ext4@1K+56",
		"swap": "swap@4086", "ceph": "ceph@0M", "vmfs": "vmfs@1M vmfs@2M", "bcache": "bcache@4K+24", "drbd": "drbd@95M+1020K+60",
		"imsm": "imsm@95M+1023K", "ddf": "ddf@95M+1023K+512", "bitlocker": "bitlocker@3", "iso9660": "iso9660@32K+1", "squashfs": "squashfs@0M",
	}
	for _, name := range delivertest.Plants() {
		disk := newScrap(96 * mib)
		plant(t, disk, name, diskimage.Extent{Len: 96 * mib})
		f := probe(t, disk, 512)
		var exp []string
		for _, w := range strings.Fields(want[name]) {
			kind, at, _ := strings.Cut(w, "@")
			exp = append(exp, kind+"@"+size(parse(at)))
		}
		equal(t, name, places(f), strings.Join(exp, " "))

		odd := diskimage.Extent{Off: 3*mib + 512, Len: 70*mib + 5*512}
		disk = newScrap(96 * mib)
		plant(t, disk, name, odd)
		f = probe(t, disk, 512, signature.Region{Extent: odd, Name: "root"})
		if len(f.Signatures) != len(exp) {
			t.Errorf("%s in a region: %v, want %d of them", name, places(f), len(exp))
		}
		for _, s := range f.Signatures {
			if !odd.Contains(s.Extent) || s.Place != "root" || s.Protected() != slices.Contains(signature.ProtectedNames(), s.Name) {
				t.Errorf("%s in a region: %+v", name, s)
			}
		}
		// Without the bytes of its signatures it is not found any more.
		for _, s := range f.Signatures {
			clear(disk[s.Off:s.End()])
		}
		equal(t, name+" erased", places(probe(t, disk, 512, signature.Region{Extent: odd, Name: "root"})), "")
	}
}

func parse(s string) (n int64) {
	for term := range strings.SplitSeq(s, "+") {
		unit := int64(1)
		switch term[len(term)-1] {
		case 'M':
			unit = mib
		case 'K':
			unit = kib
		}
		v := int64(0)
		for _, c := range strings.TrimRight(term, "MK") {
			v = v*10 + int64(c-'0')
		}
		n += v * unit
	}
	return n
}

// TestPartitionsThatWere finds what lies in the partitions of a table of which
// only the backup is left, of one whose checksum is wrong, and of an MBR.
func TestPartitionsThatWere(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("old"), DiskSize: 64 * mib, SectorSize: sector, Partitions: []diskimage.Partition{
			{Name: "a", Type: diskimage.TypeLinuxData, GUID: diskimage.DeriveGUID("a"), Extent: diskimage.Extent{Off: mib, Len: 20 * mib}},
			{Name: "b", Type: diskimage.TypeLinuxData, GUID: diskimage.DeriveGUID("b"), Extent: diskimage.Extent{Off: 30 * mib, Len: 9 * mib}},
		}}
		primary, backup, err := gpt.Encode(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"whole", "backup", "primary", "odd checksum", "other sectors", "no headers", "no primary, no header"} {
			disk := newScrap(64 * mib)
			if what != "backup" {
				copy(disk, primary)
			}
			if what != "primary" {
				copy(disk[len(disk)-len(backup):], backup)
			}
			if strings.HasPrefix(what, "no ") {
				clear(disk[:2*sector])
				clear(disk[len(disk)-int(sector):])
			}
			if what == "no primary, no header" {
				clear(disk[:mib])
			}
			asked := sector
			switch what {
			case "odd checksum":
				disk[sector+17]++
			case "other sectors":
				asked = 4096 + 512 - sector
			}
			plant(t, disk, "md1.0", table.Partitions[0].Extent)
			plant(t, disk, "md0.90", table.Partitions[1].Extent)
			f := probe(t, disk, asked)
			var got []string
			for _, s := range f.Signatures {
				if s.Name == "md" {
					got = append(got, s.Place+"@"+size(s.Off))
				}
			}
			equal(t, what, got, "partition 1@"+size(21*mib-8*kib)+" partition 2@"+size(39*mib-64*kib))
			if strings.HasPrefix(what, "no ") {
				continue // the disk's own GUID was in the header
			}
			if f.Tables[len(f.Tables)-1].ID != table.DiskGUID.String() || f.Tables[len(f.Tables)-1].Partitions[1].GUID != table.Partitions[1].GUID.String() {
				t.Errorf("%s: %+v", what, f.Tables)
			}
		}
	}
}

func TestLogicalPartitions(t *testing.T) {
	disk := newScrap(32 * mib)
	record := func(at int64, records ...[3]uint32) { // kind, first, count
		clear(disk[at+446 : at+510])
		disk[at+510], disk[at+511] = 0x55, 0xaa
		for i, r := range records {
			b := disk[at+446+int64(i)*16:]
			b[4] = byte(r[0])
			for k := range 4 {
				b[8+k], b[12+k] = byte(r[1]>>(8*k)), byte(r[2]>>(8*k))
			}
		}
	}
	record(0, [3]uint32{0x83, 2048, 8192}, [3]uint32{0x0f, 20480, 40960})
	record(10*mib, [3]uint32{0x83, 2048, 8192}, [3]uint32{0x05, 10240, 10240})
	record(15*mib, [3]uint32{0x83, 2048, 4096}, [3]uint32{0x05, 0, 0})
	plant(t, disk, "md1.0", diskimage.Extent{Off: mib, Len: 4 * mib})
	plant(t, disk, "ext4", diskimage.Extent{Off: 11 * mib, Len: 4 * mib})
	plant(t, disk, "lvm", diskimage.Extent{Off: 16 * mib, Len: 2 * mib})
	f := probe(t, disk, 512)
	var got []string
	for _, s := range f.Signatures {
		got = append(got, s.Name+" "+s.Place)
	}
	equal(t, "logical", got, "mbr  md partition 1 ext4 partition 5 lvm partition 6")
	// A chain that goes in circles ends.
	record(15*mib, [3]uint32{0x83, 2048, 4096}, [3]uint32{0x05, 0, 10240}, [3]uint32{0x05, 10240, 1})
	record(10*mib, [3]uint32{0x83, 2048, 8192}, [3]uint32{0x05, 10240, 10240})
	probe(t, disk, 512)
}

// TestReadsLittle counts what is read of a large disk with a full table.
func TestReadsLittle(t *testing.T) {
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("old"), DiskSize: 4 << 40, SectorSize: 512}
	for i := range int64(128) {
		table.Partitions = append(table.Partitions, diskimage.Partition{Name: "p", Type: diskimage.TypeLinuxData, GUID: diskimage.DeriveGUID("p", itoa(i)),
			Extent: diskimage.Extent{Off: mib + i<<30, Len: 1 << 30}})
	}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	r := &counter{size: table.DiskSize, head: primary, tail: backup}
	f, err := signature.Probe(r, r.size, 512)
	if err != nil || len(f.Tables) != 2 {
		t.Fatalf("%v, %v", f, err)
	}
	if bound := int64(129) * 3 * mib / 2; r.n > bound {
		t.Errorf("%d bytes read, want at most %d", r.n, bound)
	}
}

// counter is a large disk of zeros with a table.
type counter struct {
	size, n    int64
	head, tail []byte
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	c.n += int64(len(p))
	if off < int64(len(c.head)) {
		copy(p, c.head[off:])
	}
	for i := range p {
		if at := off + int64(i) - (c.size - int64(len(c.tail))); at >= 0 && at < int64(len(c.tail)) {
			p[i] = c.tail[at]
		}
	}
	return len(p), nil
}

// TestUnreadable looks around what cannot be read.
func TestUnreadable(t *testing.T) {
	disk := newScrap(8 * mib)
	plant(t, disk, "md1.2", diskimage.Extent{Len: 8 * mib})
	plant(t, disk, "md1.0", diskimage.Extent{Len: 8 * mib})
	f, err := signature.Probe(bad{disk, 8 * kib}, 8*mib, 512)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "beside a bad sector", places(f), "md@4K md@"+size(8*mib-8*kib))
	if _, err := signature.Probe(bad{disk, 0}, 8*mib, 512); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("no first sector: %v", err)
	}
}

type bad struct {
	b   []byte
	bad int64
}

func (d bad) ReadAt(p []byte, off int64) (int, error) {
	if off <= d.bad && off+int64(len(p)) > d.bad {
		return 0, os.ErrInvalid
	}
	return copy(p, d.b[off:]), nil
}

// FuzzProbe changes bytes of a disk with everything on it.
func FuzzProbe(f *testing.F) {
	for i := range delivertest.Plants() {
		f.Add(uint64(i), uint16(i*3), []byte{0xff, 0, 1})
	}
	f.Fuzz(func(t *testing.T, seed uint64, at uint16, change []byte) {
		rng := rand.New(rand.NewPCG(seed, 1))
		n := int64(1+rng.IntN(6000)) * 512
		disk := newScrap(n)
		whole := diskimage.Extent{Len: n}
		names := delivertest.Plants()
		for range 3 {
			plant(t, disk, names[rng.IntN(len(names))], whole)
		}
		places := []int64{0, 512, 1024, 4096, 16 << 10, 32 << 10, 64 << 10, n - 512, n - 4096}
		for i, c := range change {
			off := places[(int(seed)%len(places)+len(places))%len(places)] + int64(at)%4096 + int64(i)
			if off >= 0 && off < n {
				disk[off] = c
			}
		}
		found, err := signature.Probe(bytes.NewReader(disk), n, 512, signature.Region{Extent: diskimage.Extent{Off: n / 3, Len: n}, Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range found.Signatures {
			if err := s.Validate(n); err != nil || s.Len == 0 {
				t.Fatalf("%+v: %v", s, err)
			}
		}
		for _, e := range found.BootBytes(n, 512) {
			if err := e.Validate(n); err != nil || e.Off%512 != 0 || e.Len%512 != 0 {
				t.Fatalf("boot bytes %v: %v", e, err)
			}
		}
	})
}
