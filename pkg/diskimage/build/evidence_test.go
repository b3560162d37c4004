package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/evidence"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs/initprogram"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// packaged is distribution with a package database, whose documentation the
// recipe removes.
func packaged(t *testing.T) manager {
	t.Helper()
	digest := diskimage.DigestOf([]byte("good.deb"))
	base := addFiles(t, distribution(t), map[string]string{
		"/var/lib/dpkg/status":          "Package: good\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n",
		"/var/lib/dpkg/info/good.list":  "/boot/vmlinuz-6.1.0-1\n/usr/lib/os-release\n/srv/www/index.html\n",
		"/usr/share/doc/good/copyright": "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nLicense: ISC\n",
	})
	return func(ctx context.Context, req packages.Request, o packages.Options) (*packages.Result, error) {
		res, err := base(ctx, req, o)
		if err != nil {
			return nil, err
		}
		res.Packages[0].Digest = digest
		res.Tool, res.Keyring, res.Mode = "mmdebstrap 9.9.9", diskimage.DigestOf([]byte("keys")), "root"
		res.Sources = []packages.Source{{Name: "mirror.example.org_debian_dists_bookworm_InRelease", Digest: diskimage.DigestOf([]byte("release"))}}
		return res, nil
	}
}

// sourced is a recipe with a file and a directory beside it.
func sourced(t *testing.T) (*recipe.Recipe, string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"recipe.yaml": strings.Replace(text, "files:\n", "vars: {who: me}\nremove: [\"/usr/share/doc/**\", \"/var/lib/dpkg/**\"]\nfiles:\n  - {path: /opt/app, source: app}\n  - {path: /etc/issue, source: issue}\n", 1),
		"app/bin/run": "run", "issue": "issue",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := recipe.Load(filepath.Join(dir, "recipe.yaml"), recipe.Options{Set: map[string]string{"who": "you"}})
	if err != nil {
		t.Fatal(err)
	}
	return r, dir
}

func evident(t *testing.T) (*Image, string) {
	t.Helper()
	r, dir := sourced(t)
	o := options(t)
	o.debian, o.Evidence = packaged(t), true
	return make1(t, r, o), dir
}

func TestContentsAreThoseOfTheImage(t *testing.T) {
	im, _ := evident(t)
	c, err := im.Contents(t.Context(), true, 2)
	if err != nil {
		t.Fatal(err)
	}
	p := c.Database.Packages
	if len(p) != 1 || p[0].License.Expression != "ISC" || p[0].Archive != diskimage.DigestOf([]byte("good.deb")) {
		t.Errorf("packages %+v", p)
	}
	uki := file(t, im, diskimage.RoleESP, "/EFI/BOOT/BOOTX64.EFI")
	if c.Boot.SHA256 != diskimage.DigestOf([]byte(uki)) || c.Boot.Kernel != "6.1.0-1" || !slices.Equal(c.Boot.From, []string{"good"}) {
		t.Errorf("boot %+v", c.Boot)
	}
	owners := map[string]string{}
	for _, f := range c.Files {
		owners[f.Path] = f.Package
	}
	for path, owner := range map[string]string{
		"/usr/lib/os-release": "good", "/srv/www/index.html": "good", // on the root, and on another partition
		"/etc/motd": "", "/opt/app/bin/run": "",
	} {
		if got, ok := owners[path]; !ok || got != owner {
			t.Errorf("%s is of %q, %v; want %q", path, got, ok, owner)
		}
	}
	for _, gone := range []string{"/usr/share/doc/good/copyright", "/var/lib/dpkg/status", "/boot/vmlinuz-6.1.0-1"} {
		if _, ok := owners[gone]; ok {
			t.Errorf("%s is not in the image", gone)
		}
	}
	c.Image.Disk = diskimage.DigestOf(nil)
	if _, err := evidence.SBOM(c); err != nil {
		t.Error(err)
	}
}

// Loaders and the init of a native initramfs are named, with the package they are of.
func TestContentsNameWhatStartsTheImage(t *testing.T) {
	r := load(t, withBoot("firmware: hybrid, loader: systemd-boot, initramfs: native", espPart, biosPart, rootPart))
	o := withNative(t)
	o.Evidence = true
	o.debian = addFiles(t, o.debian, map[string]string{
		"/var/lib/dpkg/status": "Package: loader\nStatus: install ok installed\nVersion: 252\nArchitecture: amd64\n\n" +
			"Package: grub\nStatus: install ok installed\nVersion: 2.06\nArchitecture: amd64\n",
		"/var/lib/dpkg/info/loader.list": "/usr/lib/systemd/boot/efi/systemd-bootx64.efi\n",
		"/var/lib/dpkg/info/grub.list":   "/usr/lib/grub/i386-pc/boot.img\n",
	})
	im := make1(t, r, o)
	c, err := im.Contents(t.Context(), false, 1)
	if err != nil {
		t.Fatal(err)
	}
	program, err := initprogram.Program("amd64")
	if err != nil {
		t.Fatal(err)
	}
	want := []evidence.Program{
		{Name: "systemd-boot", Path: "/EFI/BOOT/BOOTX64.EFI", SHA256: diskimage.DigestOf([]byte(file(t, im, diskimage.RoleESP, "/EFI/BOOT/BOOTX64.EFI"))), From: []string{"loader"}},
		{Name: "GRUB", From: []string{"grub"}},
		{Name: "imgpipe-init", Inside: true, Own: true, License: "Apache-2.0", SHA256: diskimage.DigestOf(program), Source: initprogram.Source()},
	}
	if !reflect.DeepEqual(c.Programs, want) {
		t.Errorf("got %+v, want %+v", c.Programs, want)
	}
}

func TestOriginNamesAllInputs(t *testing.T) {
	im, dir := evident(t)
	o, err := im.Origin(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "recipe.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := []evidence.Input{
		{Name: "recipe.yaml", Digest: diskimage.DigestOf(text)},
		{Name: "debian-archive-keyring.gpg", Digest: diskimage.DigestOf([]byte("keys"))},
		{Name: "app/bin/run", Digest: diskimage.DigestOf([]byte("run"))},
		{Name: "issue", Digest: diskimage.DigestOf([]byte("issue"))},
	}
	if !slices.Equal(o.Inputs, want) {
		t.Errorf("inputs %v, want %v", o.Inputs, want)
	}
	if o.Set["who"] != "you" || o.Versions["mmdebstrap"] != "9.9.9" || o.Packages.Mode != "root" ||
		len(o.Archives) != 1 || o.Archives[0].Suite != "bookworm" {
		t.Errorf("origin %+v", o)
	}
	o.Recipe = "recipe.yaml"
	b, err := evidence.Provenance(o)
	if err != nil || !json.Valid(b) || bytes.Contains(b, []byte("mirror.example.org")) {
		t.Errorf("%v: %s", err, b)
	}
}

func TestASourceThatChangedIsNotVouchedFor(t *testing.T) {
	im, dir := evident(t)
	if err := os.WriteFile(filepath.Join(dir, "issue"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if o, err := im.Origin(t.Context(), 1); !errors.Is(err, tree.ErrChanged) {
		t.Errorf("got %+v, %v", o, err)
	}
}

// A file is dpkg's package's, else RPM's.
func TestOwnersOfRPM(t *testing.T) {
	b := disktest.Gunzip(t, "../rpmdb/testdata/Packages.db.gz")
	for _, damaged := range []bool{false, true} {
		root := tree.New()
		for p, content := range map[string][]byte{"/usr/lib/sysimage/rpm/Packages.db": b, "/var/lib/dpkg/info/good.list": []byte("/usr/bin/good\n/usr/bin/fixture\n")} {
			if err := root.Put(p, &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(content)}); err != nil {
				t.Fatal(err)
			}
		}
		owner, err := owners(root)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"/usr/bin/good": "good", "/usr/bin/fixture": "good", "/usr/share/fixture/main": "fixture", "/etc/motd": ""}
		if damaged {
			want["/usr/share/fixture/main"] = ""
		}
		for p, name := range want {
			if got := owner(p); got != name {
				t.Errorf("damaged %v: %s is %q's, want %q", damaged, p, got, name)
			}
		}
		b = b[:len(b)/2]
	}
}
