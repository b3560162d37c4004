package boot

import (
	"path"
	"strings"
)

const (
	maxEntry   = 64 << 10 // bytes
	maxEntries = 256
)

// bootDirs are where a boot partition may be mounted (kernel-install(8)).
var bootDirs = []string{"/boot", "/efi", "/boot/efi"}

// entries finds the kernels that Boot Loader Specification type 1 entries name, and
// those that kernel-install put where such entries lead: TOKEN/VERSION/linux.
func (s *search) entries() {
	left := maxEntries
	for _, dir := range bootDirs {
		for _, name := range s.t.Children(dir + "/loader/entries") {
			if !strings.HasSuffix(name, ".conf") || left == 0 {
				continue
			}
			left--
			b, err := s.t.ReadFile(dir+"/loader/entries/"+name, maxEntry)
			if err != nil {
				continue
			}
			s.entry(dir, parseEntry(string(b)))
		}
		for _, token := range s.t.Children(dir) {
			for _, v := range s.t.Children(path.Join(dir, token)) {
				if _, ok := s.modules[v]; !ok {
					continue
				}
				at := path.Join(dir, token, v)
				if c := s.add(v, at+"/linux"); c != nil {
					c.addInitrd(regular(s.t, at+"/initrd"))
				}
			}
		}
	}
}

// entry adds what an entry names. Its paths begin at the boot partition, which a
// container image has as /boot, and may have as the root.
func (s *search) entry(dir string, e map[string]string) {
	linux, v := e["linux"], e["version"]
	if linux == "" {
		return
	}
	if v == "" {
		v = strings.TrimPrefix(path.Base(linux), "vmlinuz-")
	}
	for _, at := range []string{dir, "/"} {
		c := s.add(v, path.Join(at, linux))
		if c == nil {
			continue
		}
		if initrd := e["initrd"]; initrd != "" {
			c.addInitrd(regular(s.t, path.Join(at, initrd)))
		}
		return
	}
}

// parseEntry returns the keys of an entry; of several initrds the last, which is
// the initramfs: what comes before it is microcode.
func parseEntry(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")), " ")
		if ok && !strings.HasPrefix(key, "#") {
			out[key] = strings.TrimSpace(value)
		}
	}
	return out
}
