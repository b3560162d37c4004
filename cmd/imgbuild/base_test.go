package main

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
)

var layerTime = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

// tarOf is disktest.Tar with the time of layers.
func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	for i := range headers {
		headers[i].ModTime, headers[i].Format = layerTime, tar.FormatPAX
	}
	return disktest.Tar(t, headers...)
}

// nasty are layers with all that is hard about layers.
func nasty(t *testing.T) [][]byte {
	reg, dir, sym, hard := byte(tar.TypeReg), byte(tar.TypeDir), byte(tar.TypeSymlink), byte(tar.TypeLink)
	many := []tar.Header{{Typeflag: dir, Name: "many/", Mode: 0o1777}}
	for i := range 300 {
		many = append(many, tar.Header{Typeflag: reg, Name: "many/" + strings.Repeat("n", i%200+1) + string(rune('a'+i/200)), Linkname: strings.Repeat("x", i), Uid: i, Gid: 2 * i})
	}
	return [][]byte{
		tarOf(t, append(many,
			tar.Header{Typeflag: dir, Name: "etc/", Mode: 0o755}, tar.Header{Typeflag: reg, Name: "etc/kept", Linkname: "kept"}, tar.Header{Typeflag: reg, Name: "etc/gone", Linkname: "gone"},
			tar.Header{Typeflag: dir, Name: "opaque/", Mode: 0o755}, tar.Header{Typeflag: reg, Name: "opaque/under", Linkname: "under"},
			tar.Header{Typeflag: dir, Name: "usr/", Mode: 0o755}, tar.Header{Typeflag: dir, Name: "usr/bin/", Mode: 0o755}, tar.Header{Typeflag: sym, Name: "bin", Linkname: "usr/bin", Mode: 0o777},
			tar.Header{Typeflag: reg, Name: "usr/bin/su", Linkname: "su", Mode: 0o4755}, tar.Header{Typeflag: hard, Name: "usr/bin/su2", Linkname: "usr/bin/su"},
			tar.Header{Typeflag: reg, Name: "README", Linkname: "upper"}, tar.Header{Typeflag: reg, Name: "readme", Linkname: "lower"},
			tar.Header{Typeflag: sym, Name: "etc/out", Linkname: "../../../etc/kept", Mode: 0o777}, tar.Header{Typeflag: sym, Name: "etc/abs", Linkname: "/etc/kept", Mode: 0o777},
			tar.Header{Typeflag: dir, Name: "dev/", Mode: 0o755}, tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, tar.Header{Typeflag: tar.TypeFifo, Name: "dev/pipe", Mode: 0o600},
			tar.Header{Typeflag: dir, Name: "turns/", Mode: 0o755}, tar.Header{Typeflag: reg, Name: "turns/in", Linkname: "x"}, tar.Header{Typeflag: reg, Name: "file", Linkname: "file"})...),
		tarOf(t,
			tar.Header{Typeflag: dir, Name: "etc/", Mode: 0o755}, tar.Header{Typeflag: reg, Name: "etc/.wh.gone"}, tar.Header{Typeflag: reg, Name: "etc/kept", Linkname: "again", Mode: 0o600},
			tar.Header{Typeflag: dir, Name: "opaque/", Mode: 0o700}, tar.Header{Typeflag: reg, Name: "opaque/.wh..wh..opq"}, tar.Header{Typeflag: reg, Name: "opaque/over", Linkname: "over"},
			tar.Header{Typeflag: reg, Name: ".wh.turns"}, tar.Header{Typeflag: reg, Name: "turns", Linkname: "a file now"},
			tar.Header{Typeflag: reg, Name: ".wh.file"}, tar.Header{Typeflag: dir, Name: "file/", Mode: 0o755}, tar.Header{Typeflag: reg, Name: "file/in", Linkname: "in"}),
		tarOf(t, tar.Header{Typeflag: hard, Name: "usr/bin/su3", Linkname: "usr/bin/su2"}, tar.Header{Typeflag: reg, Name: ".wh.readme"}),
	}
}

// image packs layers as an image, with gzip, or the second with zstd.
func image(t *testing.T, docker, zst bool, tars ...[]byte) v1.Image {
	t.Helper()
	im := v1.Image(empty.Image)
	if !docker {
		im = mutate.ConfigMediaType(mutate.MediaType(im, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	for i, b := range tars {
		mediaType := types.OCILayer
		if docker {
			mediaType = types.DockerLayer
		} else if zst && i == 1 {
			mediaType = types.OCILayerZStd
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
		if mediaType == types.OCILayerZStd {
			z, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			squeezed := z.EncodeAll(b, nil)
			open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(squeezed)), nil }
		}
		l, err := tarball.LayerFromOpener(open, tarball.WithMediaType(mediaType))
		if err != nil {
			t.Fatal(err)
		}
		if im, err = mutate.Append(im, mutate.Addendum{Layer: l}); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := im.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if im, err = mutate.ConfigFile(im, cfg); err != nil {
		t.Fatal(err)
	}
	return im
}

// inRegistry serves an image in this process, and says how it is called. Faults
// begin when it is there.
func inRegistry(t *testing.T, im v1.Image, faults ...ocitest.Fault) string {
	t.Helper()
	handler := ocitest.NewFaults(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	text := strings.TrimPrefix(server.URL, "http://") + "/os:1"
	ref, err := name.ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, im); err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		handler.Add(f)
	}
	return text
}

// fromBase is the tree that a recipe would start from.
func fromBase(t *testing.T, ref string) *tree.Tree {
	t.Helper()
	var out *tree.Tree
	a := app()
	a.Commands = []*cli.Command{{Name: "base", Flags: buildCommand().Flags, Action: func(c *cli.Context) error {
		im, closeImage, err := bases(c).Image(c.Context, ref, "amd64")
		if err != nil {
			return err
		}
		b, err := base.OCI(c.Context, *im, base.Options{CacheDir: t.TempDir()})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = b.Close() })
		out = b.Tree
		return closeImage()
	}}}
	if err := a.RunContext(t.Context(), []string{"imgbuild", "base"}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestJudgesBase compares our tree of an image with skopeo's and umoci's, and with
// crane's of an image that it can flatten: it writes the upper layers first, so
// that a hard link into a lower one comes before its file, and takes an opaque
// whiteout for a file.
func TestJudgesBase(t *testing.T) {
	if os.Getenv("IMGPIPE_JUDGES") == "" {
		t.Skip("IMGPIPE_JUDGES is not set")
	}
	for _, docker := range []bool{false, true} {
		layers := nasty(t)
		ref := inRegistry(t, image(t, docker, false, layers...)) // umoci before 0.5 knows no zstd
		dir := t.TempDir()
		judge(t, "skopeo", "copy", "--src-tls-verify=false", "docker://"+ref, "oci:"+dir+"/layout:os")
		judge(t, "umoci", "unpack", "--image", dir+"/layout:os", dir+"/bundle")
		want, err := tree.FromDir(filepath.Join(dir, "bundle/rootfs"), tree.DirOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for what, got := range map[string]*tree.Tree{"registry": fromBase(t, ref), "skopeo's layout": fromBase(t, "oci:"+dir+"/layout:os"),
			"zstd": fromBase(t, inRegistry(t, image(t, docker, true, layers...)))} {
			for _, d := range tree.DiffContents(want, got) {
				if !strings.HasPrefix(d, "/: ") { // of which no layer says anything
					t.Errorf("%s, docker %v: umoci has %s", what, docker, d)
				}
			}
		}
		plain := inRegistry(t, image(t, docker, true, layers[0],
			tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: ".wh.readme"}, tar.Header{Typeflag: tar.TypeReg, Name: "etc/kept", Linkname: "new"})))
		exported := filepath.Join(dir, "crane.tar")
		judge(t, ocitest.Tool(t, "crane"), "export", "--insecure", plain, exported)
		f, err := os.Open(exported)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		flat, err := tree.FromTar(f, info.Size())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range tree.DiffContents(flat, fromBase(t, plain)) {
			if !strings.HasPrefix(d, "/etc/out: ") { // crane leaves out links that would lead out of a folder
				t.Errorf("crane has %s", d)
			}
		}
	}
}

func judge(t *testing.T, program string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
}

// A build from a registry, and how it fails.
func TestBuildFromARegistry(t *testing.T) {
	program, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err != nil {
		t.Skip("apt-get install systemd-boot-efi: ", err)
	}
	var headers []tar.Header
	for name, text := range map[string]string{"boot/vmlinuz-1": string(program), "boot/initrd.img-1": "i", "usr/lib/systemd/boot/efi/linuxx64.efi.stub": string(program),
		"etc/os-release": "ID=debian\n", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"} {
		headers = append(headers, tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: text})
	}
	layer := tarOf(t, headers...)
	ref := inRegistry(t, image(t, false, true, layer))
	im := image(t, false, false, layer)
	layers, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	wrong := ocitest.Fault{Kind: ocitest.Blob, Method: "GET", Path: digest.Hex, Do: ocitest.WrongByte(ocitest.Middle)}
	once := inRegistry(t, im, wrong)
	wrong.Times = -1
	damaged := inRegistry(t, im, wrong)
	shared := t.TempDir()
	for _, c := range []struct {
		base string
		code int
		says string
	}{
		{"{oci: {ref: '" + ref + "'}}", 0, ""},
		{"{oci: {ref: '" + once + "'}}", 0, ""}, // it is asked again
		{"{oci: {ref: '" + strings.TrimSuffix(ref, ":1") + "'}}", ui.ExitUsage, "names neither a tag nor a digest"},
		{"{oci: {ref: '" + ref + "2'}}", ui.ExitSource, "recipe.yaml:7:19: base.oci.ref: "},
		{"{oci: {ref: '" + damaged + "'}}", ui.ExitTrust, "recipe.yaml:7:19: base.oci.ref: layer 1 of 1"},
		{"{oci: {ref: 'debian:12'}}", ui.ExitUsage, "base.oci.ref: reference \"debian:12\": neither a layout"},
		{"{oci: {ref: 'oci:nowhere'}}", ui.ExitSource, "base.oci.ref: oci:"},
		{"{disk: {ref: '" + ref + "'}}", ui.ExitSource, "base.disk.ref: "},
		{"{disk: {ref: 'oci:images:small-1'}}", 0, ""}, // the one that was just built
		{"{oci: {ref: 'oci:images:small-1'}}", ui.ExitSource, "base: {disk: {ref: …}}"},
	} {
		dir := shared
		if c.code != 0 && !strings.Contains(c.base, "oci:images") {
			dir = t.TempDir()
		}
		recipe := filepath.Join(dir, "recipe.yaml")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		text := "version: 1\nkind: DiskImage\nname: small\nrelease: \"1\"\narch: amd64\nepoch: 2026-11-01T00:00:00Z\nbase: " + c.base + `
disk: {partitions: [{name: esp, type: esp, filesystem: fat32, size: 64MiB}, {name: root, type: root, filesystem: ext4, grow: true}]}
`
		if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		a := app()
		a.Writer, a.ErrWriter = io.Discard, io.Discard
		err := ui.Run(t.Context(), a, []string{"imgbuild", "build", recipe, "-o", "oci:" + dir + "/images:small-1", "--cache", t.TempDir(), "--provenance", "--sbom"})
		if ui.Code(err) != c.code || c.code != 0 && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: exit code %d, want %d: %v", c.base, ui.Code(err), c.code, err)
		}
	}
}
