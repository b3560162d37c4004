//go:build linux

// Package machine tells what this machine is: its identity by SMBIOS and network
// cards, and its inventory. What firmware says is not believed, only passed on,
// bounded: junk is the server's to know.
//
//	s := machine.System{}
//	id, inventory := s.Identity(""), s.Inventory(ctx)
package machine

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// System is where the kernel tells of the machine: below Root lie sys and proc.
// The zero value is the machine that this runs on.
type System struct{ Root string }

const maxText = 256

func (s System) read(path string) string { return string(s.bytes(path, 64<<10)) }

// bytes reads a file up to a bound. What cannot be read is not there.
func (s System) bytes(path string, most int64) []byte {
	f, err := os.Open(filepath.Join("/", s.Root, path))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil
	}
	return b
}

// firmware is what firmware says of the machine: the kernel's files of it, and
// where one is not there, the firmware's tables, which the kernel passes on.
func (s System) firmware() (out smbios) {
	const id, tables = "sys/class/dmi/id/", "sys/firmware/dmi/tables/"
	files := map[string]*string{"product_uuid": &out.UUID, "product_serial": &out.Serial, "sys_vendor": &out.Vendor, "product_name": &out.Model,
		"bios_vendor": &out.BIOSVendor, "bios_version": &out.BIOSVersion, "bios_date": &out.BIOSDate}
	whole := true
	for name, to := range files {
		*to = s.text(id + name)
		whole = whole && *to != ""
	}
	out.UUID = strings.ToLower(out.UUID)
	if whole {
		return out
	}
	raw, err := parseSMBIOS(s.bytes(tables+"smbios_entry_point", 64), s.bytes(tables+"DMI", maxTables))
	if err != nil {
		return out
	}
	for to, from := range map[*string]string{&out.UUID: raw.UUID, &out.Serial: raw.Serial, &out.Vendor: raw.Vendor, &out.Model: raw.Model,
		&out.BIOSVendor: raw.BIOSVendor, &out.BIOSVersion: raw.BIOSVersion, &out.BIOSDate: raw.BIOSDate} {
		*to = cmp.Or(*to, from)
	}
	return out
}

// UUID is the machine's by SMBIOS, as 8-4-4-4-12 in lower case; "" if it has none.
func (s System) UUID() string { return s.firmware().UUID }

// text is one line that may be shown.
func (s System) text(path string) string {
	line, _, _ := strings.Cut(s.read(path), "\n")
	return clean(line)
}

func clean(t string) string {
	out := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.TrimSpace(t))
	return out[:min(len(out), maxText)]
}

// Identity is what the machine is known by. booted is the MAC that it started
// from, where the boot loader told it; it leads.
func (s System) Identity(booted string) wire.Identity {
	f := s.firmware()
	id := wire.Identity{UUID: f.UUID, Serial: f.Serial}
	for _, n := range s.NICs() {
		if !slices.Contains(id.MACs, n.MAC) {
			id.MACs = append(id.MACs, n.MAC)
		}
	}
	if i := slices.Index(id.MACs, strings.ToLower(booted)); i > 0 {
		id.MACs = slices.Insert(slices.Delete(id.MACs, i, i+1), 0, strings.ToLower(booted))
	}
	id.MACs = id.MACs[:min(len(id.MACs), 64)]
	return id
}

// UEFI reports whether the kernel was started by UEFI firmware.
func (s System) UEFI() bool {
	_, err := os.Stat(filepath.Join("/", s.Root, "sys/firmware/efi"))
	return err == nil
}

// NICs returns the network cards: Ethernet that is hardware.
func (s System) NICs() (out []wire.NIC) {
	dir := filepath.Join("/", s.Root, "sys/class/net")
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		at := "sys/class/net/" + e.Name()
		if _, err := os.Stat(filepath.Join("/", s.Root, at, "device")); err != nil || s.text(at+"/type") != "1" { // ARPHRD_ETHER
			continue
		}
		mac, err := net.ParseMAC(s.text(at + "/address"))
		if err != nil || len(mac) != 6 || bytes.Equal(mac, make([]byte, 6)) {
			continue
		}
		n := wire.NIC{Name: e.Name(), MAC: mac.String(), Link: s.text(at+"/carrier") == "1"}
		if driver, err := os.Readlink(filepath.Join("/", s.Root, at, "device/driver")); err == nil {
			n.Driver = filepath.Base(driver)
		}
		if v, err := strconv.Atoi(s.text(at + "/speed")); err == nil && v > 0 {
			n.Speed = v
		}
		out = append(out, n)
	}
	return out[:min(len(out), 256)]
}

// Inventory describes the machine without its disks.
func (s System) Inventory() wire.Inventory {
	f := s.firmware()
	inv := wire.Inventory{
		Vendor: f.Vendor, Model: f.Model, Architecture: runtime.GOARCH,
		Firmware: "bios", FirmwareInfo: clean(strings.Join([]string{f.BIOSVendor, f.BIOSVersion, f.BIOSDate}, " ")),
		Cores: runtime.NumCPU(), Memory: s.Memory("MemTotal"), NICs: s.NICs(),
	}
	if s.UEFI() {
		inv.Firmware = "uefi"
	}
	const secureBoot = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	if v := s.read(secureBoot); len(v) == 5 { // four bytes of attributes
		inv.SecureBoot = v[4] == 1
	}
	for line := range strings.Lines(s.read("proc/cpuinfo")) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			inv.CPU = clean(v)
			break
		}
	}
	return inv
}

// Memory is a line of /proc/meminfo, in bytes; 0 if it is not there.
func (s System) Memory(key string) int64 { return s.kilobytes("proc/meminfo", key) }

// Peak is how much memory this program had at most, in bytes.
func (s System) Peak() int64 { return s.kilobytes("proc/self/status", "VmHWM") }

func (s System) kilobytes(path, key string) int64 {
	for line := range strings.Lines(s.read(path)) {
		var kib int64
		if name, rest, ok := strings.Cut(line, ":"); ok && name == key {
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err == nil && kib > 0 && kib < 1<<50 {
				return kib << 10
			}
		}
	}
	return 0
}
