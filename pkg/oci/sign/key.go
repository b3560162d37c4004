package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Key is a public key with a name for people.
type Key struct {
	name string
	pub  crypto.PublicKey
	der  []byte
	id   diskimage.Digest
}

// ParseKey reads a PEM public key (PKIX): ECDSA on P-256, P-384 or P-521,
// Ed25519, or RSA of 2048 to 8192 bits.
func ParseKey(name string, text []byte) (*Key, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, fmt.Errorf("key %s: not a PEM file", name)
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		return nil, fmt.Errorf("key %s: a private key, want the public one", name)
	case block.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("key %s: a PEM block %q, want PUBLIC KEY", name, block.Type)
	case strings.TrimSpace(string(rest)) != "":
		return nil, fmt.Errorf("key %s: more than one PEM block; give each key its own file", name)
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", name, err)
	}
	return NewKey(name, pub)
}

// NewKey makes a Key of a public key of the kinds that ParseKey reads.
func NewKey(name string, pub crypto.PublicKey) (*Key, error) {
	if err := checkKey(pub); err != nil {
		return nil, fmt.Errorf("key %s: %w", name, err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", name, err)
	}
	return &Key{name: name, pub: pub, der: der, id: diskimage.DigestOf(der)}, nil
}

func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return errors.New("this ECDSA curve is not used; want P-256, P-384 or P-521")
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA key of %d bits, want 2048 to 8192", n)
		}
		return nil
	}
	return fmt.Errorf("%T is no key to sign with; want ECDSA, Ed25519 or RSA", pub)
}

// Name returns the name for people.
func (k *Key) Name() string { return k.name }

// ID returns the SHA-256 of the PKIX DER form. Keys with the same ID are the
// same key, whatever they are called.
func (k *Key) ID() diskimage.Digest { return k.id }

// PEM returns the text form.
func (k *Key) PEM() []byte { return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der}) }

// String returns the name and the beginning of the ID.
func (k *Key) String() string { return fmt.Sprintf("%s (%s)", k.name, short(k.id)) }

func short(d diskimage.Digest) string { return d.String()[:len("sha256:")+12] }

// hint is what a bundle calls the key: cosign's choice, base64 of the ID.
func (k *Key) hint() string { return base64.StdEncoding.EncodeToString(k.id[:]) }

// verify reports whether sig is a signature of message. Per kind of key it
// takes what cosign makes: ECDSA over SHA-256 or the curve's own hash; RSA
// PKCS #1 v1.5 (and PSS, which some KMS keys are) over SHA-256; Ed25519 plain
// and prehashed, which RFC 8032 keeps apart.
func (k *Key) verify(message, sig []byte) bool {
	sum := sha256.Sum256(message)
	switch pub := k.pub.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(pub, sum[:], sig) {
			return true
		}
		switch pub.Curve {
		case elliptic.P384():
			long := sha512.Sum384(message)
			return ecdsa.VerifyASN1(pub, long[:], sig)
		case elliptic.P521():
			long := sha512.Sum512(message)
			return ecdsa.VerifyASN1(pub, long[:], sig)
		}
	case ed25519.PublicKey:
		long := sha512.Sum512(message)
		return ed25519.Verify(pub, message, sig) ||
			ed25519.VerifyWithOptions(pub, long[:], sig, &ed25519.Options{Hash: crypto.SHA512}) == nil
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], sig) == nil ||
			rsa.VerifyPSS(pub, crypto.SHA256, sum[:], sig, nil) == nil
	}
	return false
}

// distinct drops keys that are another's twin.
func distinct(keys []*Key) []*Key {
	var out []*Key
	seen := map[diskimage.Digest]bool{}
	for _, k := range keys {
		if !seen[k.id] {
			seen[k.id] = true
			out = append(out, k)
		}
	}
	return out
}

func names(keys []*Key) string {
	if len(keys) == 0 {
		return "none"
	}
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = k.String()
	}
	return strings.Join(out, ", ")
}
