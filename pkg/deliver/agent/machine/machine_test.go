//go:build linux

package machine

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// structure is one of SMBIOS's: its type, what follows its header, its strings.
func structure(kind byte, fields []byte, text ...string) []byte {
	b := append([]byte{kind, byte(4 + len(fields)), kind, 0}, fields...)
	for _, s := range text {
		b = append(append(b, s...), 0)
	}
	if len(text) == 0 {
		b = append(b, 0)
	}
	return append(b, 0)
}

// tables are a machine's as firmware lays them down: a BIOS, something to be
// passed over, the system, one that does not count, the end.
func tables(uuid [16]byte) (b []byte) {
	b = append(b, structure(0, []byte{1, 2, 0, 0xe8, 3, 0xff}, "Acme BIOS", "1.2\x07", "11/01/2026")...)
	b = append(b, structure(9, []byte{0, 0, 1})...)
	b = append(b, structure(1, append(append([]byte{1, 2, 0, 3}, uuid[:]...), 6), "Acme", "Server 9000", " SN-42 ")...)
	b = append(b, structure(1, append(append([]byte{1, 1, 1, 1}, make([]byte, 16)...), 6), "another")...)
	return append(b, structure(127, nil)...)
}

// entry is the entry point: of 64 bits where major is 3, with its checksum.
func entry(major, minor byte, size int) []byte {
	var b []byte
	at := 5
	if major >= 3 {
		b = append([]byte("_SM3_"), 0, 24, major, minor, 0, 1, 0, byte(size), byte(size>>8), 0, 0, 32, 0, 0, 0, 0, 0, 0, 0)
	} else {
		b = append([]byte("_SM_"), 0, 31, major, minor, 0xff, 0, 0, 0, 0, 0, 0, 0, '_', 'D', 'M', 'I', '_', 0, byte(size), byte(size>>8), 32, 0, 0, 0, 5, 0, 0x28)
		b[21] = negative(b[16:31])
		at = 4
	}
	b[at] = negative(b)
	return b
}

// negative is what makes the sum of all zero.
func negative(b []byte) (sum byte) {
	for _, v := range b {
		sum -= v
	}
	return sum
}

var sample = [16]byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}

const (
	sinceTwoSix  = "00112233-4455-6677-8899-aabbccddeeff"
	beforeTwoSix = "33221100-5544-7766-8899-aabbccddeeff"
)

// TestSMBIOS holds what is read of tables, and the byte order of their version.
func TestSMBIOS(t *testing.T) {
	want := smbios{Serial: "SN-42", Vendor: "Acme", Model: "Server 9000", BIOSVendor: "Acme BIOS", BIOSVersion: "1.2?", BIOSDate: "11/01/2026",
		haveSystem: true, haveBIOS: true}
	for _, v := range []struct {
		major, minor byte
		uuid         string
	}{{2, 4, beforeTwoSix}, {2, 5, beforeTwoSix}, {2, 6, sinceTwoSix}, {2, 8, sinceTwoSix}, {3, 0, sinceTwoSix}, {3, 7, sinceTwoSix}} {
		want.UUID = v.uuid
		b := tables(sample)
		if got, err := parseSMBIOS(entry(v.major, v.minor, len(b)), b); err != nil || got != want {
			t.Errorf("%d.%d: got  %+v, %v\nwant %+v", v.major, v.minor, got, err, want)
		}
	}
	for name, uuid := range map[string][16]byte{"zeros": {}, "ones": [16]byte([]byte(strings.Repeat("\xff", 16)))} {
		if got, err := parseSMBIOS(entry(3, 0, 0), tables(uuid)); err != nil || got.UUID != "" || got.Serial != "SN-42" {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	wrong := entry(3, 0, 0)
	wrong[8] ^= 1
	for name, e := range map[string][]byte{"a wrong checksum": wrong, "none": nil, "another": []byte(strings.Repeat("x", 64)), "cut": entry(2, 8, 0)[:20]} {
		if got, err := parseSMBIOS(e, tables(sample)); err == nil || got != (smbios{}) {
			t.Errorf("an entry point that is %s: got %+v", name, got)
		}
	}
}

// TestSMBIOSCut holds that tables which end anywhere give a part of the whole.
func TestSMBIOSCut(t *testing.T) {
	b := tables(sample)
	all, err := parseSMBIOS(entry(3, 0, len(b)), b)
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		got, err := parseSMBIOS(entry(3, 0, len(b)), b[:n])
		if err != nil || got.UUID != "" && got.UUID != all.UUID || got.Serial != "" && got.Serial != all.Serial {
			t.Fatalf("%d bytes of %d: %+v, %v", n, len(b), got, err)
		}
	}
}

func FuzzSMBIOS(f *testing.F) {
	for _, major := range []byte{2, 3} {
		b := tables(sample)
		f.Add(entry(major, 6, len(b)), b)
	}
	f.Add(entry(3, 0, 4), []byte{1, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, e, b []byte) {
		got, err := parseSMBIOS(e, b)
		if err != nil && got != (smbios{}) {
			t.Errorf("%v, and %+v", err, got)
		}
		if got.UUID != "" && len(got.UUID) != 36 {
			t.Errorf("UUID %q", got.UUID)
		}
		for _, s := range []string{got.Serial, got.Vendor, got.Model, got.BIOSVendor, got.BIOSVersion, got.BIOSDate} {
			if len(s) > maxText || s != clean(s) {
				t.Errorf("%q", s)
			}
		}
	})
}

// TestSMBIOSJudges holds that dmidecode reads the same from the tables of these
// tests, where it is there.
func TestSMBIOSJudges(t *testing.T) {
	dmidecode, err := exec.LookPath("dmidecode")
	if err != nil {
		t.Skip(err)
	}
	for _, v := range [][2]byte{{2, 4}, {2, 8}, {3, 0}} {
		b := tables(sample)
		e := entry(v[0], v[1], len(b))
		want, err := parseSMBIOS(e, b)
		if err != nil {
			t.Fatal(err)
		}
		dump := filepath.Join(t.TempDir(), "dump")
		if err := os.WriteFile(dump, append(append(e, make([]byte, 32-len(e))...), b...), 0o600); err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{"system-uuid": want.UUID, "system-serial-number": want.Serial, "system-product-name": want.Model, "bios-vendor": want.BIOSVendor} {
			out, err := exec.Command(dmidecode, "--from-dump", dump, "-s", key).Output()
			if got := strings.TrimSpace(string(out)); err != nil || !strings.HasPrefix(strings.ToLower(got), strings.ToLower(want)) {
				t.Errorf("%d.%d: %s: got %q, %v, want %q", v[0], v[1], key, got, err, want)
			}
		}
	}
}

// machineOf writes what the kernel shows into a directory.
func machineOf(t *testing.T, files map[string]string) System {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return System{Root: root}
}

// TestIdentity holds that what the kernel shows leads, and the tables fill in.
func TestIdentity(t *testing.T) {
	b := tables(sample)
	files := map[string]string{
		"sys/firmware/dmi/tables/DMI": string(b), "sys/firmware/dmi/tables/smbios_entry_point": string(entry(3, 0, len(b))),
		"sys/class/net/eth0/type": "1\n", "sys/class/net/eth0/device/x": "", "sys/class/net/eth0/address": "52:54:00:AA:00:01\n", "sys/class/net/eth0/carrier": "1\n",
		"sys/class/net/eth1/type": "1\n", "sys/class/net/eth1/device/x": "", "sys/class/net/eth1/address": "52:54:00:aa:00:02\n",
		"sys/class/net/br0/type": "1\n", "sys/class/net/br0/address": "52:54:00:aa:00:03\n",
		"proc/meminfo": "MemTotal:         393216 kB\nMemAvailable:   200000 kB\n", "proc/cpuinfo": "processor\t: 0\nmodel name\t: Acme \x01 9\n",
	}
	want := wire.Identity{UUID: sinceTwoSix, Serial: "SN-42", MACs: []string{"52:54:00:aa:00:02", "52:54:00:aa:00:01"}}
	s := machineOf(t, files)
	if got := s.Identity("52:54:00:AA:00:02"); !reflect.DeepEqual(got, want) || s.UUID() != sinceTwoSix {
		t.Errorf("by the tables:\ngot  %+v\nwant %+v", got, want)
	}
	inv := s.Inventory()
	if inv.Vendor != "Acme" || inv.Model != "Server 9000" || inv.FirmwareInfo != "Acme BIOS 1.2? 11/01/2026" || inv.Firmware != "bios" ||
		inv.Memory != 384<<20 || inv.CPU != "Acme ? 9" || len(inv.NICs) != 2 || !inv.NICs[0].Link || inv.NICs[1].Link {
		t.Errorf("got %+v", inv)
	}
	files["sys/class/dmi/id/product_uuid"], files["sys/class/dmi/id/product_serial"] = "5A5A0000-0000-4000-8000-000000000001\n", "KERNEL\n"
	files["sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"] = "\x06\x00\x00\x00\x01"
	s = machineOf(t, files)
	want.UUID, want.Serial = "5a5a0000-0000-4000-8000-000000000001", "KERNEL"
	if got := s.Identity("52:54:00:aa:00:02"); !reflect.DeepEqual(got, want) {
		t.Errorf("by the kernel:\ngot  %+v\nwant %+v", got, want)
	}
	if inv := s.Inventory(); inv.Vendor != "Acme" || inv.Firmware != "uefi" || !inv.SecureBoot {
		t.Errorf("got %+v", inv)
	}
	if got := machineOf(t, nil).Identity(""); !reflect.DeepEqual(got, wire.Identity{}) {
		t.Errorf("a machine that tells nothing: got %+v", got)
	}
}
