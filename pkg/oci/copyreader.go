package oci

import (
	"crypto/sha256"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func newHash() hash.Hash { return sha256.New() }

// copyReader counts a blob as it moves, and where it is read from its start,
// withholds its end unless the whole matches the digest.
type copyReader struct {
	copier *copier
	desc   v1.Descriptor
	digest diskimage.Digest
	body   io.ReadCloser
	at     int64
	hash   hash.Hash // nil when not read from the start
}

func (r *copyReader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.at += int64(n)
	if r.hash != nil {
		r.hash.Write(p[:n])
		if r.at == r.desc.Size && diskimage.Digest(r.hash.Sum(nil)) != r.digest {
			return 0, &BlobError{Blob: r.digest, Range: diskimage.Extent{Len: r.desc.Size}, Err: ErrCorrupt}
		}
	}
	r.copier.advance(r.desc, r.at)
	return n, err
}

func (r *copyReader) Close() error { return r.body.Close() }
