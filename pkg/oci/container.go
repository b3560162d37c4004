package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Container is a container image for one platform, pinned by the digest of its
// manifest: what other tools make, as opposed to an Artifact. It is safe for
// concurrent use.
type Container struct {
	Digest   diskimage.Digest // of the manifest
	Platform string           // linux/arm64/v8
	Layers   []ContainerLayer // the lowest first

	layers []v1.Descriptor
	repo   Repository
}

// ContainerLayer says which bytes a layer has to be.
type ContainerLayer struct {
	Digest diskimage.Digest // as it is stored
	Size   int64            // bytes, as it is stored
	DiffID diskimage.Digest // of the tar, unpacked
}

// MaxLayers bounds a container image. Docker makes at most 127.
const MaxLayers = 512

const (
	maxContainerConfig = 8 << 20
	maxNested          = 3 // image indexes within each other
)

// layerTypes are those that are read; gzip and zstd are told by the bytes.
var layerTypes = []types.MediaType{types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer,
	types.DockerUncompressedLayer, "application/vnd.docker.image.rootfs.diff.tar.zstd"}

// baseline are the variants that every machine of an architecture has.
var baseline = map[string]string{"amd64": "v1", "arm64": "v8"}

// OpenContainer reads the manifest and the config of the container image that ref
// names for ref.Platform, "os/architecture", and no layer. An image for a variant
// of the architecture that not every machine has is not chosen. Layers that may
// not be distributed, or are encrypted, are refused, and artifacts of other kinds.
func OpenContainer(ctx context.Context, repo Repository, ref Ref) (*Container, error) {
	c, err := openContainer(ctx, repo, ref)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	return c, nil
}

func openContainer(ctx context.Context, repo Repository, ref Ref) (*Container, error) {
	body, desc, err := repo.Manifest(ctx, ref.reference())
	if err != nil {
		return nil, err
	}
	for nested := 0; desc.MediaType.IsIndex(); nested++ {
		if nested == maxNested {
			return nil, fmt.Errorf("more than %d image indexes within each other", maxNested)
		}
		child, err := chooseContainer(body, ref.Platform)
		if err != nil {
			return nil, err
		}
		if body, desc, err = repo.Manifest(ctx, child.Digest.String()); err != nil {
			return nil, err
		}
	}
	if !desc.MediaType.IsImage() {
		return nil, fmt.Errorf("media type %q is no container image", desc.MediaType)
	}
	var m v1.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if err := checkContainer(&m); err != nil {
		return nil, err
	}
	c := &Container{Digest: diskimage.DigestOf(body), layers: m.Layers, repo: repo}
	b, err := repo.Fetch(ctx, m.Config, maxContainerConfig)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return c, c.configure(b, ref.Platform)
}

// chooseContainer returns what an image index has for a platform.
func chooseContainer(body []byte, platform string) (v1.Descriptor, error) {
	var x v1.IndexManifest
	if err := json.Unmarshal(body, &x); err != nil {
		return v1.Descriptor{}, fmt.Errorf("image index: %w", err)
	}
	var have []string
	var best *v1.Descriptor
	for i := range x.Manifests {
		m := &x.Manifests[i]
		if m.Platform == nil {
			if len(x.Manifests) == 1 && (m.MediaType.IsImage() || m.MediaType.IsIndex()) {
				return *m, nil // its config decides
			}
			continue
		}
		if m.Platform.OS != "unknown" { // attestations of buildkit
			have = append(have, platformOf(m.Platform.OS, m.Platform.Architecture, m.Platform.Variant))
		}
		if fits(platform, m.Platform.OS, m.Platform.Architecture, m.Platform.Variant) && (best == nil || m.Platform.Variant == "" && best.Platform.Variant != "") {
			best = m
		}
	}
	if best == nil {
		slices.Sort(have)
		return v1.Descriptor{}, fmt.Errorf("image index: no image for %s that every such machine can run; it has %s", platform, strings.Join(have, ", "))
	}
	return *best, nil
}

func platformOf(os, arch, variant string) string {
	return strings.TrimSuffix(os+"/"+arch+"/"+variant, "/")
}

// fits reports whether any machine of a platform runs an image.
func fits(platform, os, arch, variant string) bool {
	return os+"/"+arch == platform && (variant == "" || variant == baseline[arch])
}

// checkContainer looks at what a manifest lists before anything of it is fetched.
func checkContainer(m *v1.Manifest) error {
	if !m.Config.MediaType.IsConfig() {
		kind := string(m.Config.MediaType)
		if m.Config.MediaType == MediaTypeConfig {
			return fmt.Errorf("is a disk image of imgpipe, not a container image: base: {disk: {ref: …}}")
		}
		return fmt.Errorf("is an artifact (%s), not a container image", kind)
	}
	if len(m.Layers) > MaxLayers {
		return fmt.Errorf("%d layers, at most %d", len(m.Layers), MaxLayers)
	}
	for i, l := range m.Layers {
		switch {
		case !l.MediaType.IsDistributable() || strings.Contains(string(l.MediaType), "nondistributable"):
			return fmt.Errorf("layer %d is a foreign layer (%s): it may not be had from a registry", i+1, l.MediaType)
		case !slices.Contains(layerTypes, l.MediaType):
			return fmt.Errorf("layer %d has media type %q, which is not read here", i+1, l.MediaType)
		case l.Size < 0:
			return fmt.Errorf("layer %d has %d bytes", i+1, l.Size)
		}
	}
	return nil
}

// configure takes the platform and the diff IDs from an image's config.
func (c *Container) configure(b []byte, platform string) error {
	var cfg v1.ConfigFile
	if err := json.Unmarshal(b, &cfg); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	c.Platform = platformOf(cfg.OS, cfg.Architecture, cfg.Variant)
	if !fits(platform, cfg.OS, cfg.Architecture, cfg.Variant) {
		return fmt.Errorf("the image is for %s, want %s", c.Platform, platform)
	}
	if n := len(cfg.RootFS.DiffIDs); n != len(c.layers) {
		return fmt.Errorf("config: %d diff IDs for %d layers", n, len(c.layers))
	}
	for i, l := range c.layers {
		digest, err := digestOf(l.Digest)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		diffID, err := digestOf(cfg.RootFS.DiffIDs[i])
		if err != nil {
			return fmt.Errorf("layer %d: diff ID: %w", i+1, err)
		}
		c.Layers = append(c.Layers, ContainerLayer{digest, l.Size, diffID})
	}
	return nil
}

// Layer opens layer i as it is stored. The bytes are not compared with anything.
func (c *Container) Layer(ctx context.Context, i int) (io.ReadCloser, error) {
	return c.repo.Blob(ctx, c.layers[i], 0, c.layers[i].Size)
}
