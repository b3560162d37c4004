package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const started = "STARTED "

// startedBy are the words of what firmware started from a disk, "" for nothing.
func startedBy(said string) string {
	_, after, _ := strings.Cut(said, started)
	word, _, _ := strings.Cut(after, "\n")
	return word
}

// states are disks, each made from one that starts, and what firmware is to
// make of them. Cautious are those that the model takes for bootable all the same.
var states = []struct {
	name       string
	breaks     func(t *testing.T, d []byte) []byte
	uefi, bios bool
	cautious   bool
}{
	{name: "complete", uefi: true, bios: true},
	{name: "without LBA 0", breaks: zero(0, 512)},
	{name: "without the first MiB", breaks: zero(0, mib)},
	{name: "with LBA 0 and backup GPT", breaks: zero(512, mib), uefi: true, bios: true},
	{name: "with LBA 0 and primary GPT", breaks: zero(-33*512, 0), uefi: true, bios: true},
	{name: "LBA 0 without 55 AA", breaks: zero(510, 512), uefi: true},
	{name: "LBA 0 and GPTs without 55 AA", breaks: all(zero(510, 512), zero(512, mib), zero(-33*512, 0))},
	{name: "LBA 0 torn, first half", breaks: zero(256, 512)},
	{name: "LBA 0 torn, second half", breaks: zero(0, 256), uefi: true},
	{name: "without code", breaks: zero(0, 440), uefi: true},
	{name: "protective MBR alone", breaks: all(zero(0, 440), zero(512, mib), zero(-33*512, 0))},
	{name: "code and protective MBR alone", breaks: all(zero(512, mib), zero(-33*512, 0)), bios: true},
	{name: "without partition records", breaks: zero(446, 510), bios: true},
	{name: "without code and records", breaks: zero(0, 510)},
	{name: "a wrong header, no backup", breaks: all(zero(0, 440), flip(512+56), zero(-33*512, 0))},
	{name: "wrong entries, no backup", breaks: all(zero(0, 440), flip(1024+56), zero(-33*512, 0))},
	{name: "wrong headers, both", breaks: all(zero(0, 440), flip(512+56), flip(-512+56))},
	{name: "wrong entries, and a backup", breaks: all(zero(0, 440), flip(1024+56)), uefi: true},
	{name: "half an ESP", breaks: all(zero(0, 440), halfESP), cautious: true},
	{name: "no ESP", breaks: all(zero(0, 440), zero(mib, 5*mib)), cautious: true},
	{name: "an MBR's ESP", breaks: all(zero(512, mib), zero(-33*512, 0), record(0xef)), uefi: true, bios: true},
	{name: "an MBR's ESP without 55 AA", breaks: all(zero(510, mib), zero(-33*512, 0), record(0xef))},
	{name: "a FAT on the whole disk", breaks: wholeFAT, uefi: true, bios: true},
	{name: "a FAT on the whole disk, without 55 AA", breaks: all(wholeFAT, zero(510, 512)), uefi: true},
	{name: "a FAT on the whole disk, without LBA 0", breaks: all(wholeFAT, zero(0, 512))},
	{name: "an ISO 9660's boot catalogue", breaks: elTorito, uefi: true},
}

func zero(from, to int) func(*testing.T, []byte) []byte {
	return func(_ *testing.T, d []byte) []byte {
		a, b := from, to
		if a < 0 {
			a, b = len(d)+a, len(d)+b
		}
		clear(d[a:b])
		return d
	}
}

func flip(at int) func(*testing.T, []byte) []byte {
	return func(_ *testing.T, d []byte) []byte {
		d[(at+len(d))%len(d)] ^= 1
		return d
	}
}

// record makes the first record of the MBR one of the ESP.
func record(kind byte) func(*testing.T, []byte) []byte {
	return func(_ *testing.T, d []byte) []byte {
		copy(d[446:], []byte{0, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 32, 0, 0})
		return d
	}
}

// halfESP keeps the directories of the ESP, and loses the program.
func halfESP(t *testing.T, d []byte) []byte {
	at := bytes.Index(d[mib:], []byte("MZ"))
	if at < 0 {
		t.Fatal("no program in the ESP")
	}
	clear(d[mib+at : 5*mib])
	return d
}

// elTorito has no partition table, and a CD's way to the ESP: what is left of an
// installer's stick when its LBA 0 is gone.
func elTorito(_ *testing.T, d []byte) []byte {
	clear(d[:mib])
	clear(d[len(d)-33*512:])
	catalogue(d)
	return d
}

// catalogue makes the ESP what UEFI starts of a CD (El Torito 1.0, figures 2, 3
// and 7).
func catalogue(d []byte) {
	const block = 2048
	le := binary.LittleEndian
	for i, kind := range []byte{1, 0, 255} { // primary, boot record, end
		b := d[(16+i)*block:]
		b[0], b[6] = kind, 1
		copy(b[1:], "CD001")
	}
	le.PutUint32(d[16*block+80:], uint32(len(d)/block))
	copy(d[17*block+7:], "EL TORITO SPECIFICATION")
	le.PutUint32(d[17*block+71:], 20) // the catalogue
	validation, entry := d[20*block:], d[20*block+32:]
	validation[0], validation[1] = 1, 0xef               // for UEFI
	le.PutUint16(validation[28:], 0x20000-0xef01-0xaa55) // the words add up to 0
	validation[30], validation[31] = 0x55, 0xaa
	entry[0] = 0x88 // bootable
	le.PutUint16(entry[6:], 4*mib/512)
	le.PutUint32(entry[8:], mib/block)
}

// wholeFAT is a FAT without a partition table; its boot sector has code, too.
func wholeFAT(t *testing.T, d []byte) []byte {
	text := startedBy(string(d[:440]))
	fs := volume(t, int64(len(d)), started+text, goBack)
	copy(fs, []byte{0xeb, 0x3c}) // jump over the parameters
	copy(fs[0x3e:], relocated(bootCode(started+text), 0x3e))
	return fs
}

// relocated is boot code that starts further on in LBA 0.
func relocated(code []byte, by byte) []byte {
	code[5] += by
	return code
}

func all(steps ...func(*testing.T, []byte) []byte) func(*testing.T, []byte) []byte {
	return func(t *testing.T, d []byte) []byte {
		for _, s := range steps {
			d = s(t, d)
		}
		return d
	}
}

// TestFirmwareStates asks OVMF and SeaBIOS which disks start, and compares with
// what the power-cut tests take for bootable.
func TestFirmwareStates(t *testing.T) {
	host := firmwareHost(t)
	var disks [][]byte
	for i, s := range states {
		d, _ := bootDisk(t, 6*mib, "states", fmt.Sprintf("%sstate %02d", started, i), goBack)
		if s.breaks != nil {
			d = s.breaks(t, d)
		}
		disks = append(disks, d)
	}
	said, after := ovmf(t, host, disks...)
	for i, s := range states {
		want := fmt.Sprintf("state %02d", i)
		uefi, bios := startedBy(said[i]), startedBy(seabios(t, host, disks[i]))
		model := delivertest.Boots(disks[i], 512)
		t.Logf("%-40s OVMF %-8s SeaBIOS %-8s model %v%s", s.name, uefi, bios, model, changes(disks[i], after[i]))
		if uefi != "" && uefi != want || bios != "" && bios != want {
			t.Errorf("%s: started %q and %q, which is another disk", s.name, uefi, bios)
		}
		if (uefi != "") != s.uefi || (bios != "") != s.bios {
			t.Errorf("%s: OVMF starts %q, SeaBIOS %q; want %v, %v\n%s", s.name, uefi, bios, s.uefi, s.bios, said[i])
		}
		if boots := uefi != "" || bios != ""; model != (boots || s.cautious) {
			t.Errorf("%s: the model says %v; OVMF starts %q, SeaBIOS %q", s.name, model, uefi, bios)
		}
		if !anyOf(disks[i][:512]) && !bytes.Equal(disks[i], after[i]) {
			t.Errorf("%s: firmware wrote to a disk without LBA 0", s.name)
		}
	}
}

func anyOf(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) > 0 }

// changes says what firmware wrote.
func changes(before, after []byte) (s string) {
	for _, e := range []struct {
		what     string
		from, to int
	}{{"LBA 0", 0, 512}, {"the primary GPT", 512, mib}, {"the body", mib, len(before) - 33*512}, {"the backup GPT", len(before) - 33*512, len(before)}} {
		if !bytes.Equal(before[e.from:e.to], after[e.from:e.to]) {
			s += "; OVMF wrote " + e.what
		}
	}
	return s
}

// TestFirmwarePowerCuts asks OVMF and SeaBIOS what starts of the states that a
// power cut leaves while one bootable disk becomes another: the old one before
// anything changed, the new one when all is there, nothing between. An
// installer's stick has a second way to its ESP, which leads there until that is
// cleared, as long as everything but LBA 0 is what it was; and so has an image
// that is one, when everything but LBA 0 is there.
func TestFirmwarePowerCuts(t *testing.T) {
	host := firmwareHost(t)
	for _, c := range []struct {
		name            string
		stick, becoming bool
	}{{"a disk", false, false}, {"a stick", true, false}, {"a disk becomes a stick", false, true}, {"a stick becomes another", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			before, _ := bootDisk(t, 7*mib, "old", started+"the old disk", goBack)
			if c.stick {
				catalogue(before)
			}
			image, table := bootDisk(t, 6*mib, "new", started+"the image", goBack)
			if c.becoming {
				catalogue(image)
			}
			testPowerCuts(t, host, before, image, table)
		})
	}
}

func testPowerCuts(t *testing.T, host qemu.Host, before, image []byte, table *diskimage.Table) {
	size := int64(len(before))
	source, err := delivertest.NewImage(image, 512, 64<<10, 2*mib)
	if err != nil {
		t.Fatal(err)
	}
	info := deliver.TargetInfo{Size: size, SectorSize: 512}
	fitted, overlays, err := deliver.Fit(table, info, deliver.FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	disk := delivertest.NewDisk(before, 512)
	plan := planFor(t, source, fitted, info, overlays, disk)
	if _, err := deliver.Apply(t.Context(), plan, source, disk, deliver.Options{Window: mib}); err != nil {
		t.Fatal(err)
	}
	want := disk.Content()

	type state struct {
		name string
		disk []byte
	}
	var found []state
	seen := map[[32]byte]bool{}
	inv := delivertest.Invariant{Before: before, Want: want, Severe: true, Last: []diskimage.Extent{{Len: mib}, {Off: size - 64<<10, Len: 64 << 10}}}
	if other := int64(binary.LittleEndian.Uint64(before[512+32:])) * 512; other > 0 && other < size { // the old backup GPT, which may not be at the end
		inv.Last = append(inv.Last, diskimage.Extent{Off: other, Len: 512})
	}
	total, err := disk.Survives(inv, delivertest.Cuts{Visit: func(what string, content func() []byte) {
		d := content()
		if key := kind(d, before, want); !seen[key] {
			seen[key] = true
			found = append(found, state{what, d})
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d states, %d of different kinds", total, len(found))
	var olds, news, byCatalogue int
	const room = 24 // disks that a machine has slots for
	for group := range slices.Chunk(found, room) {
		var disks [][]byte
		for _, s := range group {
			disks = append(disks, s.disk)
		}
		said, after := ovmf(t, host, disks...)
		for i, s := range group {
			expect := ""
			switch {
			case bytes.Equal(s.disk, before):
				expect = "the old disk"
				olds++
			case bytes.Equal(s.disk, want):
				expect = "the image"
				news++
			}
			uefi, bios := startedBy(said[i]), startedBy(seabios(t, host, s.disk))
			what := parts(s.disk, before, want)
			t.Logf("%-60s %s: OVMF %q, SeaBIOS %q%s", s.name, what, uefi, bios, changes(s.disk, after[i]))
			if uefi != expect && (uefi == "the old disk" && allBut0(s.disk, before) || uefi == "the image" && allBut0(s.disk, want)) {
				byCatalogue++
			} else if uefi != expect {
				t.Errorf("%s (%s): OVMF starts %q, want %q", s.name, what, uefi, expect)
			}
			if bios != expect {
				t.Errorf("%s (%s): SeaBIOS starts %q, want %q", s.name, what, bios, expect)
			}
			if (uefi != "" || bios != "") && !delivertest.Boots(s.disk, 512) {
				t.Errorf("%s (%s): the model says that it does not boot", s.name, what)
			}
			if expect == "" && !bytes.Equal(s.disk, after[i]) {
				t.Errorf("%s (%s): firmware wrote to it", s.name, what)
			}
		}
	}
	t.Logf("what starts is started by its boot catalogue in %d of them", byCatalogue)
	if olds != 1 || news != 1 {
		t.Errorf("%d states were the old disk, %d the image; want one each", olds, news)
	}
}

// allBut0 reports whether a disk is another but for LBA 0, which is zeros, and,
// maybe, for the descriptors of a CD, which are about to be.
func allBut0(d, other []byte) bool {
	return !anyOf(d[:512]) && bytes.Equal(d[512:32<<10], other[512:32<<10]) && bytes.Equal(d[64<<10:], other[64<<10:])
}

func planFor(t *testing.T, source deliver.Source, table *diskimage.Table, info deliver.TargetInfo, overlays []diskimage.Overlay, disk deliver.Target) *deliver.Plan {
	t.Helper()
	w, err := deliver.NewWant(source.Index(), table, info, overlays)
	if err == nil {
		err = w.Resolve(t.Context(), source, deliver.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	have, err := deliver.Look(t.Context(), w, disk, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := deliver.NewPlan(w, have)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// places are what firmware looks at, in this order.
func places(d []byte) [][]byte {
	end := len(d) - 33*512
	return [][]byte{d[:512], d[512:1024], d[1024 : 34*512], d[34*512 : mib], d[mib:end], d[end : len(d)-512], d[len(d)-512:]}
}

// parts says which disk each place is of: the old, the new, zeros or a mixture.
func parts(d, before, want []byte) string {
	var out []string
	names := []string{"LBA 0", "header", "entries", "gap", "body", "backup entries", "backup header"}
	old, now := places(before), places(want)
	for i, b := range places(d) {
		what := "mixed"
		switch {
		case bytes.Equal(b, now[i]) && bytes.Equal(b, old[i]):
			continue
		case bytes.Equal(b, now[i]):
			what = "new"
		case bytes.Equal(b, old[i]):
			what = "old"
		case !anyOf(b):
			what = "zero"
		}
		out = append(out, names[i]+" "+what)
	}
	return strings.Join(out, ", ")
}

// kind is the same for states that firmware should see no difference in.
func kind(d, before, want []byte) [32]byte {
	if bytes.Equal(d, before) || bytes.Equal(d, want) {
		return sha256.Sum256(d)
	}
	return sha256.Sum256([]byte(parts(d, before, want)))
}
