// Package sign says who vouches for an image: it signs manifests, verifies
// what others signed, and judges that by a policy. The rules are those of
// docs/trust.md; the bytes are cosign's (a sigstore bundle v0.3 as a referrer),
// so that each accepts the other's.
//
//	key, err := sign.ParseKey("release.pub", pem)
//	trust := sign.TrustKeys(key)                       // or sign.ParsePolicy
//	pin, err := oci.Resolve(ctx, repo, ref)            // a digest, nothing more
//	verdict, err := trust.Verify(ctx, repo, ref.Place(), digest)
//	if errors.Is(err, sign.ErrUntrusted) { … }         // exit code 5
//
//	signed, err := sign.Sign(ctx, repo, digest, signer, sign.Options{})
//	attested, err := sign.Attest(ctx, repo, digest, "spdxjson", sbom, signer, sign.Options{})
//
// It guarantees: a payload is parsed only after its signature verified, and is
// then the very bytes that were signed; a key counts once, whatever its names;
// what it cannot read strictly, or is not about this digest, proves nothing;
// everything from a store is bounded before it is allocated. It needs no
// network but the store, no transparency log and no clock, and so does not know
// that a key was revoked: take it out of the policy.
//
// Private keys and KMS are in package signer, which a verifier does not link.
package sign

import (
	"context"
	"errors"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// Media types and annotations, as cosign v3 writes and finds them.
const (
	MediaTypeBundle = "application/vnd.dev.sigstore.bundle.v0.3+json"

	mediaTypeEmpty     = "application/vnd.oci.empty.v1+json"
	mediaTypeSimple    = "application/vnd.dev.cosign.simplesigning.v1+json"
	mediaTypeEnvelope  = "application/vnd.dsse.envelope.v1+json"
	bundlePrefix       = "application/vnd.dev.sigstore.bundle"
	payloadTypeInToto  = "application/vnd.in-toto+json"
	annotationContent  = "dev.sigstore.bundle.content"
	annotationType     = "dev.sigstore.bundle.predicateType"
	annotationLegacy   = "dev.cosignproject.cosign/signature"
	annotationLegacyAs = "predicateType"
	annotationCreated  = "org.opencontainers.image.created"
)

// TypeSignature is the predicate type of a signature: a statement that says
// nothing but that its signer stands by the image.
const TypeSignature = "https://sigstore.dev/cosign/sign/v1"

// Limits of what is read.
const (
	MaxBundle    = 32 << 20 // bytes: an SBOM with file digests, in base64
	MaxPolicy    = 256 << 10
	maxSimple    = 64 << 10
	maxManifest  = 1 << 20
	maxConfig    = 1 << 20
	maxReferrers = 1024      // manifests looked at for one image
	maxTotal     = 128 << 20 // bytes of evidence held for one image
	// Where only signatures are asked for: each is small, and so may be the machine.
	maxSignature  = 256 << 10 // bytes of a bundle
	maxSignedOnly = 16 << 20  // bytes of evidence
	maxSignatures = 64        // in one legacy manifest
	maxSubjects   = 256
	maxChildren   = 256 // manifests of one image index
)

// ErrUntrusted is what every UntrustedError is.
var ErrUntrusted = errors.New("not trusted")

// Store is where signatures are looked for; an oci.Repository is one. What it
// does not have is oci.ErrNotFound.
type Store interface {
	Manifest(ctx context.Context, reference string) ([]byte, v1.Descriptor, error)
	Blob(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error)
	Referrers(ctx context.Context, digest diskimage.Digest) ([]v1.Descriptor, error)
}

// Writer is where signatures are put.
type Writer interface {
	Store
	PushBlob(ctx context.Context, d v1.Descriptor, open func(off int64) (io.ReadCloser, error), o oci.PushOptions) (moved int64, err error)
	PushManifest(ctx context.Context, reference string, mediaType types.MediaType, body []byte) (v1.Descriptor, error)
}

var _ Writer = oci.Repository(nil)

// Signer signs with a private key, wherever that lies.
type Signer interface {
	Key() *Key // the public half
	// Sign signs a message: ECDSA in ASN.1 form, RSA and Ed25519 as PKCS #1 and
	// RFC 8032 say.
	Sign(ctx context.Context, message []byte) ([]byte, error)
}
