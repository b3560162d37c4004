package sign_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// memory is a store in memory. It compares nothing with its digest, so that
// tests can play a hostile one.
type memory struct {
	blobs  map[string][]byte   // by digest
	tags   map[string]string   // to digests
	order  []string            // of manifests, for Referrers
	listed map[string][]string // what Referrers says instead, if not nil
	fail   func(op, what string) error
	reads  []string // what was read, in order
}

func newMemory() *memory { return &memory{blobs: map[string][]byte{}, tags: map[string]string{}} }

func (m *memory) see(op, what string) error {
	m.reads = append(m.reads, op+" "+what)
	if m.fail != nil {
		return m.fail(op, what)
	}
	return nil
}

func (m *memory) Manifest(_ context.Context, reference string) ([]byte, v1.Descriptor, error) {
	if err := m.see("manifest", reference); err != nil {
		return nil, v1.Descriptor{}, err
	}
	digest := reference
	if d, ok := m.tags[reference]; ok {
		digest = d
	}
	b, ok := m.blobs[digest]
	if !ok {
		return nil, v1.Descriptor{}, fmt.Errorf("%s: %w", reference, oci.ErrNotFound)
	}
	var doc struct {
		MediaType types.MediaType `json:"mediaType"`
	}
	_ = json.Unmarshal(b, &doc) // a hostile manifest may be anything
	return b, v1.Descriptor{MediaType: doc.MediaType, Digest: hash(digest), Size: int64(len(b))}, nil
}

func hash(digest string) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: strings.TrimPrefix(digest, "sha256:")}
}

func (m *memory) Blob(_ context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	if err := m.see("blob", d.Digest.String()); err != nil {
		return nil, err
	}
	b, ok := m.blobs[d.Digest.String()]
	if !ok {
		return nil, fmt.Errorf("%v: %w", d.Digest, oci.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b[min(off, int64(len(b))):min(off+n, int64(len(b)))])), nil
}

func (m *memory) Referrers(_ context.Context, digest diskimage.Digest) ([]v1.Descriptor, error) {
	if err := m.see("referrers", digest.String()); err != nil {
		return nil, err
	}
	var out []v1.Descriptor
	for _, d := range m.listed[digest.String()] {
		out = append(out, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hash(d), Size: int64(len(m.blobs[d]))})
	}
	for _, d := range m.order {
		if m.listed == nil && bytes.Contains(m.blobs[d], []byte(digest.Hex())) && bytes.Contains(m.blobs[d], []byte(`"subject"`)) {
			out = append(out, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hash(d), Size: int64(len(m.blobs[d]))})
		}
	}
	return out, nil
}

func (m *memory) PushBlob(_ context.Context, d v1.Descriptor, open func(int64) (io.ReadCloser, error), _ oci.PushOptions) (int64, error) {
	r, err := open(0)
	if err != nil {
		return 0, err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return 0, err
	}
	if got := m.put(b); got.String() != d.Digest.String() || int64(len(b)) != d.Size {
		return 0, fmt.Errorf("pushed %v as %v", got, d)
	}
	return d.Size, nil
}

func (m *memory) PushManifest(_ context.Context, reference string, _ types.MediaType, body []byte) (v1.Descriptor, error) {
	d := m.manifest(body)
	if reference != "" {
		m.tags[reference] = d.String()
	}
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hash(d.String()), Size: int64(len(body))}, nil
}

func (m *memory) put(b []byte) diskimage.Digest {
	d := diskimage.DigestOf(b)
	m.blobs[d.String()] = b
	return d
}

func (m *memory) manifest(b []byte) diskimage.Digest {
	d := m.put(b)
	if !slices.Contains(m.order, d.String()) {
		m.order = append(m.order, d.String())
	}
	return d
}

// image stores a manifest with a config of that release and epoch.
func (m *memory) image(t testing.TB, release, epoch string) diskimage.Digest {
	t.Helper()
	config := m.put(fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","name":"tiny","version":%q,"epoch":%q}`, release, epoch))
	b, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: oci.ArtifactType,
		Config: v1.Descriptor{MediaType: oci.MediaTypeConfig, Digest: hash(config.String()), Size: int64(len(m.blobs[config.String()]))}})
	if err != nil {
		t.Fatal(err)
	}
	return m.manifest(b)
}

func (m *memory) index(t testing.TB, children ...diskimage.Digest) diskimage.Digest {
	t.Helper()
	x := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for i, c := range children {
		x.Manifests = append(x.Manifests, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hash(c.String()),
			Size: int64(len(m.blobs[c.String()])), Platform: &v1.Platform{OS: "linux", Architecture: fmt.Sprintf("arch%d", i)}})
	}
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return m.manifest(b)
}

// pair is a key pair of the standard library.
type pair struct {
	key     *sign.Key
	private crypto.Signer
	signed  int // how often it was asked
}

func newPair(t testing.TB, name string) *pair {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pairOf(t, name, private)
}

func newEd25519(t testing.TB, name string) *pair {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pairOf(t, name, private)
}

func pairOf(t testing.TB, name string, private crypto.Signer) *pair {
	t.Helper()
	key, err := sign.NewKey(name, private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &pair{key: key, private: private}
}

func (p *pair) Key() *sign.Key { return p.key }

func (p *pair) Sign(_ context.Context, message []byte) ([]byte, error) {
	p.signed++
	if _, ok := p.private.(ed25519.PrivateKey); ok {
		return p.private.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return p.private.Sign(rand.Reader, sum[:], crypto.SHA256)
}

func mustSign(t testing.TB, s sign.Writer, d diskimage.Digest, p *pair) []sign.Signed {
	t.Helper()
	out, err := sign.Sign(t.Context(), s, d, p, sign.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
