package base_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// squash makes a squashfs of files.
func squash(t testing.TB, out string, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		write(t, filepath.Join(dir, name), []byte(text))
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mksquashfs", dir, out, "-quiet", "-no-progress", "-comp", "gzip", "-all-root")
}

func fromFile(t testing.TB, name string, root base.Root) (*base.Base, error) {
	t.Helper()
	root.Arch = "amd64"
	b, err := base.File(t.Context(), name, root, base.Options{})
	if err == nil {
		t.Cleanup(func() { _ = b.Close() })
	}
	return b, err
}

func TestSquashfs(t *testing.T) {
	dir := t.TempDir()
	squash(t, dir+"/root.squashfs", map[string]string{"etc/os-release": "ID=ubuntu\n"})
	b, err := fromFile(t, dir+"/root.squashfs", base.Root{})
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, b.Tree, "/etc/os-release"); got != "ID=ubuntu\n" {
		t.Errorf("os-release %q", got)
	}
}

// Live systems of several families, as xorriso makes them: with and without Rock
// Ridge, and with partitions that are no root.
func TestLiveImages(t *testing.T) {
	for _, c := range []struct {
		name  string
		trees map[string]map[string]string // squashfs by their place
		args  []string
		want  string // os-release, or words of the error
	}{
		{"Debian", map[string]map[string]string{"live/filesystem.squashfs": {"etc/os-release": "debian"}}, []string{"-r", "-J"}, "debian"},
		{"hybrid", map[string]map[string]string{"live/filesystem.squashfs": {"etc/os-release": "debian"}}, []string{"-r", "-append_partition", "2", "0xef", "SQUASH", "-appended_part_as_gpt"}, "debian"},
		{"Ubuntu", map[string]map[string]string{"casper/filesystem.squashfs": {"etc/os-release": "ubuntu"}, "casper/other.squashfs": {"etc/os-release": "other"}}, []string{"-r"}, "ubuntu"},
		{"Fedora", map[string]map[string]string{"LiveOS/squashfs.img": {"etc/os-release": "fedora"}}, []string{"-iso-level", "3"}, "fedora"},
		{"Arch", map[string]map[string]string{"arch/x86_64/airootfs.sfs": {"etc/os-release": "arch"}}, []string{"-r"}, "arch"},
		{"the only one", map[string]map[string]string{"x/y.squashfs": {"etc/os-release": "any"}}, []string{"-r"}, "any"},
		{"several", map[string]map[string]string{"a.squashfs": {"a": "b"}, "b.squashfs": {"a": "b"}}, []string{"-r"}, "several squashfs"},
		{"none", map[string]map[string]string{}, []string{"-r"}, "no squashfs of a live system in it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "root/README"), []byte("readme"))
			for at, files := range c.trees {
				squash(t, filepath.Join(dir, "root", at), files)
			}
			args := []string{"-as", "mkisofs", "-quiet", "-o", dir + "/image.iso"}
			for _, a := range c.args {
				if a == "SQUASH" {
					a = filepath.Join(dir, "root/live/filesystem.squashfs")
				}
				args = append(args, a)
			}
			run(t, "xorriso", append(args, dir+"/root")...)
			b, err := fromFile(t, dir+"/image.iso", base.Root{})
			if len(c.want) > 8 {
				wantError(t, err, c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := content(t, b.Tree, "/etc/os-release"); got != c.want {
				t.Errorf("os-release %q, want %q", got, c.want)
			}
		})
	}
}

// Fedora's live images once had an ext4 in the squashfs.
func TestLiveImageWithinAnImage(t *testing.T) {
	dir := t.TempDir()
	inner := filesystem(t, volume{name: "live", fs: "ext4", files: []string{"etc/os-release=fedora"}}, 8*mib)
	raw, err := os.ReadFile(disktest.Save(t, inner))
	if err != nil {
		t.Fatal(err)
	}
	squash(t, dir+"/root/LiveOS/squashfs.img", map[string]string{"LiveOS/rootfs.img": string(raw)})
	run(t, "xorriso", "-as", "mkisofs", "-quiet", "-r", "-o", dir+"/image.iso", dir+"/root")
	b, err := fromFile(t, dir+"/image.iso", base.Root{})
	if err != nil {
		t.Fatal(err)
	}
	if n := b.Tree.Get("/etc/os-release"); n == nil || n.Kind != tree.Regular || content(t, b.Tree, "/etc/os-release") != "fedora" {
		t.Errorf("os-release %+v", n)
	}
}
