//go:build linux

package machine

import (
	"bytes"
	"errors"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// smbios is what the firmware's tables tell of the machine: DSP0134, the System
// Management BIOS Reference Specification, of which the sections are cited.
type smbios struct {
	UUID, Serial, Vendor, Model       string
	BIOSVendor, BIOSVersion, BIOSDate string
	haveSystem, haveBIOS              bool
}

// maxTables bounds what is read of the tables, in bytes: the kernel shows them
// whole, and those of large servers have some 30 KiB.
const maxTables = 1 << 20

// entryVersion reads the version of the entry point (5.2.1, 5.2.2), as the kernel
// shows it in /sys/firmware/dmi/tables/smbios_entry_point.
func entryVersion(b []byte) (major, minor byte, err error) {
	sum := func(n byte) byte {
		total := byte(0)
		for _, v := range b[:min(int(n), len(b))] {
			total += v
		}
		return total
	}
	switch {
	case len(b) >= 24 && string(b[:5]) == "_SM3_":
		if n := b[6]; n < 24 || int(n) > len(b) || sum(n) != 0 {
			return 0, 0, errors.New("SMBIOS entry point: its checksum is wrong")
		}
		return b[7], b[8], nil
	case len(b) >= 30 && string(b[:4]) == "_SM_":
		if n := b[5]; n < 30 || int(n) > len(b) || sum(n) != 0 { // 2.1 said 30 and meant 31
			return 0, 0, errors.New("SMBIOS entry point: its checksum is wrong")
		}
		return b[6], b[7], nil
	}
	return 0, 0, errors.New("no SMBIOS entry point")
}

// parseSMBIOS reads the first system and BIOS structures (7.1, 7.2) of the
// tables. What is cut short is left out.
func parseSMBIOS(entry, tables []byte) (s smbios, err error) {
	major, minor, err := entryVersion(entry)
	if err != nil {
		return s, err
	}
	for b := tables; len(b) >= 4; {
		kind, size := b[0], int(b[1])
		if size < 4 || size > len(b) {
			break
		}
		fields, rest := b[:size], b[size:]
		end := bytes.Index(rest, []byte{0, 0}) // 6.1.3: the strings, and a zero more
		if end < 0 {
			break
		}
		text := rest[:end]
		switch {
		case kind == 127: // 7.45: the end
			return s, nil
		case kind == 1 && !s.haveSystem:
			s.haveSystem = true
			s.Vendor, s.Model, s.Serial = field(fields, text, 4), field(fields, text, 5), field(fields, text, 7)
			if size >= 24 {
				s.UUID = uuidOf([16]byte(fields[8:24]), major > 2 || major == 2 && minor >= 6)
			}
		case kind == 0 && !s.haveBIOS:
			s.haveBIOS = true
			s.BIOSVendor, s.BIOSVersion, s.BIOSDate = field(fields, text, 4), field(fields, text, 5), field(fields, text, 8)
		}
		b = rest[end+2:]
	}
	return s, nil
}

// field is the string that the byte at an offset numbers, from 1.
func field(fields, text []byte, at int) string {
	if at >= len(fields) || fields[at] == 0 {
		return ""
	}
	parts := strings.Split(string(text), "\x00")
	if n := int(fields[at]); n <= len(parts) {
		return clean(parts[n-1])
	}
	return ""
}

// uuidOf writes a UUID. Since 2.6 its first three fields are little-endian (7.2.1);
// before, most firmware had them as RFC 4122 has, and Linux takes them so. All
// zeros and all ones say that there is none.
func uuidOf(b [16]byte, little bool) string {
	if b == [16]byte{} || bytes.Count(b[:], []byte{0xff}) == 16 {
		return ""
	}
	g := diskimage.GUID(b)
	if little {
		g = g.Mixed()
	}
	return g.String()
}
