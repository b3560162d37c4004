// Package oci stores a disk image as an OCI artifact and reads it back. The
// bytes are those of docs/format.md.
//
//	dir, err := oci.CreateDir("store")               // an OCI image layout
//	packed, err := oci.Pack(ctx, disk, config, dir, oci.PackOptions{})
//	err = dir.Publish(ctx, packed.Descriptor, "1.0") // the tag comes last
//	err = dir.Close()
//
//	ref, err := oci.ParseRef("oci:store:1.0")
//	a, err := oci.Open(ctx, ref)                     // pins the digest
//	defer a.Close()
//	r, err := a.ReadFrames(ctx, segment, off, length)
//	err = a.Export(ctx, file, oci.ExportOptions{})
//
// It guarantees: the same disk, config and level give the same manifest digest
// with any number of workers; a layout is at every moment the old one or the
// new one; what Open, Disk and Export give was compared with its SHA-256, and
// a mismatch is an error that names the blob and the range; what is read from
// a store is bounded before it is allocated. It does not verify signatures,
// and ReadFrames gives bytes as stored: the caller checks each chunk against
// the Index.
package oci

import (
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Media types, and annotations of our own. The others are OCI's.
const (
	ArtifactType      = "application/vnd.imgpipe.disk.v1"
	MediaTypeConfig   = "application/vnd.imgpipe.disk.config.v1+json"
	MediaTypeSegment  = "application/vnd.imgpipe.disk.segment.v1+zstd"
	MediaTypeIndex    = "application/vnd.imgpipe.disk.index.v1"
	MediaTypeBlockMap = "application/vnd.imgpipe.disk.blockmap.v1"

	AnnotationDiskSize   = "com.github.imgpipe.disk.size"
	AnnotationDiskDigest = "com.github.imgpipe.disk.digest"

	annotationTitle   = "org.opencontainers.image.title"
	annotationVersion = "org.opencontainers.image.version"
	annotationCreated = "org.opencontainers.image.created"
	annotationRefName = "org.opencontainers.image.ref.name"
)

// Limits of the format.
const (
	MaxManifest = 1_000_000 // bytes
	MaxConfig   = 1 << 20   // bytes
	MaxIndex    = 16 << 20  // bytes
	MaxSegments = 96
	MaxDisk     = 1 << 44 // bytes

	maxChunks   = 458_752 // for which the chunk size is doubled
	minSegment  = 64 << 20
	minChunkLog = 14
	maxChunkLog = 22
)

// ChunkSize returns the chunk size in bytes that a disk of the given size is
// packed with.
func ChunkSize(diskSize int64) int64 {
	c := int64(64 << 10)
	for c < 1<<maxChunkLog && diskSize > c*maxChunks {
		c *= 2
	}
	return c
}

// SegmentSize returns the plain length in bytes of every segment but the last
// of a disk of the given size.
func SegmentSize(diskSize int64) int64 {
	s := int64(minSegment)
	for diskSize > s*MaxSegments {
		s *= 2
	}
	return s
}

// hashOf and digestOf convert between the two spellings of a SHA-256.
func hashOf(d diskimage.Digest) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: d.Hex()} }

func digestOf(h v1.Hash) (diskimage.Digest, error) { return diskimage.ParseDigest(h.String()) }
