package boot

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/diskimage/version"
)

// Kernel is where a tree has what a UKI needs. Paths are resolved: no symlink
// is in them.
type Kernel struct {
	Version   string // as `uname -r` prints it: 6.1.0-56-cloud-amd64
	Image     string // /boot/vmlinuz-6.1.0-56-cloud-amd64
	Initrd    string // /boot/initrd.img-6.1.0-56-cloud-amd64
	Stub      string // /usr/lib/systemd/boot/efi/linuxx64.efi.stub
	OSRelease string // /usr/lib/os-release

	paths []string
}

// MissingError says that a tree lacks a thing that booting needs.
type MissingError struct {
	What     string   // "a kernel: …"
	Packages []string // of the tree's distribution, each of which has it; none where that is not known
}

func (e *MissingError) Error() string {
	if len(e.Packages) == 0 {
		return fmt.Sprintf("the image has no %s", e.What)
	}
	return fmt.Sprintf("the image has no %s; add the package %s", e.What, strings.Join(e.Packages, " or "))
}

// stubs are systemd's EFI stubs by the architectures of recipes.
var stubs = map[string]string{"amd64": "linuxx64.efi.stub", "arm64": "linuxaa64.efi.stub"}

const stubDir = "/usr/lib/systemd/boot/efi/"

// Find looks for the newest kernel of a tree and what belongs to it, as the
// families of distributions have them (docs/bases.md). All that is missing is
// reported at once, joined, each as a *MissingError.
func Find(t *tree.Tree, arch string) (Kernel, error) { return find(t, arch, true, true) }

// FindBIOS is Find for a firmware that starts no EFI program: Stub stays empty.
func FindBIOS(t *tree.Tree, arch string) (Kernel, error) { return find(t, arch, true, false) }

// FindKernel is Find for a tree in which just a kernel and a stub were unpacked:
// Initrd stays empty, and OSRelease, where there is none.
func FindKernel(t *tree.Tree, arch string) (Kernel, error) { return find(t, arch, false, true) }

// FindImage is Find for a tree of which just the kernel is asked for.
func FindImage(t *tree.Tree, arch string) (Kernel, error) { return find(t, arch, false, false) }

func find(t *tree.Tree, arch string, system, efi bool) (Kernel, error) {
	stub, ok := stubs[arch]
	if !ok {
		return Kernel{}, fmt.Errorf("boot: architecture %q: want amd64 or arm64", arch)
	}
	from := familyOf(t)
	var errs []error
	missing := func(what string, packages []string) {
		errs = append(errs, &MissingError{What: what, Packages: packages})
	}
	var k Kernel
	found := kernels(t)
	for _, c := range found {
		k.paths = append(append(k.paths, c.images...), c.initrds...)
	}
	best := newest(found)
	if best == nil {
		missing("kernel (/boot/vmlinuz-* or /usr/lib/modules/*/vmlinuz)", from.kernels(arch))
	} else {
		k.Version, k.Image = best.version, best.images[0]
		if len(best.initrds) > 0 {
			k.Initrd = best.initrds[0]
		} else if system {
			missing(fmt.Sprintf("initramfs for its kernel (%s)", fmt.Sprintf(from.initrdName, best.name)), from.initramfs)
		}
	}
	if k.Stub = regular(t, stubDir+stub); !efi {
		k.Stub = ""
	} else if k.Stub == "" {
		missing("EFI stub ("+stubDir+stub+")", from.stub)
	}
	if k.OSRelease = regular(t, "/etc/os-release"); k.OSRelease == "" {
		if k.OSRelease = regular(t, "/usr/lib/os-release"); k.OSRelease == "" && system {
			missing("/etc/os-release", from.release)
		}
	}
	if len(errs) > 0 {
		return Kernel{}, fmt.Errorf("boot: %w", errors.Join(errs...))
	}
	k.paths = append(k.paths, links(t, k.paths)...)
	slices.Sort(k.paths)
	k.paths = slices.Compact(k.paths)
	return k, nil
}

// newest returns the kernel that starts: the highest version of those that have
// modules, else of all; never a rescue kernel.
func newest(found []*candidate) (best *candidate) {
	for _, c := range found {
		switch {
		case c.rescue():
		case best == nil, c.modules && !best.modules,
			c.modules == best.modules && version.ComparePart(c.version, best.version) > 0:
			best = c
		}
	}
	return best
}

// Kernels returns the versions of a tree's kernels, in no order that means anything.
func Kernels(t *tree.Tree) (versions []string) {
	for _, c := range kernels(t) {
		if !c.rescue() {
			versions = append(versions, c.version)
		}
	}
	return versions
}

// Paths returns what a UKI of this kernel makes superfluous, sorted: all
// kernels and initramfs images of the tree (just one is booted), and the
// symlinks to them in / and /boot.
func (k Kernel) Paths() []string { return slices.Clone(k.paths) }

// Bounds of what is read into memory, in bytes.
const (
	maxStub      = 16 << 20
	maxOSRelease = 64 << 10
)

// UKI reads the parts from the tree; a command line says which root to mount.
func (k Kernel) UKI(t *tree.Tree, cmdline string) (UKI, error) {
	stub, err := t.ReadFile(k.Stub, maxStub)
	if err != nil {
		return UKI{}, fmt.Errorf("boot: %w", err)
	}
	release, err := t.ReadFile(k.OSRelease, maxOSRelease)
	if err != nil {
		return UKI{}, fmt.Errorf("boot: %w", err)
	}
	u := UKI{Stub: stub, OSRelease: string(release), Cmdline: cmdline, Uname: k.Version}
	for p, d := range map[string]*diskimage.Disk{k.Image: &u.Kernel, k.Initrd: &u.Initrd} {
		n := t.Get(p)
		if n == nil || n.Data == nil {
			return UKI{}, fmt.Errorf("boot: %s: gone or empty", p)
		}
		*d = n.Data
	}
	return u, nil
}

// regular returns where a path leads if that is a regular file with contents.
func regular(t *tree.Tree, p string) string {
	p, err := t.Resolve(p)
	if err != nil {
		return ""
	}
	if n := t.Get(p); n == nil || n.Kind != tree.Regular || n.Size() == 0 {
		return ""
	}
	return p
}

// links returns the symlinks in / and /boot that lead to one of some paths, or
// that have the names which distributions give to links to the newest.
func links(t *tree.Tree, to []string) (out []string) {
	known := []string{"vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old", "initrd", "Image"}
	for _, dir := range []string{"/", "/boot"} {
		for _, name := range t.Children(dir) {
			p := path.Join(dir, name)
			if n := t.Get(p); n.Kind != tree.Symlink {
				continue
			}
			target, err := t.Resolve(p)
			if slices.Contains(known, name) || err == nil && slices.Contains(to, target) {
				out = append(out, p)
			}
		}
	}
	return out
}
