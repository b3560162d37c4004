package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// TestBootsFromAContainerImage boots a machine made of a container image that is
// what the example's Containerfile would make: Debian's packages as one layer, as
// the package manager left them, and what the Containerfile adds as another. Then
// a machine made of that machine's disk, raw and as an artifact.
func TestBootsFromAContainerImage(t *testing.T) {
	h := newHouse(t)
	dir := h.recipes("recipes")
	at := filepath.Join(dir, "from-containerfile")
	var server struct {
		Keys []struct{ Inputs []struct{ Digest string } }
	}
	h.json(h.run(h.imgbuild, "build", filepath.Join(dir, "debian-server.yaml"), "-o", "oci:"+h.dir+"/images:server", "--cache", h.cache, "--json"), &server)
	root := filepath.Join(h.cache, "roots", strings.TrimPrefix(server.Keys[0].Inputs[0].Digest, "sha256:")+".tar")
	h.container(filepath.Join(at, "container"), root, filepath.Join(at, "hello.service"))

	ref := "oci:" + h.dir + "/images:container"
	build := func(recipe, ref string, more ...string) string {
		var built struct{ DiskDigest string }
		h.json(h.run(h.imgbuild, append([]string{"build", recipe, "-o", ref, "--cache", h.cache, "--json", "--sbom", "--provenance"}, more...)...), &built)
		return built.DiskDigest
	}
	recipe := filepath.Join(at, "recipe.yaml")
	first := build(recipe, ref, "--raw", filepath.Join(at, "disk.raw"))
	if again := build(recipe, ref+"-again"); again != first {
		t.Errorf("built again it is %s, was %s", again, first)
	}
	h.run(h.imgbuild, "test", ref, "--timeout", "15m", "--log", filepath.Join(h.dir, "console"))

	// The disk of that machine, customised.
	text, err := os.ReadFile(recipe)
	if err != nil {
		t.Fatal(err)
	}
	h.run("qemu-img", "convert", "-O", "qcow2", filepath.Join(at, "disk.raw"), filepath.Join(at, "disk.qcow2"))
	disks := map[string]string{"file": "disk.qcow2", "ref": "oci:../../images:container"}
	var digests []string
	for kind, value := range disks {
		changed := strings.Replace(string(text), `oci: {ref: "${image}"}`, "disk: {"+kind+": '"+value+"'}", 1)
		changed = strings.Replace(changed, "  image: \"oci:container:latest\" # a layout beside this file\n", "", 1)
		changed = strings.Replace(changed, "made of a container image", "made of a disk", 1)
		name := filepath.Join(at, kind+".yaml")
		if err := os.WriteFile(name, []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, build(name, ref+"-"+kind))
	}
	if digests[0] != digests[1] {
		t.Errorf("of the qcow2 and of the artifact come different disks: %s", digests)
	}
	h.run(h.imgbuild, "test", ref+"-file", "--timeout", "15m", "--log", filepath.Join(h.dir, "console-disk"))
}

// container writes a layout with an image of a root and a unit over it.
func (h *house) container(to, root, unit string) {
	h.t.Helper()
	hello, err := os.ReadFile(unit)
	if err != nil {
		h.t.Fatal(err)
	}
	over := tarOf(h.t, tar.Header{Typeflag: tar.TypeReg, Name: "etc/systemd/system/hello.service", Linkname: string(hello)},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "etc/systemd/system/multi-user.target.wants/hello.service", Linkname: "/etc/systemd/system/hello.service", Mode: 0o777},
		tar.Header{Typeflag: tar.TypeReg, Name: "usr/share/doc/.wh..wh..opq"})
	im := mutate.ConfigMediaType(mutate.MediaType(v1.Image(empty.Image), types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, open := range []tarball.Opener{
		func() (io.ReadCloser, error) { return os.Open(root) },
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(over)), nil },
	} {
		l, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(1))
		if err != nil {
			h.t.Fatal(err)
		}
		if im, err = mutate.Append(im, mutate.Addendum{Layer: l}); err != nil {
			h.t.Fatal(err)
		}
	}
	cfg, err := im.ConfigFile()
	if err != nil {
		h.t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if im, err = mutate.ConfigFile(im, cfg); err != nil {
		h.t.Fatal(err)
	}
	p, err := layout.Write(to, empty.Index)
	if err == nil {
		err = p.AppendImage(im, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}))
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// json reads what a command printed.
func (h *house) json(b []byte, to any) {
	h.t.Helper()
	if err := json.Unmarshal(b, to); err != nil {
		h.t.Fatalf("%v in %s", err, b)
	}
}
