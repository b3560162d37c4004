package initrd

import (
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Block is a block device of sysfs.
type Block struct {
	Name   string // vda1
	Number string // "254:1"
	Disk   string // of a partition: vda; "" of a disk
	Part   int    // of a partition: its number
	Size   int64  // bytes
	Sector int64  // of a disk: logical, in bytes
}

// Devices looks for disks. Sys and Dev are /sys and /dev but in tests.
type Devices struct{ Sys, Dev string }

// notRoots are disks that no root is looked for on: they are made by the
// system, or slow to open.
var notRoots = []string{"loop", "ram", "zram", "dm-", "fd", "sr", "nbd"}

// List returns the disks and partitions, by name, disks before their partitions.
func (d Devices) List() (out []Block) {
	dir := d.Sys + "/class/block"
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	names, _ := f.Readdirnames(4096)
	f.Close()
	slices.Sort(names)
	for _, name := range names {
		if slices.ContainsFunc(notRoots, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			continue
		}
		b := Block{Name: name, Number: attribute(dir + "/" + name + "/dev")}
		sectors, _ := strconv.ParseInt(attribute(dir+"/"+name+"/size"), 10, 64)
		if b.Size = sectors * 512; sectors <= 0 || sectors > 1<<53 || b.Number == "" {
			continue // an empty drive
		}
		if part := attribute(dir + "/" + name + "/partition"); part != "" {
			b.Part, _ = strconv.Atoi(part)
			to, err := os.Readlink(dir + "/" + name) // …/block/vda/vda1
			if err != nil {
				continue
			}
			path := strings.Split(to, "/")
			if len(path) < 2 {
				continue
			}
			b.Disk = path[len(path)-2]
		} else if b.Sector, err = strconv.ParseInt(attribute(dir+"/"+name+"/queue/logical_block_size"), 10, 64); err != nil {
			b.Sector = 512
		}
		out = append(out, b)
	}
	return out
}

// attribute reads a file of sysfs; "" where it cannot.
func attribute(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, _ := f.Read(b)
	return strings.TrimSpace(string(b[:n]))
}

// bySpec are folders of udev's links, and what they mean.
var bySpec = map[string]string{"by-partuuid": "PARTUUID", "by-uuid": "UUID", "by-label": "LABEL", "by-partlabel": "PARTLABEL"}

// Find returns the devices that a spec means, and an error for a spec that means none
// whatever devices there are.
func (d Devices) Find(spec string) ([]Block, error) {
	key, value, ok := strings.Cut(spec, "=")
	if name, isDev := strings.CutPrefix(spec, "/dev/"); isDev {
		folder, rest, link := strings.Cut(strings.TrimPrefix(name, "disk/"), "/")
		if key = bySpec[folder]; strings.HasPrefix(name, "disk/") && link && key != "" {
			value, ok = rest, true
		} else {
			key, value, ok = "", strings.ReplaceAll(name, "/", "!"), true
		}
	}
	value = strings.Trim(value, `"`)
	if !ok || value == "" {
		return nil, errSpec(spec)
	}
	list := d.List()
	switch key {
	case "":
		return filter(list, func(b Block) bool { return b.Name == value }), nil
	case "PARTUUID", "PARTLABEL":
		tables := map[string][]Entry{}
		return filter(list, func(b Block) bool {
			if b.Disk == "" {
				tables[b.Name] = d.table(b)
				return false
			}
			return slices.ContainsFunc(tables[b.Disk], func(e Entry) bool {
				return e.Number == b.Part && (key == "PARTUUID" && strings.EqualFold(e.UUID, value) || key == "PARTLABEL" && e.Name == value)
			})
		}), nil
	case "UUID", "LABEL":
		return filter(list, func(b Block) bool {
			fs := d.probe(b)
			return fs.Type != "" && (key == "UUID" && strings.EqualFold(fs.UUID, value) || key == "LABEL" && fs.Label == value)
		}), nil
	}
	return nil, errSpec(spec)
}

type errSpec string

func (e errSpec) Error() string {
	return string(e) + ": want PARTUUID=, UUID=, LABEL=, PARTLABEL= or /dev/…"
}

func filter(list []Block, want func(Block) bool) (out []Block) {
	for _, b := range list {
		if want(b) {
			out = append(out, b)
		}
	}
	return out
}

// open calls do with a device's contents, if there are any.
func (d Devices) open(b Block, do func(io.ReaderAt)) {
	f, err := os.Open(d.Dev + "/" + b.Name)
	if err != nil {
		return // its node is about to come
	}
	defer f.Close()
	do(f)
}

func (d Devices) table(b Block) (out []Entry) {
	d.open(b, func(r io.ReaderAt) { out = ReadTable(r, b.Sector, b.Size) })
	return out
}

func (d Devices) probe(b Block) (out Filesystem) {
	d.open(b, func(r io.ReaderAt) { out = Probe(r) })
	return out
}

// Show names the devices that there are, for a person who wonders.
func (d Devices) Show() string {
	var out []string
	for _, b := range d.List() {
		s := b.Name
		if b.Disk != "" {
			for _, disk := range d.List() {
				if disk.Name == b.Disk {
					for _, e := range d.table(disk) {
						if e.Number == b.Part {
							s += " PARTUUID=" + e.UUID
						}
					}
				}
			}
		}
		if fs := d.probe(b); fs.Type != "" {
			s += " " + fs.Type
		}
		if out = append(out, s); len(out) == 32 {
			break
		}
	}
	if out == nil {
		return "no disks"
	}
	return strings.Join(out, ", ")
}
