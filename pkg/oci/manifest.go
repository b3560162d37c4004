package oci

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// blobInfo is a blob that was written.
type blobInfo struct {
	digest diskimage.Digest
	size   int64
}

func (b blobInfo) descriptor(mediaType types.MediaType, title string) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: hashOf(b.digest), Size: b.size}
	if title != "" {
		d.Annotations = map[string]string{annotationTitle: title}
	}
	return d
}

func segmentTitle(i int) string { return fmt.Sprintf("disk.raw.zst.%03d", i) }

const (
	indexTitle    = "disk.index"
	blockMapTitle = "disk.blockmap"
)

// encodeManifest returns the manifest of docs/format.md, section 2.
func encodeManifest(c *Config, config, index, blockMap blobInfo, segments []diskimage.Segment) ([]byte, error) {
	m := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  ArtifactType,
		Config:        config.descriptor(MediaTypeConfig, ""),
		Annotations: map[string]string{
			annotationTitle:      c.Name,
			annotationCreated:    c.Epoch.UTC().Format(time.RFC3339),
			AnnotationDiskSize:   strconv.FormatInt(c.Disk.Size, 10),
			AnnotationDiskDigest: c.Disk.Digest.String(),
		},
	}
	if c.Version != "" {
		m.Annotations[annotationVersion] = c.Version
	}
	for i, s := range segments {
		m.Layers = append(m.Layers, blobInfo{s.Digest, s.Size}.descriptor(MediaTypeSegment, segmentTitle(i)))
	}
	m.Layers = append(m.Layers,
		index.descriptor(MediaTypeIndex, indexTitle),
		blockMap.descriptor(MediaTypeBlockMap, blockMapTitle))
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(b) >= MaxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, fewer than %d are allowed", len(b), MaxManifest)
	}
	return b, nil
}

// manifest is a parsed manifest of a disk.
type manifest struct {
	config, index, blockMap v1.Descriptor
	segments                []v1.Descriptor
}

// parseManifest reads the manifest of a disk and checks all that can be
// checked without its blobs.
func parseManifest(b []byte) (*manifest, error) {
	if len(b) >= MaxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, fewer than %d are allowed", len(b), MaxManifest)
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.SchemaVersion != 2 || m.MediaType != types.OCIManifestSchema1 || m.ArtifactType != ArtifactType {
		return nil, fmt.Errorf("manifest: not a disk image of imgpipe: mediaType %q, artifactType %q, want %q",
			m.MediaType, m.ArtifactType, ArtifactType)
	}
	n := len(m.Layers) - 2
	if n < 1 || n > MaxSegments {
		return nil, fmt.Errorf("manifest: %d layers, want 1 to %d segments, the index and the block map", len(m.Layers), MaxSegments)
	}
	out := &manifest{config: m.Config, segments: m.Layers[:n], index: m.Layers[n], blockMap: m.Layers[n+1]}
	if err := checkDescriptor(m.Config, MediaTypeConfig, ""); err != nil {
		return nil, fmt.Errorf("manifest: config: %w", err)
	}
	for i, l := range m.Layers {
		mediaType, title := types.MediaType(MediaTypeSegment), ""
		switch i {
		case n:
			mediaType, title = MediaTypeIndex, indexTitle
		case n + 1:
			mediaType, title = MediaTypeBlockMap, blockMapTitle
		default:
			title = segmentTitle(i)
		}
		if err := checkDescriptor(l, mediaType, title); err != nil {
			return nil, fmt.Errorf("manifest: layer %d: %w", i, err)
		}
	}
	return out, nil
}

func checkDescriptor(d v1.Descriptor, mediaType types.MediaType, title string) error {
	if d.MediaType != mediaType {
		return fmt.Errorf("media type %q, want %q", d.MediaType, mediaType)
	}
	if got := d.Annotations[annotationTitle]; got != title {
		return fmt.Errorf("title %q, want %q", got, title)
	}
	if d.Size <= 0 || len(d.Data) != 0 || len(d.URLs) != 0 {
		return fmt.Errorf("size %d, or data or urls beside the digest", d.Size)
	}
	_, err := digestOf(d.Digest)
	return err
}

// matches compares the segments of the index with the layers.
func (m *manifest) matches(x *diskimage.Index) error {
	if len(m.segments) != len(x.Segments) {
		return fmt.Errorf("manifest has %d segments, the index %d", len(m.segments), len(x.Segments))
	}
	for i, s := range x.Segments {
		if l := m.segments[i]; l.Digest != hashOf(s.Digest) || l.Size != s.Size {
			return fmt.Errorf("segment %d: manifest says %v (%d bytes), the index %v (%d bytes)",
				i, l.Digest, l.Size, s.Digest, s.Size)
		}
	}
	return nil
}
