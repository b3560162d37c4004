package oci_test

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	ggcrremote "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// container is an image of another tool's for a platform, with two random layers.
func container(t *testing.T, arch, variant string, docker bool) v1.Image {
	t.Helper()
	im, err := random.Image(1000, 2) // docker's media types
	if err != nil {
		t.Fatal(err)
	}
	if !docker {
		im = mutate.MediaType(mutate.ConfigMediaType(im, types.OCIConfigJSON), types.OCIManifestSchema1)
	}
	cfg, err := im.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Variant = "linux", arch, variant
	if im, err = mutate.ConfigFile(im, cfg); err != nil {
		t.Fatal(err)
	}
	return im
}

func digestOf(t *testing.T, im v1.Image) string {
	t.Helper()
	h, err := im.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// containers is a registry with an image under each tag.
func containers(t *testing.T, tags map[string]ggcrremote.Taggable) *remote.Repo {
	t.Helper()
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	for tag, what := range tags {
		ref, err := name.ParseReference(host + "/c:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		switch what := what.(type) {
		case v1.Image:
			err = ggcrremote.Write(ref, what)
		case v1.ImageIndex:
			err = ggcrremote.WriteIndex(ref, what)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	client := remote.New(remote.Options{})
	t.Cleanup(client.Close)
	repo, err := client.Repo(host, "c")
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// index lists images by "arch/variant"; "unknown" is what buildkit lists its
// attestations as.
func index(docker bool, images ...mutate.IndexAddendum) v1.ImageIndex {
	x := mutate.AppendManifests(empty.Index, images...)
	if docker {
		return mutate.IndexMediaType(x, types.DockerManifestList)
	}
	return x
}

func listed(im v1.Image, os, arch, variant string) mutate.IndexAddendum {
	return mutate.IndexAddendum{Add: im, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch, Variant: variant}}}
}

func TestContainerOfThePlatform(t *testing.T) {
	plain, v3, arm, arm9 := container(t, "amd64", "", true), container(t, "amd64", "v3", true), container(t, "arm64", "v8", false), container(t, "arm64", "v9", false)
	attestation := container(t, "unknown", "", false)
	repo := containers(t, map[string]ggcrremote.Taggable{
		"all": index(false, listed(attestation, "unknown", "unknown", ""), listed(v3, "linux", "amd64", "v3"), listed(plain, "linux", "amd64", ""),
			listed(arm9, "linux", "arm64", "v9"), listed(arm, "linux", "arm64", "v8"), listed(plain, "windows", "amd64", "")),
		"docker": index(true, listed(plain, "linux", "amd64", "")), "single": plain, "late": index(false, listed(v3, "linux", "amd64", "v3")),
		"nested": index(false, mutate.IndexAddendum{Add: index(false, listed(plain, "linux", "amd64", ""))}),
	})
	for _, c := range []struct {
		tag, platform string
		want          v1.Image
		err           string
	}{
		{"all", "linux/amd64", plain, ""}, {"all", "linux/arm64", arm, ""}, {"docker", "linux/amd64", plain, ""}, {"single", "linux/amd64", plain, ""},
		{"nested", "linux/amd64", plain, ""},
		{"single", "linux/arm64", nil, "the image is for linux/amd64, want linux/arm64"},
		{"late", "linux/amd64", nil, "no image for linux/amd64 that every such machine can run; it has linux/amd64/v3"},
		{"docker", "linux/arm64", nil, "it has linux/amd64"},
		{"gone", "linux/amd64", nil, "gone"},
	} {
		got, err := oci.OpenContainer(t.Context(), repo, oci.Ref{Registry: "r", Name: "c", Tag: c.tag, Platform: c.platform})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s for %s: %v, want %q", c.tag, c.platform, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s for %s: %v", c.tag, c.platform, err)
			continue
		}
		if got.Digest.String() != digestOf(t, c.want) {
			t.Errorf("%s for %s: %v", c.tag, c.platform, got.Digest)
		}
		layers, _ := c.want.Layers()
		for i, l := range layers {
			checkLayer(t, got, i, l)
		}
	}
}

func checkLayer(t *testing.T, got *oci.Container, i int, l v1.Layer) {
	t.Helper()
	diffID, _ := l.DiffID()
	rc, err := got.Layer(context.Background(), i)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil || diskimage.DigestOf(b) != got.Layers[i].Digest || int64(len(b)) != got.Layers[i].Size || got.Layers[i].DiffID.String() != diffID.String() {
		t.Errorf("layer %d: %+v: %d bytes, %v", i, got.Layers[i], len(b), err)
	}
}

func TestContainerInALayout(t *testing.T) {
	im := container(t, "amd64", "", false)
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(im); err != nil {
		t.Fatal(err)
	}
	d, err := oci.OpenDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := oci.OpenContainer(t.Context(), d, oci.Ref{Dir: dir, Platform: "linux/amd64"})
	if err != nil || got.Digest.String() != digestOf(t, im) {
		t.Errorf("got %v, %v", got, err)
	}
}

// odd is an image whose manifest says something else.
type odd struct {
	v1.Image
	manifest []byte
}

func (o odd) RawManifest() ([]byte, error) { return o.manifest, nil }
func (o odd) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(o.manifest))
	return h, err
}

func TestContainerRefused(t *testing.T) {
	im := container(t, "amd64", "", false)
	manifest, err := im.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	with := func(old, new string) v1.Image {
		return odd{im, bytes.Replace(manifest, []byte(old), []byte(new), 1)}
	}
	layer := string(types.DockerLayer)
	foreign, err := mutate.AppendLayers(im, static.NewLayer([]byte("x"), types.OCIRestrictedLayer))
	if err != nil {
		t.Fatal(err)
	}
	more, err := mutate.Append(im, slices.Repeat([]mutate.Addendum{{Layer: static.NewLayer([]byte("x"), types.OCILayer)}}, 600)...)
	if err != nil {
		t.Fatal(err)
	}
	tags := map[string]ggcrremote.Taggable{"foreign": foreign, "many": more,
		"encrypted": with(layer, layer+"+encrypted"), "artifact": with(string(types.OCIConfigJSON), "application/vnd.cncf.helm.config.v1+json"),
		"ours": with(string(types.OCIConfigJSON), oci.MediaTypeConfig)}
	repo := containers(t, tags)
	for tag, want := range map[string]string{"foreign": "layer 3 is a foreign layer", "many": "602 layers, at most 512", "encrypted": "which is not read here",
		"artifact": "is an artifact (application/vnd.cncf.helm.config.v1+json)", "ours": "base: {disk: {ref: …}}"} {
		_, err := oci.OpenContainer(t.Context(), repo, oci.Ref{Registry: "r", Name: "c", Tag: tag, Platform: "linux/amd64"})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "r/c:"+tag) {
			t.Errorf("%s: got %v, want %q", tag, err, want)
		}
	}
}
