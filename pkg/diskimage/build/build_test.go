package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// stub is a real PE program, which serves as stub and as kernel here.
const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

const text = `version: 1
kind: DiskImage
name: small
release: "1"
arch: amd64
epoch: 2026-11-01T00:00:00Z
base: {debian: {suite: bookworm}}
packages: [good, bad=1]
files:
  - {path: /etc/motd, content: "golden\n"}
boot: {cmdline: console=ttyS0}
disk:
  partitions:
    - {name: esp, type: esp, filesystem: fat32, size: 64MiB}
    - {name: config, type: config, size: 8MiB}
    - {name: srv, type: data, filesystem: ext4, size: 64MiB, mount: /srv}
    - {name: root, type: root, filesystem: ext4, label: root, grow: true}
`

// load writes a recipe and reads it.
func load(t *testing.T, text string) *recipe.Recipe {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recipe.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := recipe.Load(path, recipe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// manager makes trees of packages, as Options.debian does.
type manager = func(context.Context, packages.Request, packages.Options) (*packages.Result, error)

// distribution is a package manager that always makes the same small tree.
func distribution(t *testing.T) manager {
	t.Helper()
	program, err := os.ReadFile(stub)
	if err != nil {
		t.Skip("apt-get install systemd-boot-efi: ", err)
	}
	path := writeTar(t, tree.New(), map[string]string{
		"/boot/vmlinuz-6.1.0-1":            string(program),
		"/boot/initrd.img-6.1.0-1":         "initramfs",
		"/usr/lib/modules/6.1.0-1/modules": "",
		stub:                               string(program),
		"/usr/lib/os-release":              "ID=debian\nPRETTY_NAME=\"Debian\"\n",
		"/etc/passwd":                      "root:x:0:0:root:/root:/bin/sh\n",
		"/etc/group":                       "root:x:0:\n",
		"/etc/shadow":                      "root:*:1:0:99999:7:::\n",
		"/etc/machine-id":                  "0123456789abcdef0123456789abcdef\n",
		"/bin/sh":                          "sh",
		"/srv/www/index.html":              "<p>hello",
		"/usr/share/zoneinfo/Etc/UTC":      "TZif",
		"/usr/lib/locale/C.utf8/LC_CTYPE":  "x",
	})
	return func(_ context.Context, req packages.Request, _ packages.Options) (*packages.Result, error) {
		return &packages.Result{Tar: path, Packages: []packages.Package{{Name: "good", Version: "1", Arch: req.Arch}}}, nil
	}
}

// addFiles is a package manager whose trees have more files.
func addFiles(t *testing.T, debian manager, files map[string]string) manager {
	t.Helper()
	return func(ctx context.Context, req packages.Request, o packages.Options) (*packages.Result, error) {
		res, err := debian(ctx, req, o)
		if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(res.Tar)
		if err != nil {
			return nil, err
		}
		root, err := tree.FromTar(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return nil, err
		}
		out := *res
		out.Tar = writeTar(t, root, files)
		return &out, nil
	}
}

// writeTar writes a tree with more files to a new tar.
func writeTar(t *testing.T, root *tree.Tree, files map[string]string) string {
	t.Helper()
	for path, content := range files {
		if err := root.Put(path, &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte(content)), MTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(t.TempDir(), "root.tar")
	disktest.WriteTar(t, name, root)
	return name
}

func options(t *testing.T) Options {
	return Options{CacheDir: t.TempDir(), Now: time.Now, debian: distribution(t)}
}

func make1(t *testing.T, r *recipe.Recipe, o Options) *Image {
	t.Helper()
	im, err := Build(t.Context(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// file reads a file out of a partition of the image.
func file(t *testing.T, im *Image, role diskimage.Role, path string) string {
	t.Helper()
	b, err := foreign.ReadFile(im.Disk, *im.Table.Find(role), path, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryPartitionHoldsItsTree(t *testing.T) {
	im := make1(t, load(t, text), options(t))
	root := im.Table.Find(diskimage.RoleRoot)
	fstab := file(t, im, diskimage.RoleRoot, "/etc/fstab")
	for _, want := range []string{"PARTUUID=" + root.GUID.String() + " / ext4", " /srv ext4"} {
		if !strings.Contains(strings.Join(strings.Fields(fstab), " "), want) {
			t.Errorf("fstab lacks %q:\n%s", want, fstab)
		}
	}
	if got := file(t, im, diskimage.RoleRoot, "/etc/motd"); got != "golden\n" {
		t.Errorf("motd %q", got)
	}
	if got := file(t, im, diskimage.RoleRoot, "/etc/machine-id"); got != "" {
		t.Errorf("machine-id %q", got)
	}
	if got := file(t, im, diskimage.RoleData, "/www/index.html"); got != "<p>hello" {
		t.Errorf("index.html on the data partition: %q", got)
	}
	uki := file(t, im, diskimage.RoleESP, "/EFI/BOOT/BOOTX64.EFI")
	if want := "root=PARTUUID=" + root.GUID.String() + " ro console=ttyS0"; !strings.Contains(uki, want) {
		t.Errorf("the UKI's command line is not %q", want)
	}
	for _, gone := range []string{"/boot/vmlinuz-6.1.0-1", "/srv/www/index.html"} {
		if _, err := foreign.ReadFile(im.Disk, *root, gone, 1<<20); err == nil {
			t.Errorf("%s is still on the root", gone)
		}
	}
	table, err := gpt.Parse(im.Disk, im.Disk.Size(), 512)
	if err != nil || len(table.Partitions) != 4 || table.DiskGUID != im.Table.DiskGUID {
		t.Errorf("the disk's table: %v, %v", table, err)
	}
}

// judge runs a tool on a file and demands that it finds nothing.
func judge(t *testing.T, tool string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v\n%s", tool, args, err, out)
	}
}

func TestJudgesFindNothing(t *testing.T) {
	for _, sector := range []string{"512", "4096"} {
		t.Run(sector, func(t *testing.T) {
			with := strings.Replace(text, "disk:\n", "disk:\n  sectorSize: "+sector+"\n", 1)
			with = strings.Replace(with, "size: 64MiB}\n    - {name: config", "size: 264MiB}\n    - {name: config", 1)
			im := make1(t, load(t, with), options(t))
			path := disktest.Save(t, im.Disk)
			if sector == "512" {
				judge(t, "sgdisk", "-v", path)
				judge(t, "sfdisk", "--verify", path)
			}
			for _, p := range im.Table.Partitions {
				part := disktest.Save(t, section{im.Disk, p.Extent})
				switch {
				case p.Filesystem.Type == "ext4":
					judge(t, "e2fsck", "-fn", part)
				case strings.HasPrefix(p.Filesystem.Type, "fat"):
					judge(t, "fsck.fat", "-n", part)
				}
			}
		})
	}
}

// section is one partition of a disk.
type section struct {
	diskimage.Disk
	at diskimage.Extent
}

func (s section) Size() int64 { return s.at.Len }
func (s section) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(s.Disk, s.at.Off, s.at.Len).ReadAt(p, off)
}
func (s section) Extents() (out []diskimage.Extent) {
	for _, e := range s.Disk.Extents() {
		if x := e.Intersect(s.at); x.Len > 0 {
			out = append(out, diskimage.Extent{Off: x.Off - s.at.Off, Len: x.Len})
		}
	}
	return out
}

func TestTheSameRecipeGivesTheSameDisk(t *testing.T) {
	a, b := make1(t, load(t, text), options(t)), make1(t, load(t, text), options(t))
	if !bytes.Equal(all(t, a.Disk), all(t, b.Disk)) {
		t.Error("two builds differ")
	}
	// A new release keeps every identity, and so every place.
	c := make1(t, load(t, strings.Replace(text, `release: "1"`, `release: "2"`, 1)), options(t))
	if !bytes.Equal(all(t, a.Disk), all(t, c.Disk)) {
		t.Error("the release alone changed the disk")
	}
	d := make1(t, load(t, strings.Replace(text, "name: small", "name: other", 1)), options(t))
	if d.Table.DiskGUID == a.Table.DiskGUID || d.Table.Find(diskimage.RoleRoot).GUID == a.Table.Find(diskimage.RoleRoot).GUID {
		t.Error("two images of different names share identities")
	}
}

// all returns the bytes of the extents.
func all(t *testing.T, d diskimage.Disk) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, e := range d.Extents() {
		if _, err := io.Copy(&out, io.NewSectionReader(d, e.Off, e.Len)); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestDiskSizes(t *testing.T) {
	im := make1(t, load(t, strings.Replace(text, "disk:\n", "disk:\n  size: 1GiB\n", 1)), options(t))
	if got := im.Disk.Size(); got != 1<<30 {
		t.Errorf("disk of %d bytes", got)
	}
	if root := im.Table.Find(diskimage.RoleRoot); root.Extent.End() != 1<<30-align {
		t.Errorf("the growing partition ends at %d", root.Extent.End())
	}
	r := load(t, strings.Replace(text, "disk:\n", "disk:\n  size: 160MiB\n", 1))
	_, err := Build(t.Context(), r, options(t))
	if e, ok := recipeErrorOf(err); !ok || e.Field != "disk.size" || e.Pos.Line != 13 || !strings.Contains(e.Problem, "the disk has 160 MiB") {
		t.Errorf("got %v", err)
	}
}

func recipeErrorOf(err error) (*recipe.Error, bool) {
	for {
		switch e := err.(type) {
		case *recipe.Error:
			return e, true
		case interface{ Unwrap() []error }:
			err = e.Unwrap()[0]
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		default:
			return nil, false
		}
	}
}

func TestUnknownPackagesAreMistakesAtTheirLines(t *testing.T) {
	unknown := func(names ...string) error {
		var errs []error
		for _, name := range names {
			errs = append(errs, &packages.UnknownPackageError{Name: name, Suite: "bookworm"})
		}
		return fmt.Errorf("debian: %w", errors.Join(errs...))
	}
	with := strings.Replace(text, "[good, bad=1]", "[good, bad=1, foreign:arm64, new/sid]", 1)
	for _, c := range []struct {
		err    error
		fields string // of the mistakes; "" where it comes back as it is
	}{
		{unknown("bad"), "packages[1]"},
		{unknown("bad=1"), "packages[1]"},
		{unknown("foreign"), "packages[2]"},
		{unknown("new/sid", "foreign:arm64", "bad"), "packages[1] packages[2] packages[3]"},
		{unknown("bad", "goo"), "packages packages[1]"}, // that one is not the recipe's own
		{errors.New("no network"), ""},
	} {
		o := options(t)
		o.debian = func(context.Context, packages.Request, packages.Options) (*packages.Result, error) { return nil, c.err }
		_, err := Build(t.Context(), load(t, with), o)
		var fields []string
		errs, ok := errors.AsType[recipe.Errors](err)
		for _, e := range errs {
			fields = append(fields, e.Field)
			if e.Pos.Line != 8 {
				t.Errorf("%v: at line %d", c.err, e.Pos.Line)
			}
		}
		if !ok && !errors.Is(err, c.err) {
			t.Errorf("%v became %v", c.err, err)
		}
		if got := strings.Join(fields, " "); got != c.fields {
			t.Errorf("%v: mistakes of %q, want %q", c.err, got, c.fields)
		}
	}
}

func TestWithoutKernelTheErrorNamesThePackage(t *testing.T) {
	with := strings.Replace(text, "boot: {", "remove: [\"/boot/**\", \"/usr/lib/systemd/boot/**\"]\nboot: {", 1)
	_, err := Build(t.Context(), load(t, with), options(t))
	for _, want := range []string{"linux-image-amd64", "systemd-boot-efi"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s in: %v", want, err)
		}
	}
}

func TestACancelledBuildStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o := options(t)
	o.Progress = func(e Event) {
		if e.Step == "tree" {
			cancel()
		}
	}
	if _, err := Build(ctx, load(t, text), o); err == nil || ctx.Err() == nil {
		t.Errorf("got %v", err)
	}
}

func TestAMountBelowAMountHoldsItsOwnTree(t *testing.T) {
	inner := "    - {name: www, type: data, filesystem: ext4, size: 64MiB, mount: /srv/www}\n"
	for name, with := range map[string]string{
		"the outer first": strings.Replace(text, "    - {name: root", inner+"    - {name: root", 1),
		"the inner first": strings.Replace(text, "    - {name: srv", inner+"    - {name: srv", 1),
	} {
		im := make1(t, load(t, with), options(t))
		for _, p := range im.Table.Partitions {
			for path, on := range map[string]string{"/index.html": "www", "/www/index.html": "srv", "/srv/www/index.html": "root"} {
				if p.Name != on {
					continue
				}
				_, err := foreign.ReadFile(im.Disk, p, path, 1<<20)
				if (err == nil) != (on == "www") {
					t.Errorf("%s: %s on %s: %v", name, path, on, err)
				}
			}
		}
	}
}
