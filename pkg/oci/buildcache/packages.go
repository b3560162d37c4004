package buildcache

import (
	"context"
	"encoding/json"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// The types of a mirror of packages: an artifact with a layer a package.
const (
	PackagesType = "application/vnd.imgpipe.packages.v1"
	PackageType  = "application/vnd.debian.binary-package"
)

// Package is a file to be mirrored.
type Package struct {
	Name   string // of the file: its title in the artifact
	Path   string // where it lies
	Size   int64  // bytes
	Digest diskimage.Digest
}

// PutPackages stores files and names them all by a tag, so that nothing collects
// them. done is told how many bytes of how many are there; it may be nil.
func PutPackages(ctx context.Context, repo oci.Repository, tag string, files []Package, done func(have, of int64)) (sent int64, err error) {
	var have, of int64
	for _, f := range files {
		of += f.Size
	}
	m := struct {
		v1.Manifest
		ArtifactType string `json:"artifactType"`
	}{v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}, PackagesType}
	if m.Config, sent, err = putBytes(ctx, repo, "application/vnd.oci.empty.v1+json", []byte("{}")); err != nil {
		return sent, err
	}
	for _, f := range files {
		d := v1.Descriptor{
			MediaType: PackageType, Size: f.Size, Digest: v1.Hash{Algorithm: "sha256", Hex: f.Digest.Hex()},
			Annotations: map[string]string{"org.opencontainers.image.title": f.Name},
		}
		n, err := repo.PushBlob(ctx, d, func(off int64) (io.ReadCloser, error) {
			file, err := os.Open(f.Path)
			if err != nil {
				return nil, err
			}
			_, err = file.Seek(off, io.SeekStart)
			return file, err
		}, oci.PushOptions{})
		if sent += n; err != nil {
			return sent, err
		}
		m.Layers = append(m.Layers, d)
		if have += f.Size; done != nil {
			done(have, of)
		}
	}
	body, err := json.Marshal(m)
	if err != nil {
		return sent, err
	}
	_, err = repo.PushManifest(ctx, tag, types.OCIManifestSchema1, body)
	return sent, err
}
