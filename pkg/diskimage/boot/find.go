package boot

import (
	"errors"
	"fmt"
	"maps"
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
	Packages []string // Debian packages, each of which has it
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("the image has no %s; add the package %s", e.What, strings.Join(e.Packages, " or "))
}

// arches is what differs between the architectures of recipes.
var arches = map[string]struct{ stub, kernel string }{
	"amd64": {"linuxx64.efi.stub", "linux-image-amd64"},
	"arm64": {"linuxaa64.efi.stub", "linux-image-arm64"},
}

// Where initramfs generators put what belongs to a kernel: initramfs-tools,
// then dracut's names on Debian and elsewhere.
var initrdNames = []string{"/boot/initrd.img-%s", "/boot/initramfs-%s.img", "/usr/lib/modules/%s/initrd"}

const stubDir = "/usr/lib/systemd/boot/efi/"

// Find looks for the newest kernel of a tree and what belongs to it. All that
// is missing is reported at once, joined, each as a *MissingError.
func Find(t *tree.Tree, arch string) (Kernel, error) { return find(t, arch, true, true) }

// FindBIOS is Find for a firmware that starts no EFI program: Stub stays empty.
func FindBIOS(t *tree.Tree, arch string) (Kernel, error) { return find(t, arch, true, false) }

// FindKernel is Find for a tree in which just a kernel and a stub were unpacked:
// Initrd stays empty, and OSRelease, where there is none.
func FindKernel(t *tree.Tree, arch string) (Kernel, error) { return find(t, arch, false, true) }

func find(t *tree.Tree, arch string, system, stub bool) (Kernel, error) {
	a, ok := arches[arch]
	if !ok {
		return Kernel{}, fmt.Errorf("boot: architecture %q: want amd64 or arm64", arch)
	}
	var errs []error
	missing := func(what string, packages ...string) {
		errs = append(errs, &MissingError{What: what, Packages: packages})
	}
	var k Kernel
	images := kernels(t)
	for _, release := range slices.Sorted(maps.Keys(images)) {
		image := images[release]
		if k.Version == "" || version.ComparePart(release, k.Version) > 0 {
			k.Version, k.Image = release, image
		}
		k.paths = append(k.paths, image)
		if initrd := findInitrd(t, release); initrd != "" {
			k.paths = append(k.paths, initrd)
		}
	}
	if k.Version == "" {
		missing("kernel (/boot/vmlinuz-* or /usr/lib/modules/*/vmlinuz)", a.kernel, strings.Replace(a.kernel, "image-", "image-cloud-", 1))
	} else if k.Initrd = findInitrd(t, k.Version); k.Initrd == "" && system {
		missing(fmt.Sprintf("initramfs for its kernel (%s)", fmt.Sprintf(initrdNames[0], k.Version)), "initramfs-tools", "dracut")
	}
	if !stub {
	} else if k.Stub = regular(t, stubDir+a.stub); k.Stub == "" {
		missing("EFI stub ("+stubDir+a.stub+")", "systemd-boot-efi")
	}
	if k.OSRelease = regular(t, "/etc/os-release"); k.OSRelease == "" {
		if k.OSRelease = regular(t, "/usr/lib/os-release"); k.OSRelease == "" && system {
			missing("/etc/os-release", "base-files")
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

// kernels returns the paths of kernels by version.
func kernels(t *tree.Tree) map[string]string {
	out := map[string]string{}
	for _, name := range t.Children("/usr/lib/modules") {
		if p := regular(t, "/usr/lib/modules/"+name+"/vmlinuz"); p != "" {
			out[name] = p
		}
	}
	for _, name := range t.Children("/boot") {
		version, ok := strings.CutPrefix(name, "vmlinuz-")
		if !ok || version == "" {
			continue
		}
		if p := regular(t, "/boot/"+name); p != "" {
			out[version] = p
		}
	}
	return out
}

func findInitrd(t *tree.Tree, version string) string {
	for _, name := range initrdNames {
		if p := regular(t, fmt.Sprintf(name, version)); p != "" {
			return p
		}
	}
	return ""
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
// that have the names which Debian's linux-update-symlinks gives them.
func links(t *tree.Tree, to []string) (out []string) {
	known := []string{"vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"}
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
