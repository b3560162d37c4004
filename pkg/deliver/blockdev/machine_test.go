//go:build linux

package blockdev

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// machine builds the sys, proc and dev of a machine out of a file in
// testdata/machines, which leaves out what follows from the rest:
//
//	disk DEVPATH NUMBER SIZE    a device below /sys/devices, of SIZE sectors of 512, with all its links
//	part NAME NUMBER N START SIZE
//	set ATTR VALUE              an attribute of the last disk; \0 is a zero byte
//	up ATTR VALUE               an attribute that lies N directories above: "up ../../idVendor 0781"
//	vpd SERIAL                  page 0x80 of a SCSI disk
//	ata MODEL|SERIAL|FIRMWARE   page 0x89 of a SATA disk
//	hold HOLDER NAME…           HOLDER is in the holders of each, each in its slaves
//	mount LINE                  a line of mountinfo; "mount@PID LINE": of another namespace
//	swap PATH
//	booted PARTUUID             what the machine started from
//	file PATH TEXT              any other
//	link PATH TARGET
func machine(t testing.TB, name string) System {
	t.Helper()
	text, err := os.ReadFile("testdata/machines/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	return recording(t, string(text))
}

type recorder struct {
	t    testing.TB
	root string
	disk string // the directory of the last disk
}

func recording(t testing.TB, text string) System {
	t.Helper()
	r := &recorder{t: t, root: t.TempDir()}
	if root, err := os.MkdirTemp("/dev/shm", "machine"); err == nil { // faster
		t.Cleanup(func() { os.RemoveAll(root) })
		r.root = root
	}
	r.write("/proc/self/mountinfo", "22 27 0:21 / /proc rw,relatime - proc proc rw\n")
	r.link("/proc/self/ns/mnt", "mnt:[1]")
	r.write("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")
	for _, dir := range []string{"/sys/block", "/sys/dev/block", "/sys/class/block", "/dev"} {
		r.must(os.MkdirAll(r.root+dir, 0o700))
	}
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			r.line(line)
		}
	}
	return System{Root: r.root}
}

func (r *recorder) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *recorder) write(path, content string) {
	r.t.Helper()
	path = filepath.Join(r.root, path)
	r.must(os.MkdirAll(filepath.Dir(path), 0o700))
	if strings.HasPrefix(path, r.root+"/proc/") {
		before, _ := os.ReadFile(path)
		content = string(before) + content
	}
	r.must(os.WriteFile(path, []byte(content), 0o600))
}

func (r *recorder) link(path, target string) {
	r.t.Helper()
	path = filepath.Join(r.root, path)
	r.must(os.MkdirAll(filepath.Dir(path), 0o700))
	r.must(os.Symlink(target, path))
}

func (r *recorder) line(line string) {
	r.t.Helper()
	word, rest, _ := strings.Cut(line, " ")
	f := strings.Fields(rest)
	key, value, _ := strings.Cut(rest, " ")
	value = strings.ReplaceAll(strings.TrimSpace(value), `\0`, "\x00")
	switch word, pid, _ := strings.Cut(word, "@"); word {
	case "disk":
		r.device(f[0], f[1], f[2], false)
	case "part":
		dir := r.disk
		r.device(filepath.Join(dir, f[0]), f[1], f[4], true)
		r.write("/sys/devices/"+r.disk+"/partition", f[2]+"\n")
		r.write("/sys/devices/"+r.disk+"/start", f[3]+"\n")
		r.disk = dir
	case "set":
		r.set(key, value+"\n")
	case "up":
		r.write("/sys/devices/"+r.disk+"/"+key, value+"\n")
	case "vpd":
		r.set("device/vpd_pg80", fmt.Sprintf("\x00\x80\x00%c%s", len(rest), rest))
	case "ata":
		r.set("device/vpd_pg89", ataPage(strings.Split(rest, "|")))
	case "hold":
		for _, name := range f[1:] {
			r.write("/sys/class/block/"+name+"/holders/"+f[0], "")
			r.write("/sys/class/block/"+f[0]+"/slaves/"+name, "")
		}
	case "mount":
		if pid == "" {
			pid = "self"
		} else {
			r.link("/proc/"+pid+"/ns/mnt", "mnt:["+pid+"]")
		}
		r.write("/proc/"+pid+"/mountinfo", rest+"\n")
	case "swap":
		r.write("/proc/swaps", rest+" partition\t8388604\t0\t-2\n")
	case "booted": // the firmware's variable, from which PARTUUID
		text := "\x06\x00\x00\x00"
		for _, c := range rest + "\x00" {
			text += string([]byte{byte(c), 0})
		}
		r.write("/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", text)
	case "file":
		r.write(key, value+"\n")
	case "link":
		r.link(key, value)
	default:
		r.t.Fatalf("no such line: %s", line)
	}
}

// set writes an attribute of the last disk; its device is the one above.
func (r *recorder) set(attr, value string) {
	if rest, ok := strings.CutPrefix(attr, "device/"); ok {
		dir := filepath.Dir(r.disk)
		if filepath.Base(dir) == "block" {
			dir = filepath.Dir(dir)
		}
		r.write("/sys/devices/"+dir+"/"+rest, value)
		return
	}
	r.write("/sys/devices/"+r.disk+"/"+attr, value)
}

func (r *recorder) device(dir, number, size string, part bool) {
	r.disk = dir
	name := filepath.Base(dir)
	r.write("/sys/devices/"+dir+"/dev", number+"\n")
	r.write("/sys/devices/"+dir+"/size", size+"\n")
	r.write("/sys/devices/"+dir+"/ro", "0\n")
	r.link("/sys/class/block/"+name, "../../devices/"+dir)
	r.link("/sys/dev/block/"+number, "../../devices/"+dir)
	r.write("/dev/"+strings.ReplaceAll(name, "!", "/"), "")
	if part {
		return
	}
	r.link("/sys/block/"+name, "../devices/"+dir)
	r.write("/sys/devices/"+dir+"/removable", "0\n")
	r.must(os.MkdirAll(r.root+"/sys/devices/"+dir+"/queue", 0o700))
	above := filepath.Dir(dir)
	switch {
	case filepath.Base(above) == "block" && strings.HasPrefix(dir, "virtual/"):
	case filepath.Base(above) == "block":
		r.link("/sys/devices/"+dir+"/device", "../..")
	default:
		r.link("/sys/devices/"+dir+"/device", "..")
	}
}

func ataPage(f []string) string {
	page := make([]byte, 60+512)
	page[1] = 0x89
	binary.BigEndian.PutUint16(page[2:], 56+512)
	put := func(word, words int, text string) {
		b := []byte(fmt.Sprintf("%-*s", 2*words, text))
		for i := 0; i < 2*words; i += 2 {
			page[60+2*word+i], page[60+2*word+i+1] = b[i+1], b[i]
		}
	}
	put(27, 20, f[0])
	put(10, 10, f[1])
	put(23, 4, f[2])
	return string(page)
}
