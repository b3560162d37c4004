package remote_test

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

func mustRepo(t *testing.T, o remote.Options, addr, name string) *remote.Repo {
	t.Helper()
	c := remote.New(o)
	t.Cleanup(c.Close)
	r, err := c.Repo(addr, name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// randomBytes gives other bytes for each n, and the same in each run.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return b
}

func descriptor(b []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: "application/octet-stream", Size: int64(len(b)),
		Digest: v1.Hash{Algorithm: "sha256", Hex: diskimage.DigestOf(b).Hex()}}
}

func digestOf(d v1.Descriptor) diskimage.Digest {
	digest, err := diskimage.ParseDigest(d.Digest.String())
	if err != nil {
		panic(err)
	}
	return digest
}

func opener(b []byte) func(int64) (io.ReadCloser, error) {
	return func(off int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b[off:])), nil }
}

func push(t *testing.T, repo *remote.Repo, b []byte) v1.Descriptor {
	t.Helper()
	d := descriptor(b)
	if _, err := repo.PushBlob(t.Context(), d, opener(b), remote.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	return d
}

// manifestOf returns an image manifest; subject may be the zero descriptor.
func manifestOf(config, subject v1.Descriptor, artifactType string, annotations map[string]string) []byte {
	config.MediaType = "application/vnd.oci.empty.v1+json"
	m := map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": artifactType,
		"config": config, "layers": []v1.Descriptor{}}
	if subject.Size > 0 {
		m["subject"] = v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	}
	if annotations != nil {
		m["annotations"] = annotations
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}
