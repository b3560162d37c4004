package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/evidence"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// rootTar is the tar of the small tree that distribution makes.
func rootTar(t *testing.T) []byte {
	t.Helper()
	res, err := distribution(t)(t.Context(), packages.Request{}, packages.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(res.Tar)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// folder writes files by name, and returns where.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// with is the recipe of these tests on another base.
func with(base string) string {
	return strings.Replace(strings.Replace(text, "base: {debian: {suite: bookworm}}", "base: "+base, 1), "packages: [good, bad=1]\n", "", 1)
}

func loadFile(t *testing.T, name string) *recipe.Recipe {
	t.Helper()
	r, err := recipe.Load(name, recipe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// diskSum is over what a disk holds and where.
func diskSum(t *testing.T, d diskimage.Disk) string {
	t.Helper()
	h := sha256.New()
	for _, e := range d.Extents() {
		fmt.Fprintln(h, e)
		if _, err := io.Copy(h, io.NewSectionReader(d, e.Off, e.Len)); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// images opens a container image of one layer.
func images(tar []byte, wrong bool) Bases {
	return Bases{Image: func(_ context.Context, ref, arch string) (*base.Image, func() error, error) {
		if ref != "registry.example/os:1" || arch != "amd64" {
			return nil, nil, fmt.Errorf("asked for %s for %s", ref, arch)
		}
		l := base.Layer{Digest: diskimage.DigestOf(tar), DiffID: diskimage.DigestOf(tar), Size: int64(len(tar)),
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tar)), nil }}
		if wrong {
			l.DiffID[0] ^= 1
		}
		return &base.Image{Digest: diskimage.DigestOf([]byte("manifest")), Layers: []base.Layer{l}}, func() error { return nil }, nil
	}}
}

// The same tree makes the same disk, whatever it was in.
func TestOneTreeFromEveryBase(t *testing.T) {
	tar := rootTar(t)
	o := options(t)
	want := diskSum(t, make1(t, load(t, strings.Replace(text, "packages: [good, bad=1]\n", "", 1)), o).Disk)
	dir := folder(t, map[string]string{"root.tar": string(tar), "tar.yaml": with("{tar: {file: root.tar}}"), "disk.yaml": with("{disk: {file: disk.raw}}"),
		"low/base.yaml": with("{tar: {file: ../root.tar}}"), "top.yaml": with("{recipe: {file: low/base.yaml}}")})
	whole := make1(t, loadFile(t, filepath.Join(dir, "tar.yaml")), o)
	if got := diskSum(t, whole.Disk); got != want {
		t.Error("the tar makes another disk than the packages in it")
	}
	o.Bases = images(tar, false)
	container := make1(t, load(t, with("{oci: {ref: 'registry.example/os:1'}}")), o)
	if got := diskSum(t, container.Disk); got != want {
		t.Error("the container image makes another disk than the packages in it")
	}
	if b := container.Record.Base; b == nil || b.Name != "registry.example/os:1" || b.Digest != diskimage.DigestOf([]byte("manifest")) {
		t.Errorf("base %+v", b)
	}

	// A disk that was built, and one that stands upon another recipe, have the files
	// of the recipe already, which puts them there again.
	if err := os.Rename(disktest.Save(t, whole.Disk), filepath.Join(dir, "disk.raw")); err != nil {
		t.Fatal(err)
	}
	rebuilt := make1(t, loadFile(t, filepath.Join(dir, "disk.yaml")), o)
	if got := diskSum(t, rebuilt.Disk); got != want {
		t.Error("the disk made of the disk is another")
	}
	if rebuilt.Record.Kernel != "6.1.0-1" {
		t.Errorf("kernel %s", rebuilt.Record.Kernel)
	}
	o.Bases.Disk = func(_ context.Context, ref, _ string) (diskimage.Disk, diskimage.Digest, func() error, error) {
		if ref != "registry.example/images/small:1" {
			return nil, diskimage.Digest{}, nil, errors.New(ref)
		}
		return whole.Disk, diskimage.DigestOf([]byte("artifact")), func() error { return nil }, nil
	}
	if got := diskSum(t, make1(t, load(t, with("{disk: {ref: 'registry.example/images/small:1', partition: root}}")), o).Disk); got != want {
		t.Error("the disk made of the artifact is another")
	}
	if got := diskSum(t, make1(t, loadFile(t, filepath.Join(dir, "top.yaml")), o).Disk); got != want {
		t.Error("the disk made of the recipe is another")
	}
}

func TestFoldersAndNothing(t *testing.T) {
	program, err := os.ReadFile(stub)
	if err != nil {
		t.Skip("apt-get install systemd-boot-efi: ", err)
	}
	root := map[string]string{"boot/vmlinuz-1": string(program), "boot/initrd.img-1": "i", stub[1:]: string(program), "etc/os-release": "ID=x\n",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n", "etc/shadow": "root:*:1::::::\n", "usr/share/zoneinfo/Etc/UTC": "TZif",
		"usr/lib/locale/C.utf8/LC_CTYPE": "x", "bin/sh": "sh",
		"lib/apk/db/installed": "P:busybox\nV:1.36\nA:x86_64\n\n"}
	files := map[string]string{"recipe.yaml": with("{dir: {path: root}}"), "less.yaml": with("{scratch: {}}"),
		"nothing.yaml": strings.Replace(with("{scratch: {}}"), "files:\n", "files:\n  - {path: /boot, source: root/boot}\n  - {path: /usr, source: root/usr}\n  - {path: /etc/os-release, source: root/etc/os-release}\n", 1)}
	for name, text := range root {
		files["root/"+name] = text
	}
	dir := folder(t, files)
	one := make1(t, loadFile(t, filepath.Join(dir, "recipe.yaml")), options(t))
	if got := file(t, one, diskimage.RoleRoot, "/etc/os-release"); got != "ID=x\n" {
		t.Errorf("os-release %q", got)
	}
	if p := one.Record.Packages; len(p) != 1 || p[0].Name != "busybox" || p[0].Version != "1.36" {
		t.Errorf("packages %+v", p)
	}
	sum := diskSum(t, one.Disk)
	later := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "root/bin/sh"), later, later); err != nil {
		t.Fatal(err)
	}
	again := make1(t, loadFile(t, filepath.Join(dir, "recipe.yaml")), options(t))
	if sum != diskSum(t, again.Disk) || one.Record.Keys[0].Key != again.Record.Keys[0].Key {
		t.Error("another checkout makes another disk")
	}
	nothing := make1(t, loadFile(t, filepath.Join(dir, "nothing.yaml")), options(t))
	if got := file(t, nothing, diskimage.RoleRoot, "/etc/motd"); got != "golden\n" || nothing.Record.Kernel != "1" {
		t.Errorf("of nothing: motd %q, kernel %s", got, nothing.Record.Kernel)
	}
	_, err = Build(t.Context(), loadFile(t, filepath.Join(dir, "less.yaml")), options(t))
	if err == nil || !strings.Contains(err.Error(), "the image has no kernel") {
		t.Errorf("of less: %v", err)
	}
}

func TestBasesRefused(t *testing.T) {
	tar := rootTar(t)
	dir := folder(t, map[string]string{
		"root.tar": string(tar), "noise.tar": strings.Repeat("noise", 1000),
		"a.yaml": with("{recipe: {file: b.yaml}}"), "b.yaml": with("{recipe: {file: sub/c.yaml}}"), "sub/c.yaml": with("{recipe: {file: ../a.yaml}}"),
		"self.yaml": with("{recipe: {file: self.yaml}}"), "arm.yaml": strings.Replace(with("{tar: {file: root.tar}}"), "arch: amd64", "arch: arm64", 1),
		"late.yaml": strings.Replace(with("{tar: {file: root.tar}}"), "epoch: 2026", "epoch: 2027", 1), "broken.yaml": "version: 1\nkind: Nonsense\n",
		"packages.yaml": strings.Replace(with("{tar: {file: root.tar}}"), "files:", "packages: [good]\nfiles:", 1)})
	for name, want := range map[string]string{
		"a.yaml":                                "sub/c.yaml:7:23: base.recipe.file: recipes in a circle: ../a.yaml -> ../b.yaml -> c.yaml -> ../a.yaml",
		"self.yaml":                             "self.yaml:7:23: base.recipe.file: recipes in a circle: self.yaml -> self.yaml",
		"{recipe: {file: arm.yaml}}":            "top.yaml:7:23: base.recipe.file: is a recipe for arm64, this one is for amd64",
		"{recipe: {file: late.yaml}}":           "has the epoch 2027-11-01T00:00:00Z, which is later",
		"{recipe: {file: broken.yaml}}":         "broken.yaml:2:",
		"packages.yaml":                         "packages.yaml:8:1: packages: the tree has no package manager that is known here",
		"{tar: {file: noise.tar}}":              "top.yaml:7:20: base.tar.file: ",
		"{disk: {file: noise.tar}}":             "top.yaml:7:21: base.disk.file: ",
		"{oci: {ref: 'registry.example/os:2'}}": "top.yaml:7:19: base.oci.ref: asked for registry.example/os:2",
		"{oci: {ref: 'registry.example/os:1'}}": "top.yaml:7:19: base.oci.ref: layer 1 of 1",
		"{disk: {ref: 'registry.example/x:1'}}": "this program opens no artifacts",
	} {
		path := filepath.Join(dir, name)
		if strings.HasPrefix(name, "{") {
			path = filepath.Join(dir, "top.yaml")
			if err := os.WriteFile(path, []byte(with(name)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		o := options(t)
		o.Bases = images(tar, true)
		_, err := Build(t.Context(), loadFile(t, path), o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got\n%v, want\n%q in it", name, err, want)
		}
		if strings.HasSuffix(name, ":1'}}") && strings.HasPrefix(name, "{oci") && !errors.Is(err, base.ErrDigest) {
			t.Errorf("%s: %v is not ErrDigest", name, err)
		}
	}
}

// What a base is decides the key, and nothing else does.
func TestKeysOfBases(t *testing.T) {
	tar := rootTar(t)
	dir := folder(t, map[string]string{"low.yaml": with("{tar: {file: root.tar}}"), "root.tar": string(tar), "top.yaml": with("{recipe: {file: low.yaml}}")})
	key := func() diskimage.Digest {
		t.Helper()
		keys := make1(t, loadFile(t, filepath.Join(dir, "top.yaml")), options(t)).Record.Keys
		i := slices.IndexFunc(keys, func(k StepKey) bool {
			return k.Step == "base" && strings.HasPrefix(k.Inputs[0].Name, "recipe ")
		})
		if i < 0 {
			t.Fatalf("keys %+v", keys)
		}
		return keys[i].Key
	}
	first := key()
	if again := key(); again != first {
		t.Error("another key without a change")
	}
	other, err := tree.FromTar(bytes.NewReader(tar), int64(len(tar)))
	if err != nil {
		t.Fatal(err)
	}
	other.Remove("/srv")
	var b bytes.Buffer
	if err := tree.WriteTar(&b, other); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root.tar"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if key() == first {
		t.Error("the same key for another tar below")
	}
}

// Provenance names the base, what it consists of, and what lies below it.
func TestProvenanceOfBases(t *testing.T) {
	tar := rootTar(t)
	dir := folder(t, map[string]string{
		"low/base.yaml": with("{oci: {ref: 'registry.example/os:1'}}"), "low/app": "application",
		"top.yaml": with("{recipe: {file: low/base.yaml}}"), "tar.yaml": with("{tar: {file: root.tar}}"), "root.tar": string(tar)})
	low := filepath.Join(dir, "low/base.yaml")
	b, err := os.ReadFile(low)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(low, bytes.Replace(b, []byte("files:\n"), []byte("files:\n  - {path: /opt/app, source: app}\n"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"top.yaml": {"low/app " + sum("application"), "low/base.yaml", "registry.example/os:1 " + sum("manifest"), "registry.example/os:1 layer 1 " + sum(string(tar)), "top.yaml"},
		"tar.yaml": {"root.tar " + sum(string(tar)), "tar.yaml"},
	} {
		o := options(t)
		o.Evidence, o.Bases = true, images(tar, false)
		im := make1(t, loadFile(t, filepath.Join(dir, name)), o)
		origin, err := im.Origin(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, in := range origin.Inputs {
			got = append(got, in.Name+" "+in.Digest.Hex())
		}
		slices.Sort(got)
		if len(got) != len(want) {
			t.Errorf("%s: inputs\n%q", name, got)
			continue
		}
		for i, w := range want {
			if !strings.HasPrefix(got[i], w) {
				t.Errorf("%s: input %q, want %q", name, got[i], w)
			}
		}
		if origin.Packages != nil || origin.Database != nil {
			t.Errorf("%s: claims a run of Debian's packages", name)
		}
		c, err := im.Contents(t.Context(), true, 1)
		if err != nil {
			t.Fatal(err)
		}
		c.Image.Disk = diskimage.DigestOf([]byte("disk"))
		document, err := evidence.SBOM(c)
		if err != nil || !json.Valid(document) || !bytes.Contains(document, []byte("/etc/motd")) {
			t.Errorf("%s: SBOM %v", name, err)
		}
	}
}

func sum(s string) string { return diskimage.DigestOf([]byte(s)).Hex() }
