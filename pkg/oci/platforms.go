package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

// updater is a Repository that can change what a tag names without losing what
// another does to it at the same time.
type updater interface {
	// UpdateManifest puts what edit makes of the manifest that the tag names
	// under the tag.
	UpdateManifest(ctx context.Context, tag string, mediaType types.MediaType, edit editManifest) (v1.Descriptor, error)
}

// editManifest changes a manifest, nil if there is none. It may be called several
// times, and changes nothing that it made itself.
type editManifest = func(old []byte, desc v1.Descriptor) ([]byte, error)

const (
	updateLooks = 3  // at what became of an update
	updateTries = 32 // to make it
	updatePause = 200 * time.Millisecond
)

// updateTag does for registries, which have no such step, what UpdateManifest does:
// it writes, and looks again after growing pauses whether another client's
// write took the edit back, and makes it again. An edit is lost only to a client
// that read before it and writes after the last look, 700 ms to 1.4 s later.
func updateTag(ctx context.Context, repo Repository, tag string, mediaType types.MediaType, edit editManifest) (v1.Descriptor, error) {
	for look, tries := 0, 0; ; look++ {
		old, desc, err := repo.Manifest(ctx, tag)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return desc, err
		}
		body, err := edit(old, desc)
		if err != nil {
			return desc, err
		}
		switch {
		case bytes.Equal(old, body) && look >= updateLooks:
			return desc, nil
		case bytes.Equal(old, body):
			if tries == 0 {
				return desc, nil // it was so before
			}
		case tries == updateTries:
			return desc, fmt.Errorf("tag %s: other clients change it all the time", tag)
		default:
			if _, err := repo.PushManifest(ctx, tag, mediaType, body); err != nil {
				return desc, err
			}
			tries, look = tries+1, 0
		}
		pause := updatePause << look
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return desc, ctx.Err()
		}
	}
}

// join lists an image in the image index that tag names: it takes the place of
// one for the same platform. A tag that names a single image becomes an index of
// both.
func join(ctx context.Context, dst Repository, tag string, image copyNode) (v1.Hash, error) {
	if tag == "" {
		return v1.Hash{}, errors.New("to join images they need a tag to be joined under")
	}
	desc, err := platformDescriptor(ctx, dst, image.body, image.desc)
	if err != nil {
		return v1.Hash{}, err
	}
	update := func(ctx context.Context, tag string, mediaType types.MediaType, edit editManifest) (v1.Descriptor, error) {
		return updateTag(ctx, dst, tag, mediaType, edit)
	}
	if u, ok := dst.(updater); ok {
		update = u.UpdateManifest
	}
	out, err := update(ctx, tag, types.OCIImageIndex, func(old []byte, oldDesc v1.Descriptor) ([]byte, error) {
		return joined(ctx, dst, old, oldDesc, desc)
	})
	return out.Digest, err
}

// PublishIndex lists images of the layout in one image index under tag, each for
// the platform that its config says, of which no two may be the same. With keep,
// those of other platforms stay that the tag names; else these are all. It is as
// durable as Publish, and returns the index's descriptor.
func (d *Dir) PublishIndex(ctx context.Context, images []v1.Descriptor, tag string, keep bool) (v1.Descriptor, error) {
	if len(images) == 0 {
		return v1.Descriptor{}, errors.New("an image index of no images")
	}
	var children []v1.Descriptor
	for _, m := range images {
		body, desc, err := d.Manifest(ctx, m.Digest.String())
		if err != nil {
			return v1.Descriptor{}, err
		}
		desc.MediaType = m.MediaType
		child, err := platformDescriptor(ctx, d, body, desc)
		if err != nil {
			return v1.Descriptor{}, err
		}
		for _, c := range children {
			if c.Platform.Equals(*child.Platform) {
				return v1.Descriptor{}, fmt.Errorf("%v and %v are both for %v", c.Digest, child.Digest, c.Platform)
			}
		}
		children = append(children, child)
	}
	return d.UpdateManifest(ctx, tag, types.OCIImageIndex, func(old []byte, oldDesc v1.Descriptor) ([]byte, error) {
		if !keep {
			old = nil
		}
		for _, c := range children {
			var err error
			if old, err = joined(ctx, d, old, oldDesc, c); err != nil {
				return nil, err
			}
			oldDesc = v1.Descriptor{MediaType: types.OCIImageIndex}
		}
		return old, nil
	})
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
		return desc, fmt.Errorf("%v: is not a single image", desc.Digest)
	}
	config, err := repo.Fetch(ctx, *doc.Config, MaxConfig)
	if err != nil {
		return desc, err
	}
	platform, err := platformIn(config)
	if err != nil {
		return desc, fmt.Errorf("%v: %w", desc.Digest, err)
	}
	// Without artifactType: skopeo before 1.14 would drop it, and change the digest.
	return v1.Descriptor{MediaType: doc.MediaType, Digest: desc.Digest, Size: desc.Size, Platform: platform}, nil
}

// UpdateManifest replaces what a tag of the layout names, under its lock.
func (d *Dir) UpdateManifest(ctx context.Context, tag string, mediaType types.MediaType, edit editManifest) (v1.Descriptor, error) {
	if err := names.CheckTag(tag); err != nil {
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
