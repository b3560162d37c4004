package boot

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// candidate is a kernel of a tree with all files that are it and its initramfs,
// resolved, those in /boot first.
type candidate struct {
	version string // of its modules, as far as is known
	name    string // what it is called in /boot: the version, or linux, virt
	images  []string
	initrds []string
	modules bool // are there
}

// rescue reports whether it is one of those that dracut makes for a machine
// (/usr/lib/kernel/install.d/51-dracut-rescue.install).
func (c *candidate) rescue() bool { return strings.HasPrefix(c.name, "0-rescue-") }

// Where initramfs generators put what belongs to a kernel called %s: the one of
// Debian, dracut on Fedora and mkinitcpio, dracut on openSUSE, mkinitfs.
var bootInitrds = []string{"/boot/initrd.img-%s", "/boot/initramfs-%s.img", "/boot/initrd-%s", "/boot/initramfs-%s"}

// Where it is beside the modules of a version: dracut's default without /boot, and
// of bootc and ostree.
var moduleInitrds = []string{"initrd", "initramfs.img"}

// images are the names of a kernel: of most, and of openSUSE's on arm64.
var imageNames = []string{"vmlinuz", "Image"}

// kernels returns all kernels of a tree by version and name.
func kernels(t *tree.Tree) []*candidate {
	s := &search{t: t, byName: map[string]*candidate{}, modules: moduleDirs(t)}
	for _, name := range t.Children("/boot") {
		for _, image := range imageNames {
			if called, ok := strings.CutPrefix(name, image+"-"); ok && called != "" {
				s.add(called, "/boot/"+name)
			}
		}
	}
	s.entries()
	for _, v := range slices.Sorted(maps.Keys(s.modules)) {
		for _, image := range imageNames {
			s.add(s.calledBy(v), s.modules[v]+"/"+image)
		}
	}
	out := slices.Collect(maps.Values(s.byName))
	for _, c := range out {
		s.initrds(c)
	}
	slices.SortFunc(out, func(a, b *candidate) int {
		return cmp.Or(strings.Compare(a.version, b.version), strings.Compare(a.name, b.name))
	})
	return out
}

// search gathers kernels by what they are called.
type search struct {
	t       *tree.Tree
	byName  map[string]*candidate
	modules map[string]string // directory of a version's modules
}

// moduleDirs returns the directories of kernel modules by version; /lib need not
// be /usr/lib.
func moduleDirs(t *tree.Tree) map[string]string {
	out := map[string]string{}
	for _, dir := range []string{"/lib/modules", "/usr/lib/modules"} {
		dir, err := t.Resolve(dir)
		if err != nil {
			continue
		}
		for _, v := range t.Children(dir) {
			if p, err := t.Resolve(path.Join(dir, v)); err == nil && t.Get(p) != nil && t.Get(p).Kind == tree.Dir {
				out[v] = p
			}
		}
	}
	return out
}

// maxPkgbase bounds the file in which Arch says what a kernel is called.
const maxPkgbase = 4 << 10

// calledBy returns what the kernel of a version is called in /boot.
func (s *search) calledBy(version string) string {
	if b, err := s.t.ReadFile(s.modules[version]+"/pkgbase", maxPkgbase); err == nil {
		if name := strings.TrimSpace(string(b)); name != "" && !strings.Contains(name, "/") {
			return name
		}
	}
	return version
}

// versionOf returns the version of the modules of a kernel called name: that
// itself; on Arch the one whose pkgbase it is; on Alpine one that ends in -name.
func (s *search) versionOf(name string) (version string, modules bool) {
	if _, ok := s.modules[name]; ok {
		return name, true
	}
	for _, v := range slices.Sorted(maps.Keys(s.modules)) {
		b, err := s.t.ReadFile(s.modules[v]+"/pkgbase", maxPkgbase)
		if err == nil && strings.TrimSpace(string(b)) == name || err != nil && strings.HasSuffix(v, "-"+name) {
			return v, true
		}
	}
	return name, false
}

// add notes that a file is the kernel called name, if it is a file.
func (s *search) add(name, file string) *candidate {
	p := regular(s.t, file)
	if p == "" {
		return nil
	}
	c := s.byName[name]
	if c == nil {
		c = &candidate{name: name}
		c.version, c.modules = s.versionOf(name)
		s.byName[name] = c
	}
	if !slices.Contains(c.images, p) {
		c.images = append(c.images, p)
	}
	return c
}

func (c *candidate) addInitrd(p string) {
	if p != "" && !slices.Contains(c.initrds, p) {
		c.initrds = append(c.initrds, p)
	}
}

// initrds looks for what generators made for a kernel. Our own has Debian's name with
// the version, and comes before all others.
func (s *search) initrds(c *candidate) {
	others := c.initrds
	c.initrds = nil
	c.addInitrd(regular(s.t, fmt.Sprintf(bootInitrds[0], c.version)))
	for _, p := range others {
		c.addInitrd(p)
	}
	for _, pattern := range bootInitrds {
		c.addInitrd(regular(s.t, fmt.Sprintf(pattern, c.name)))
	}
	if dir, ok := s.modules[c.version]; ok {
		for _, name := range moduleInitrds {
			c.addInitrd(regular(s.t, dir+"/"+name))
		}
	}
	// For other machines (mkinitcpio), and for crashes (kdump): neither starts.
	for _, pattern := range []string{"/boot/initramfs-%s-fallback.img", "/boot/initramfs-%skdump.img", "/boot/initrd-%s-kdump"} {
		if p := regular(s.t, fmt.Sprintf(pattern, c.name)); p != "" && len(c.initrds) > 0 {
			c.addInitrd(p)
		}
	}
}
