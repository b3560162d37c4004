//go:build linux

package hw

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

const (
	maxNICs = 64  // that are told of
	maxWord = 256 // bytes of a value of SMBIOS
)

// Identity is what the machine is known by. Nothing of it is normalised but the
// UUID's and the MACs' case: docs/netboot.md, section 6.
func Identity() wire.Identity { return System{}.Identity() }

// Identity is as the function of that name.
func (s System) Identity() wire.Identity {
	id := wire.Identity{UUID: strings.ToLower(s.dmi("product_uuid")), Serial: s.dmi("product_serial")}
	if id.Serial == "" {
		id.Serial = s.word("/sys/firmware/devicetree/base/serial-number")
	}
	if mac := s.BootMAC(); mac != "" {
		id.MACs = append(id.MACs, mac)
	}
	for _, n := range s.nics() {
		if !slices.Contains(id.MACs, n.MAC) {
			id.MACs = append(id.MACs, n.MAC)
		}
	}
	return id
}

// BootMAC is the address that the loader said it booted from: BOOTIF=01-aa-bb-cc-dd-ee-ff
// (PXELINUX's form, with ARP's hardware type first) or with colons; "" without.
func (s System) BootMAC() string {
	v, _ := s.Cmdline().Get("BOOTIF")
	v = strings.ReplaceAll(v, "-", ":")
	if len(v) == len("01:")+17 {
		v = v[3:]
	}
	mac, err := net.ParseMAC(v)
	if err != nil || len(mac) != 6 {
		return ""
	}
	return mac.String()
}

// dmi is a string of SMBIOS, as the kernel decoded it.
func (s System) dmi(name string) string { return s.word("/sys/class/dmi/id/" + name) }

func (s System) word(path string) string {
	v := printable(s.text(path))
	for len(v) > maxWord {
		v = strings.ToValidUTF8(v[:maxWord], "")
	}
	return v
}

// nics are the interfaces with hardware behind them, by name.
func (s System) nics() (out []wire.NIC) {
	entries, _ := os.ReadDir(s.at("/sys/class/net"))
	for _, e := range entries {
		dir := "/sys/class/net/" + e.Name()
		if !s.exists(dir+"/device") || len(out) == maxNICs {
			continue
		}
		mac := s.text(dir + "/bonding_slave/perm_hwaddr") // a bond gave it another one
		if mac == "" {
			mac = s.text(dir + "/address")
		}
		hw, err := net.ParseMAC(mac)
		if err != nil || len(hw) != 6 { // not Ethernet
			continue
		}
		n := wire.NIC{Name: e.Name(), MAC: hw.String(), Link: s.text(dir+"/carrier") == "1"}
		if to, err := os.Readlink(s.at(dir + "/device/driver")); err == nil {
			n.Driver = filepath.Base(to)
		}
		if v := s.number(dir + "/speed"); v > 0 && v < 10_000_000 {
			n.Speed = int(v) // -1: no link
		}
		out = append(out, n)
	}
	return out
}
