package boot_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// layouts are small trees as the distributions' packages and kernel-install lay
// kernels out. "path = text" is a file of that text.
var layouts = []struct {
	name          string
	tree          []string
	version       string
	image, initrd string
	gone          []string // paths besides these two
	missing       []string // what the errors without kernel, initramfs and stub name
}{
	{name: "Debian", tree: []string{"/etc/os-release = ID=debian", "/lib -> usr/lib", "/usr/lib/modules/6.1.0-9-amd64/modules.dep", "/usr/lib/modules/6.1.0-56-amd64/modules.dep",
		"/boot/vmlinuz-6.1.0-9-amd64", "/boot/initrd.img-6.1.0-9-amd64", "/boot/vmlinuz-6.1.0-56-amd64", "/boot/initrd.img-6.1.0-56-amd64", "/vmlinuz -> boot/vmlinuz-6.1.0-56-amd64"},
		version: "6.1.0-56-amd64", image: "/boot/vmlinuz-6.1.0-56-amd64", initrd: "/boot/initrd.img-6.1.0-56-amd64",
		gone: []string{"/boot/vmlinuz-6.1.0-9-amd64", "/boot/initrd.img-6.1.0-9-amd64", "/vmlinuz"}, missing: []string{"linux-image-amd64", "initramfs-tools", "systemd-boot-efi"}},
	{name: "Ubuntu", tree: []string{"/etc/os-release = ID=ubuntu\nID_LIKE=debian", "/usr/lib/modules/6.8.0-45-generic/modules.dep",
		"/boot/vmlinuz-6.8.0-45-generic", "/boot/initrd.img-6.8.0-45-generic", "/boot/vmlinuz -> vmlinuz-6.8.0-45-generic", "/boot/initrd.img -> initrd.img-6.8.0-45-generic"},
		version: "6.8.0-45-generic", image: "/boot/vmlinuz-6.8.0-45-generic", initrd: "/boot/initrd.img-6.8.0-45-generic",
		gone: []string{"/boot/vmlinuz", "/boot/initrd.img"}, missing: []string{"linux-image-virtual", "initramfs-tools", "systemd-boot-efi"}},
	{name: "Fedora", tree: []string{"/etc/os-release = ID=fedora", "/usr/lib/modules/6.11.4-301.fc41.x86_64/vmlinuz",
		"/boot/vmlinuz-6.11.4-301.fc41.x86_64", "/boot/initramfs-6.11.4-301.fc41.x86_64.img", "/boot/initramfs-6.11.4-301.fc41.x86_64kdump.img",
		"/boot/vmlinuz-0-rescue-0123456789abcdef0123456789abcdef", "/boot/initramfs-0-rescue-0123456789abcdef0123456789abcdef.img"},
		version: "6.11.4-301.fc41.x86_64", image: "/boot/vmlinuz-6.11.4-301.fc41.x86_64", initrd: "/boot/initramfs-6.11.4-301.fc41.x86_64.img",
		gone: []string{"/usr/lib/modules/6.11.4-301.fc41.x86_64/vmlinuz", "/boot/initramfs-6.11.4-301.fc41.x86_64kdump.img",
			"/boot/vmlinuz-0-rescue-0123456789abcdef0123456789abcdef", "/boot/initramfs-0-rescue-0123456789abcdef0123456789abcdef.img"},
		missing: []string{"kernel-core", "dracut", "systemd-boot-unsigned"}},
	{name: "Fedora by kernel-install", tree: []string{"/etc/os-release = ID=fedora", "/usr/lib/modules/6.11.4-301.fc41.x86_64/vmlinuz",
		"/boot/0123456789abcdef0123456789abcdef/6.11.4-301.fc41.x86_64/linux", "/boot/0123456789abcdef0123456789abcdef/6.11.4-301.fc41.x86_64/initrd"},
		version: "6.11.4-301.fc41.x86_64", image: "/boot/0123456789abcdef0123456789abcdef/6.11.4-301.fc41.x86_64/linux",
		initrd: "/boot/0123456789abcdef0123456789abcdef/6.11.4-301.fc41.x86_64/initrd",
		gone:   []string{"/usr/lib/modules/6.11.4-301.fc41.x86_64/vmlinuz"}, missing: []string{"kernel-core", "dracut"}},
	{name: "an entry with names of its own", tree: []string{"/etc/os-release = ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"", "/usr/lib/modules/5.14.0-427.el9.x86_64/modules.dep",
		"/boot/loader/entries/x.conf = title Alma\nversion 5.14.0-427.el9.x86_64\nlinux\t/k/kernel\ninitrd /k/ucode\ninitrd /k/initrd\noptions ro", "/boot/k/kernel", "/boot/k/ucode", "/boot/k/initrd"},
		version: "5.14.0-427.el9.x86_64", image: "/boot/k/kernel", initrd: "/boot/k/initrd", missing: []string{"kernel-core", "dracut"}},
	{name: "bootc", tree: []string{"/usr/lib/os-release = ID=\"centos\"\nID_LIKE=\"rhel fedora\"", "/usr/lib/modules/5.14.0-522.el9.x86_64/vmlinuz", "/usr/lib/modules/5.14.0-522.el9.x86_64/initramfs.img"},
		version: "5.14.0-522.el9.x86_64", image: "/usr/lib/modules/5.14.0-522.el9.x86_64/vmlinuz", initrd: "/usr/lib/modules/5.14.0-522.el9.x86_64/initramfs.img",
		missing: []string{"kernel-core", "dracut"}},
	{name: "openSUSE", tree: []string{"/etc/os-release -> ../usr/lib/os-release", "/usr/lib/os-release = ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"",
		"/usr/lib/modules/6.4.0-150600.23-default/vmlinuz", "/boot/vmlinuz-6.4.0-150600.23-default -> ../usr/lib/modules/6.4.0-150600.23-default/vmlinuz",
		"/boot/initrd-6.4.0-150600.23-default", "/boot/vmlinuz -> vmlinuz-6.4.0-150600.23-default", "/boot/initrd -> initrd-6.4.0-150600.23-default"},
		version: "6.4.0-150600.23-default", image: "/usr/lib/modules/6.4.0-150600.23-default/vmlinuz", initrd: "/boot/initrd-6.4.0-150600.23-default",
		gone:    []string{"/boot/vmlinuz-6.4.0-150600.23-default", "/boot/vmlinuz", "/boot/initrd"},
		missing: []string{"kernel-default", "dracut", "add the package systemd-boot"}},
	{name: "Arch", tree: []string{"/etc/os-release = ID=arch", "/usr/lib/modules/6.11.5-arch1-1/vmlinuz", "/usr/lib/modules/6.11.5-arch1-1/pkgbase = linux\n",
		"/boot/vmlinuz-linux", "/boot/initramfs-linux.img", "/boot/initramfs-linux-fallback.img", "/boot/intel-ucode.img"},
		version: "6.11.5-arch1-1", image: "/boot/vmlinuz-linux", initrd: "/boot/initramfs-linux.img",
		gone: []string{"/usr/lib/modules/6.11.5-arch1-1/vmlinuz", "/boot/initramfs-linux-fallback.img"}, missing: []string{"linux", "mkinitcpio", "add the package systemd"}},
	{name: "Arch with lts, in a container", tree: []string{"/etc/os-release = ID=arch", "/usr/lib/modules/6.6.58-1-lts/vmlinuz", "/usr/lib/modules/6.6.58-1-lts/pkgbase = linux-lts\n",
		"/boot/initramfs-linux-lts.img"},
		version: "6.6.58-1-lts", image: "/usr/lib/modules/6.6.58-1-lts/vmlinuz", initrd: "/boot/initramfs-linux-lts.img", missing: []string{"linux", "mkinitcpio"}},
	{name: "Alpine", tree: []string{"/etc/os-release = ID=alpine", "/lib/modules/6.6.58-0-virt/modules.dep", "/boot/vmlinuz-virt", "/boot/initramfs-virt", "/boot/config-6.6.58-0-virt"},
		version: "6.6.58-0-virt", image: "/boot/vmlinuz-virt", initrd: "/boot/initramfs-virt", missing: []string{"linux-virt", "mkinitfs", "systemd-efistub"}},
	{name: "modules decide", tree: []string{"/etc/os-release = ID=debian", "/boot/vmlinuz-9.9.9", "/boot/initrd.img-9.9.9", "/usr/lib/modules/6.1.0/modules.dep", "/boot/vmlinuz-6.1.0", "/boot/initrd.img-6.1.0"},
		version: "6.1.0", image: "/boot/vmlinuz-6.1.0", initrd: "/boot/initrd.img-6.1.0", gone: []string{"/boot/vmlinuz-9.9.9", "/boot/initrd.img-9.9.9"}},
}

// system is a tree of "path", "path -> target" and "path = text".
func system(t *testing.T, entries ...string) *tree.Tree {
	t.Helper()
	tr := debian(t)
	for _, e := range entries {
		p, text, ok := strings.Cut(e, " = ")
		n := &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte(text))}
		if !ok {
			n.Data = diskimage.Bytes([]byte("data of " + e))
		}
		if at, target, ok := strings.Cut(e, " -> "); ok {
			p, n = at, &tree.Inode{Kind: tree.Symlink, Target: target}
		}
		where, err := tr.ResolveParent(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Put(where, n); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func TestFindInEveryFamily(t *testing.T) {
	for _, c := range layouts {
		t.Run(c.name, func(t *testing.T) {
			k, err := boot.Find(system(t, append(c.tree, debianStub)...), "amd64")
			if err != nil {
				t.Fatal(err)
			}
			if k.Version != c.version || k.Image != c.image || k.Initrd != c.initrd || k.Stub != debianStub {
				t.Errorf("got %+v", k)
			}
			want := append([]string{c.image, c.initrd}, c.gone...)
			slices.Sort(want)
			if got := k.Paths(); !reflect.DeepEqual(got, want) {
				t.Errorf("what leaves the tree is\n%q, want\n%q", got, want)
			}
			if c.missing == nil {
				return
			}
			// Without all of it the error names that distribution's packages.
			var rest []string
			for _, e := range c.tree {
				if strings.Contains(e, "os-release") {
					rest = append(rest, e)
				}
			}
			_, err = boot.Find(system(t, rest...), "amd64")
			if _, ok := errors.AsType[*boot.MissingError](err); !ok || !strings.Contains(err.Error(), c.missing[0]) {
				t.Errorf("without a kernel: %v, want %q named", err, c.missing[0])
			}
			var without []string
			for _, e := range append(c.tree, debianStub) {
				if e != c.initrd && !strings.HasPrefix(e, debianStub) {
					without = append(without, e)
				}
			}
			_, err = boot.Find(system(t, without...), "amd64")
			for _, name := range c.missing[1:] {
				if err == nil || !strings.Contains(err.Error(), name) {
					t.Errorf("without initramfs and stub: %v, want %q named", err, name)
				}
			}
		})
	}
}

// A distribution that is not known gets no advice that is not its own.
func TestFindInAnUnknownFamily(t *testing.T) {
	_, err := boot.Find(system(t, "/etc/os-release = ID=void"), "amd64")
	if err == nil || strings.Contains(err.Error(), "add the package") || !strings.Contains(err.Error(), "no kernel") {
		t.Errorf("got %v", err)
	}
}

// An initramfs that imgbuild made is the one that starts, whatever the kernel is
// called and whatever the distribution made.
func TestFindTheNativeInitramfs(t *testing.T) {
	for _, c := range layouts {
		native := "/boot/initrd.img-" + c.version
		k, err := boot.Find(system(t, append(c.tree, debianStub, native+" = native")...), "amd64")
		if err != nil || k.Initrd != native || c.initrd != native && !slices.Contains(k.Paths(), c.initrd) {
			t.Errorf("%s: got %+v, %v", c.name, k, err)
		}
	}
}

// Only a rescue kernel is no kernel, and a name that leads nowhere is none.
func TestFindNoRescue(t *testing.T) {
	tr := system(t, "/etc/os-release = ID=fedora", debianStub, "/boot/vmlinuz-0-rescue-x", "/boot/initramfs-0-rescue-x.img",
		"/boot/vmlinuz-1 -> /nowhere", "/boot/vmlinuz-2 -> vmlinuz-2", "/boot/loader/entries/a.conf = linux ../../../../etc/os-release-gone\nversion 3")
	if k, err := boot.Find(tr, "amd64"); err == nil {
		t.Errorf("got %+v", k)
	}
	if got := boot.Kernels(tr); len(got) != 0 {
		t.Errorf("kernels %q", got)
	}
}

func FuzzFind(f *testing.F) {
	f.Add("6.1", "linux", "title x\nlinux /vmlinuz-6.1\n", "ID=arch\n")
	f.Fuzz(func(t *testing.T, version, pkgbase, entry, release string) {
		tr := tree.New()
		for p, text := range map[string]string{"/usr/lib/modules/" + version + "/vmlinuz": "k", "/usr/lib/modules/" + version + "/pkgbase": pkgbase,
			"/boot/vmlinuz-" + pkgbase: "k", "/boot/loader/entries/a.conf": entry, "/etc/os-release": release} {
			_ = tr.Put(p, &tree.Inode{Data: diskimage.Bytes([]byte(text))})
		}
		k, err := boot.Find(tr, "amd64")
		for _, p := range k.Paths() {
			if err == nil && tr.Get(p) == nil {
				t.Errorf("%q is not in the tree", p)
			}
		}
	})
}
