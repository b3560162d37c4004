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

// debian is a tree of files ("path") and symlinks ("path -> target").
func debian(t *testing.T, entries ...string) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for _, e := range entries {
		n := &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte("data of " + e))}
		p, target, ok := strings.Cut(e, " -> ")
		if ok {
			n = &tree.Inode{Kind: tree.Symlink, Target: target}
		}
		if err := tr.Put(p, n); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

var bookworm = []string{
	"/usr/lib/os-release", "/etc/os-release -> ../usr/lib/os-release",
	debianStub, "/usr/lib/systemd/boot/efi/systemd-bootx64.efi",
	"/boot/vmlinuz-6.1.0-9-cloud-amd64", "/boot/initrd.img-6.1.0-9-cloud-amd64",
	"/boot/vmlinuz-6.1.0-56-cloud-amd64", "/boot/initrd.img-6.1.0-56-cloud-amd64",
	"/boot/config-6.1.0-56-cloud-amd64", "/boot/System.map-6.1.0-56-cloud-amd64",
	"/vmlinuz -> boot/vmlinuz-6.1.0-56-cloud-amd64", "/vmlinuz.old -> boot/vmlinuz-6.1.0-9-cloud-amd64",
	"/initrd.img -> boot/initrd.img-6.1.0-56-cloud-amd64", "/initrd.img.old -> boot/initrd.img-gone",
	"/boot/grub.cfg -> ../etc/grub.cfg", "/boot/current -> vmlinuz-6.1.0-56-cloud-amd64",
}

func TestFind(t *testing.T) {
	tr := debian(t, bookworm...)
	k, err := boot.Find(tr, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if k.Version != "6.1.0-56-cloud-amd64" || k.Image != "/boot/vmlinuz-6.1.0-56-cloud-amd64" || k.Initrd != "/boot/initrd.img-6.1.0-56-cloud-amd64" ||
		k.Stub != debianStub || k.OSRelease != "/usr/lib/os-release" {
		t.Errorf("got %+v", k)
	}
	u, err := k.UKI(tr, "quiet")
	if err != nil {
		t.Fatal(err)
	}
	if string(u.Stub) != "data of "+debianStub || string(read(t, u.Kernel)) != "data of "+k.Image || string(read(t, u.Initrd)) != "data of "+k.Initrd ||
		u.OSRelease != "data of /usr/lib/os-release" || u.Cmdline != "quiet" || u.Uname != k.Version {
		t.Errorf("got %+v", u)
	}
	for _, p := range k.Paths() {
		tr.Remove(p)
	}
	var left []string
	for _, dir := range []string{"/", "/boot"} {
		left = append(left, tr.Children(dir)...)
	}
	want := []string{"boot", "etc", "usr", "System.map-6.1.0-56-cloud-amd64", "config-6.1.0-56-cloud-amd64", "grub.cfg"}
	if !slices.Equal(left, want) {
		t.Errorf("in / and /boot are left %q, want %q", left, want)
	}
}

func TestFindInModules(t *testing.T) {
	tr := debian(t, "/usr/lib/modules/6.9.1/vmlinuz", "/boot/vmlinuz-6.10.1 -> ../usr/lib/modules/6.10.1/vmlinuz",
		"/usr/lib/modules/6.10.1/vmlinuz", "/boot/initramfs-6.10.1.img", "/etc/os-release", "/usr/lib/systemd/boot/efi/linuxaa64.efi.stub")
	k, err := boot.Find(tr, "arm64")
	if err != nil || k.Version != "6.10.1" || k.Image != "/usr/lib/modules/6.10.1/vmlinuz" || k.Initrd != "/boot/initramfs-6.10.1.img" {
		t.Errorf("got %+v, %v", k, err)
	}
	want := []string{"/boot/initramfs-6.10.1.img", "/boot/vmlinuz-6.10.1", "/usr/lib/modules/6.10.1/vmlinuz", "/usr/lib/modules/6.9.1/vmlinuz"}
	if !reflect.DeepEqual(k.Paths(), want) {
		t.Errorf("paths %q, want %q", k.Paths(), want)
	}
}

func TestFindMissing(t *testing.T) {
	without := func(part string) *tree.Tree {
		return debian(t, slices.DeleteFunc(slices.Clone(bookworm), func(e string) bool { return strings.Contains(e, part) })...)
	}
	for part, want := range map[string]string{
		"vmlinuz":             "no kernel (/boot/vmlinuz-* or /usr/lib/modules/*/vmlinuz); add the package linux-image-amd64 or linux-image-cloud-amd64",
		"initrd.img-6.1.0-56": "no initramfs for its kernel (/boot/initrd.img-6.1.0-56-cloud-amd64); add the package initramfs-tools",
		"efi.stub":            "no EFI stub (" + debianStub + "); add the package systemd-boot-efi",
		"os-release":          "no /etc/os-release; add the package base-files",
	} {
		_, err := boot.Find(without(part), "amd64")
		e, ok := errors.AsType[*boot.MissingError](err)
		if !ok || len(e.Packages) == 0 || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: got %v, want %q", part, err, want)
		}
	}
	// All at once, and an empty file is none.
	_, err := boot.Find(tree.New(), "amd64")
	if err == nil || strings.Count(err.Error(), "add the package") != 3 {
		t.Errorf("an empty tree: %v", err)
	}
	if _, err := boot.Find(tree.New(), "riscv64"); err == nil || !strings.Contains(err.Error(), "want amd64 or arm64") {
		t.Errorf("got %v", err)
	}
}
