package sign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// Options change how statements are stored; the zero value is fit for all.
type Options struct {
	// Created is noted on the referrer, for people; zero is not noted, so that
	// the referrer depends on nothing but what was signed. Nobody decides by it.
	Created time.Time
}

// Signed is one statement that is now in the store.
type Signed struct {
	Subject  diskimage.Digest `json:"subject"`
	Type     string           `json:"type"`
	Referrer diskimage.Digest `json:"referrer"`
	// Already is true if it was there before, by the same key.
	Already bool `json:"already,omitempty"`
}

// Sign signs a manifest, and if it is an image index, first the manifests in
// it: machines also pull those by themselves. What the key has signed already
// is left as it is.
func Sign(ctx context.Context, s Writer, digest diskimage.Digest, signer Signer, o Options) ([]Signed, error) {
	b, desc, err := s.Manifest(ctx, digest.String())
	if err != nil {
		return nil, err
	}
	subjects := []diskimage.Digest{digest}
	if desc.MediaType.IsIndex() {
		children, err := childrenOf(b)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", digest, err)
		}
		subjects = append(children, digest)
	}
	var out []Signed
	for _, d := range subjects {
		one, err := put(ctx, s, d, TypeSignature, nil, signer, o)
		if err != nil {
			return out, fmt.Errorf("%v: %w", d, err)
		}
		out = append(out, one)
	}
	return out, nil
}

// Attest signs a statement about a manifest, of the predicate type that
// PredicateType reads. predicate is a JSON object.
func Attest(ctx context.Context, s Writer, digest diskimage.Digest, predicateType string, predicate json.RawMessage, signer Signer, o Options) (Signed, error) {
	uri, err := PredicateType(predicateType)
	if err != nil {
		return Signed{}, err
	}
	if uri == TypeSignature {
		return Signed{}, errors.New("this predicate type is a signature's: sign, do not attest")
	}
	if predicate == nil {
		return Signed{}, errors.New("an attestation needs a predicate")
	}
	out, err := put(ctx, s, digest, uri, predicate, signer, o)
	if err != nil {
		return out, fmt.Errorf("%v: %w", digest, err)
	}
	return out, nil
}

// childrenOf returns the manifests that an image index lists, each once.
func childrenOf(index []byte) ([]diskimage.Digest, error) {
	h, err := parseHolder(index)
	if err != nil {
		return nil, err
	}
	if len(h.Manifests) > maxChildren {
		return nil, fmt.Errorf("image index of %d manifests, at most %d are allowed", len(h.Manifests), maxChildren)
	}
	var out []diskimage.Digest
	seen := map[diskimage.Digest]bool{}
	for _, m := range h.Manifests {
		d, err := diskimage.ParseDigest(m.Digest.String())
		if err != nil {
			return nil, err
		}
		if !seen[d] {
			seen[d] = true
			out = append(out, d)
		}
	}
	return out, nil
}

// put signs one statement and stores it, unless the same key did before.
func put(ctx context.Context, s Writer, digest diskimage.Digest, predicateType string, predicate json.RawMessage, signer Signer, o Options) (Signed, error) {
	out := Signed{Subject: digest, Type: predicateType}
	_, subject, err := s.Manifest(ctx, digest.String())
	if err != nil {
		return out, err
	}
	payload, err := encodeStatement(digest, predicateType, predicate)
	if err != nil {
		return out, err
	}
	if already, err := stated(ctx, s, digest, predicateType, payload, signer.Key()); err != nil || !already.IsZero() {
		out.Referrer, out.Already = already, err == nil
		return out, err
	}
	message := pae(payloadTypeInToto, payload)
	sig, err := signer.Sign(ctx, message)
	if err != nil {
		return out, fmt.Errorf("sign by key %v: %w", signer.Key(), err)
	}
	if !signer.Key().verify(message, sig) {
		return out, fmt.Errorf("the signature made by key %v does not verify; nothing was stored", signer.Key())
	}
	bundle, err := encodeBundle(payload, sig, signer.Key())
	if err != nil {
		return out, err
	}
	desc, err := store(ctx, s, subject, bundle, predicateType, o.Created)
	if err != nil {
		return out, err
	}
	out.Referrer, err = diskimage.ParseDigest(desc.Digest.String())
	return out, err
}

// stated returns the referrer by which key has vouched for the same already, or
// zero. What older formats say is said again: they are not written any more.
func stated(ctx context.Context, s Writer, digest diskimage.Digest, predicateType string, payload []byte, key *Key) (none diskimage.Digest, err error) {
	e, err := Fetch(ctx, s, digest, predicateType)
	if err != nil {
		return none, err
	}
	claims, _ := e.Claims([]*Key{key})
	for _, c := range claims {
		if c.Type == predicateType && c.Format == FormatBundle && (predicateType == TypeSignature || bytes.Equal(c.Payload, payload)) {
			return c.Origin, nil
		}
	}
	return none, nil
}

// store pushes a bundle as a referrer of subject, as cosign v3 does.
func store(ctx context.Context, s Writer, subject v1.Descriptor, bundle []byte, predicateType string, created time.Time) (v1.Descriptor, error) {
	config, layer := []byte("{}"), bundle
	m := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  MediaTypeBundle,
		Config:        describe(mediaTypeEmpty, config),
		Layers:        []v1.Descriptor{describe(MediaTypeBundle, layer)},
		Subject:       &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations:   map[string]string{annotationContent: "dsse-envelope", annotationType: predicateType},
	}
	if !created.IsZero() {
		m.Annotations[annotationCreated] = created.UTC().Format(time.RFC3339)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("manifest: %w", err)
	}
	for _, blob := range []struct {
		d v1.Descriptor
		b []byte
	}{{m.Config, config}, {m.Layers[0], layer}} {
		open := func(off int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob.b[off:])), nil }
		if _, err := s.PushBlob(ctx, blob.d, open, oci.PushOptions{}); err != nil {
			return v1.Descriptor{}, fmt.Errorf("blob %v: %w", blob.d.Digest, err)
		}
	}
	desc, err := s.PushManifest(ctx, "", types.OCIManifestSchema1, body)
	if err != nil {
		return desc, fmt.Errorf("manifest: %w", err)
	}
	return desc, nil
}

func describe(mediaType types.MediaType, b []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: v1.Hash{Algorithm: "sha256", Hex: diskimage.DigestOf(b).Hex()}, Size: int64(len(b))}
}
