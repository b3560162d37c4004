// Package buildcache shares entries of a build's cache through a repository
// (docs/buildcache.md): a record, and the tar that it vouches for, as an artifact.
//
//	found, err := buildcache.Get(ctx, repo, "roots/4f…", dir)  // dir/roots/4f….tar and .json
//	sent, err := buildcache.Put(ctx, repo, "roots/4f…", dir)
//
// It guarantees that an entry appears in the directory whole, the record last,
// and that its tar has the length and SHA-256 that the record says. It does not
// say whether a record is to be believed: who may write to the repository decides.
package buildcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// The types of an entry.
const (
	ArtifactType = "application/vnd.imgpipe.cache.v1"
	recordType   = "application/vnd.imgpipe.cache.record.v1+json"
	layerType    = "application/vnd.imgpipe.cache.tar.v1+zstd"
)

const maxRecord = 16 << 20

var nameShape = regexp.MustCompile(`^[a-z]{1,32}/[0-9a-f]{64}$`)

// vouched is what a record says of its tar: nothing where it has none.
type vouched struct {
	Size   int64            `json:"size"`
	Digest diskimage.Digest `json:"digest"`
}

func tag(name string) string { return strings.ReplaceAll(name, "/", "-") }

// Get brings the entry name, KIND/KEY with the key in hex, into dir. found is false
// where repo has none.
func Get(ctx context.Context, repo oci.Repository, name, dir string) (found bool, err error) {
	if !nameShape.MatchString(name) {
		return false, fmt.Errorf("cache entry %q: want KIND/KEY", name)
	}
	body, desc, err := repo.Manifest(ctx, tag(name))
	if errors.Is(err, oci.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cache entry %s: %w", name, err)
	}
	record, err := get(ctx, repo, body, filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return false, fmt.Errorf("cache entry %s (%v): %w", name, desc.Digest, err)
	}
	err = writeFile(filepath.Join(dir, filepath.FromSlash(name)+".json"), bytes.NewReader(record), nil)
	return err == nil, err
}

func get(ctx context.Context, repo oci.Repository, body []byte, path string) (record []byte, err error) {
	var m struct {
		v1.Manifest
		ArtifactType string `json:"artifactType"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	if m.ArtifactType != ArtifactType || len(m.Layers) > 1 {
		return nil, fmt.Errorf("is no entry of a build cache: %q with %d layers", m.ArtifactType, len(m.Layers))
	}
	if record, err = repo.Fetch(ctx, m.Config, maxRecord); err != nil {
		return nil, err
	}
	var want vouched
	if err := json.Unmarshal(record, &want); err != nil {
		return nil, err
	}
	if len(m.Layers) == 0 {
		return record, nil
	}
	layer := m.Layers[0]
	blob, err := repo.Blob(ctx, layer, 0, layer.Size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	z, err := zstd.NewReader(blob, zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return record, writeFile(path+".tar", io.LimitReader(z, want.Size+1), &want)
}

// writeFile makes the file path of r, which has to be what want says.
func writeFile(path string, r io.Reader, want *vouched) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer f.Abort() // nothing after a commit
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	if err == nil && want != nil {
		err = want.check(n, h)
	}
	if err != nil {
		return err
	}
	return f.Commit()
}

// check compares a tar that was read with what its record says.
func (v *vouched) check(n int64, h hash.Hash) error {
	if got := diskimage.Digest(h.Sum(nil)); n != v.Size || got != v.Digest {
		return fmt.Errorf("its tar is %v of %d bytes, the record says %v of %d", got, n, v.Digest, v.Size)
	}
	return nil
}

// Put stores the entry name of dir in repo, unless it has one of that name. sent is
// how many bytes went out.
func Put(ctx context.Context, repo oci.Repository, name, dir string) (sent int64, err error) {
	if !nameShape.MatchString(name) {
		return 0, fmt.Errorf("cache entry %q: want KIND/KEY", name)
	}
	if _, _, err := repo.Manifest(ctx, tag(name)); err == nil {
		return 0, nil
	} else if !errors.Is(err, oci.ErrNotFound) {
		return 0, fmt.Errorf("cache entry %s: %w", name, err)
	}
	path := filepath.Join(dir, filepath.FromSlash(name))
	record, err := os.ReadFile(path + ".json")
	if err != nil {
		return 0, err
	}
	m := struct {
		v1.Manifest
		ArtifactType string `json:"artifactType"`
	}{v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}, ArtifactType}
	if m.Config, sent, err = putBytes(ctx, repo, recordType, record); err != nil {
		return sent, err
	}
	if _, err := os.Stat(path + ".tar"); err == nil {
		var want vouched
		if err := json.Unmarshal(record, &want); err != nil {
			return sent, fmt.Errorf("cache entry %s: %w", name, err)
		}
		layer, n, err := putTar(ctx, repo, path+".tar", &want)
		sent += n
		if err != nil {
			return sent, fmt.Errorf("cache entry %s: %w", name, err)
		}
		m.Layers = append(m.Layers, layer)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return sent, err
	}
	_, err = repo.PushManifest(ctx, tag(name), types.OCIManifestSchema1, body)
	return sent, err
}

func putBytes(ctx context.Context, repo oci.Repository, mediaType types.MediaType, b []byte) (v1.Descriptor, int64, error) {
	d := v1.Descriptor{MediaType: mediaType, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: diskimage.DigestOf(b).Hex()}}
	n, err := repo.PushBlob(ctx, d, func(off int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b[off:])), nil }, oci.PushOptions{})
	return d, n, err
}

// putTar compresses a tar into a temporary file beside it, since a blob's digest
// comes before its bytes, and sends that. A tar that is not what its record says is not
// sent: nobody could use it, and nothing else could take its name.
func putTar(ctx context.Context, repo oci.Repository, path string, want *vouched) (d v1.Descriptor, sent int64, err error) {
	in, err := os.Open(path)
	if err != nil {
		return d, 0, err
	}
	defer in.Close() //nolint:errcheck // only read
	f, err := os.CreateTemp(filepath.Dir(path), ".put-*")
	if err != nil {
		return d, 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close() //nolint:errcheck // temporary
	h, plain := sha256.New(), sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(f, h), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return d, 0, err
	}
	n, err := io.Copy(io.MultiWriter(z, plain), in)
	if err == nil {
		err = want.check(n, plain)
	}
	if err != nil {
		return d, 0, err
	}
	if err := z.Close(); err != nil {
		return d, 0, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return d, 0, err
	}
	d = v1.Descriptor{MediaType: layerType, Size: size, Digest: v1.Hash{Algorithm: "sha256", Hex: diskimage.Digest(h.Sum(nil)).Hex()}}
	sent, err = repo.PushBlob(ctx, d, func(off int64) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, off, size-off)), nil
	}, oci.PushOptions{})
	return d, sent, err
}
