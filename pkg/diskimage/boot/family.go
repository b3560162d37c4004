package boot

import (
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// family is what differs between distributions: names of packages, and where a
// person looks for the initramfs.
type family struct {
	kernel     []string // ARCH stands for the architecture
	initramfs  []string
	initrdName string // %s is the version, or the kernel's name
	stub       []string
	release    []string
}

// families by the words of os-release's ID and ID_LIKE.
var families = map[string]*family{
	"debian": {[]string{"linux-image-ARCH", "linux-image-cloud-ARCH"}, []string{"initramfs-tools", "dracut"}, "/boot/initrd.img-%s",
		[]string{"systemd-boot-efi"}, []string{"base-files"}},
	"ubuntu": {[]string{"linux-image-virtual", "linux-image-generic"}, []string{"initramfs-tools"}, "/boot/initrd.img-%s",
		[]string{"systemd-boot-efi"}, []string{"base-files"}},
	"fedora": {[]string{"kernel-core"}, []string{"dracut"}, "/boot/initramfs-%s.img",
		[]string{"systemd-boot-unsigned"}, []string{"system-release"}},
	"suse": {[]string{"kernel-default"}, []string{"dracut"}, "/boot/initrd-%s",
		[]string{"systemd-boot"}, []string{"distribution-release"}},
	"arch": {[]string{"linux"}, []string{"mkinitcpio"}, "/boot/initramfs-%s.img",
		[]string{"systemd"}, []string{"filesystem"}},
	"alpine": {[]string{"linux-virt", "linux-lts"}, []string{"mkinitfs"}, "/boot/initramfs-%s",
		[]string{"systemd-efistub"}, []string{"alpine-release"}},
}

// relatives are IDs that name no family and whose ID_LIKE is often missing.
var relatives = map[string]string{"rhel": "fedora", "centos": "fedora", "almalinux": "fedora", "rocky": "fedora", "amzn": "fedora", "ol": "fedora",
	"opensuse": "suse", "opensuse-leap": "suse", "opensuse-tumbleweed": "suse", "sles": "suse", "sled": "suse",
	"archlinux": "arch", "archarm": "arch", "manjaro": "arch", "linuxmint": "ubuntu", "raspbian": "debian"}

// familyOf tells a tree's family by its os-release(5); Debian's, if it says nothing.
func familyOf(t *tree.Tree) *family {
	var id, like string
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		b, err := t.ReadFile(name, maxOSRelease)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			value = strings.ToLower(strings.Trim(value, `"'`))
			switch key {
			case "ID":
				id = value
			case "ID_LIKE":
				like = value
			}
		}
		break
	}
	for _, word := range append([]string{id}, strings.Fields(like)...) {
		if relative, ok := relatives[word]; ok {
			word = relative
		}
		if f := families[word]; f != nil {
			return f
		}
	}
	if id == "" {
		return families["debian"]
	}
	return &family{initrdName: "/boot/initramfs-%s.img"}
}

// kernels are the packages with a kernel for an architecture.
func (f *family) kernels(arch string) (out []string) {
	for _, name := range f.kernel {
		out = append(out, strings.ReplaceAll(name, "ARCH", arch))
	}
	return out
}
