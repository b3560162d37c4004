package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// updater is a Repository that can change what a tag names without losing what
// another does to it at the same time.
type updater interface {
	// UpdateManifest puts what edit makes of the manifest that the tag names, nil
	// if it names none, under the tag. edit may be called several times.
	UpdateManifest(ctx context.Context, tag string, mediaType types.MediaType, edit func(old []byte, desc v1.Descriptor) ([]byte, error)) (v1.Descriptor, error)
}

// join lists an image in the image index that tag names: it takes the place of
// one for the same platform. A tag that names a single image becomes an index of
// both.
func join(ctx context.Context, dst Repository, tag string, image copyNode) (v1.Hash, error) {
	u, ok := dst.(updater)
	if !ok || tag == "" {
		return v1.Hash{}, errors.New("to join images they need a tag to be joined under")
	}
	desc, err := platformDescriptor(ctx, dst, image.body, image.desc)
	if err != nil {
		return v1.Hash{}, err
	}
	out, err := u.UpdateManifest(ctx, tag, types.OCIImageIndex, func(old []byte, oldDesc v1.Descriptor) ([]byte, error) {
		return joined(ctx, dst, old, oldDesc, desc)
	})
	return out.Digest, err
}

// joined returns the index old with image in it.
func joined(ctx context.Context, repo Repository, old []byte, oldDesc, image v1.Descriptor) ([]byte, error) {
	x := v1.IndexManifest{}
	switch {
	case old == nil:
	case oldDesc.MediaType == types.OCIImageIndex:
		if err := json.Unmarshal(old, &x); err != nil {
			return nil, fmt.Errorf("image index: %w", err)
		}
	default:
		single, err := platformDescriptor(ctx, repo, old, oldDesc)
		if err != nil {
			return nil, err
		}
		x.Manifests = []v1.Descriptor{single}
	}
	x.SchemaVersion, x.MediaType = 2, types.OCIImageIndex
	x.Manifests = slices.DeleteFunc(x.Manifests, func(m v1.Descriptor) bool {
		return m.Platform != nil && m.Platform.Equals(*image.Platform)
	})
	x.Manifests = append(x.Manifests, image)
	slices.SortStableFunc(x.Manifests, func(a, b v1.Descriptor) int { return strings.Compare(platformText(a), platformText(b)) })
	b, err := json.Marshal(x)
	if err == nil && len(b) >= MaxManifest {
		err = fmt.Errorf("image index has %d bytes, fewer than %d are allowed", len(b), MaxManifest)
	}
	return b, err
}

func platformText(d v1.Descriptor) string {
	if d.Platform == nil {
		return ""
	}
	return d.Platform.String()
}

// platformDescriptor returns how an index lists an image.
func platformDescriptor(ctx context.Context, repo Repository, b []byte, desc v1.Descriptor) (v1.Descriptor, error) {
	doc, err := parseDocument(b, desc.MediaType)
	if err != nil {
		return desc, err
	}
	if !doc.MediaType.IsImage() || doc.Config == nil {
		return desc, fmt.Errorf("%v: is not one image, and cannot be joined with others", desc.Digest)
	}
	config, err := FetchBlob(ctx, repo, *doc.Config, MaxConfig)
	if err != nil {
		return desc, err
	}
	platform, err := platformIn(config)
	if err != nil {
		return desc, fmt.Errorf("%v: %w", desc.Digest, err)
	}
	return v1.Descriptor{MediaType: doc.MediaType, Digest: desc.Digest, Size: desc.Size, ArtifactType: doc.ArtifactType, Platform: platform}, nil
}

// UpdateManifest replaces what a tag of the layout names, under its lock.
func (d *Dir) UpdateManifest(ctx context.Context, tag string, mediaType types.MediaType, edit func(old []byte, desc v1.Descriptor) ([]byte, error)) (v1.Descriptor, error) {
	if err := checkTag(tag); err != nil {
		return v1.Descriptor{}, err
	}
	var out v1.Descriptor
	change := func(x *v1.IndexManifest) error {
		old, oldDesc, err := d.Manifest(ctx, tag)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		body, err := edit(old, oldDesc)
		if err != nil {
			return err
		}
		if _, err := d.PutBlob(body); err != nil {
			return err
		}
		doc, err := parseDocument(body, mediaType)
		if err != nil {
			return err
		}
		out = describe(body, doc)
		d.listUnder(x, &node{desc: out, children: doc.Manifests}, v1.Descriptor{MediaType: out.MediaType, Digest: out.Digest, Size: out.Size, ArtifactType: doc.ArtifactType}, tag)
		return nil
	}
	err := d.editIndex(ctx, change)
	return out, err
}
