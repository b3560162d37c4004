// Package signer signs with private keys: from files, as cosign or openssl make
// them, or in a KMS whose provider is linked (package kms).
//
//	s, err := signer.Load(ctx, "cosign.key", signer.Options{Password: ask})
//	s, err := signer.Load(ctx, "awskms:///alias/images", signer.Options{})
//	signed, err := sign.Sign(ctx, repo, digest, s, sign.Options{})
//
//	private, public, err := signer.Generate(password)
//
// ECDSA and RSA (PKCS #1 v1.5) keys of files sign SHA-256, Ed25519 keys the
// message itself: what `cosign verify --key` expects. Keys in a KMS sign as
// they were made to.
package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// maxKeyFile bounds a file with a key.
const maxKeyFile = 64 << 10

// Options say how keys are opened.
type Options struct {
	// Password is asked for when a key file is encrypted; nil refuses such.
	Password func() ([]byte, error)
}

// Signer is a sign.Signer.
type Signer struct {
	key *sign.Key
	by  signature.Signer
}

// Load opens a private key: of a KMS where ref has a scheme ("awskms://…"; one
// that no linked provider has is asked of sigstore's plugin, a program called
// sigstore-kms-SCHEME), else in a PEM file, which may be encrypted.
func Load(ctx context.Context, ref string, o Options) (*Signer, error) {
	if scheme, _, ok := strings.Cut(ref, "://"); ok {
		return loadKMS(ctx, scheme, ref)
	}
	return loadFile(ref, o)
}

func loadKMS(ctx context.Context, scheme, ref string) (*Signer, error) {
	sv, err := kms.Get(ctx, ref, crypto.SHA256)
	if _, ok := errors.AsType[*kms.ProviderNotFoundError](err); ok {
		return nil, fmt.Errorf("key %s: no KMS is called %s, and there is no program sigstore-kms-%s", ref, scheme, scheme)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", ref, err)
	}
	pub, err := sv.PublicKey(options.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", ref, err)
	}
	return newSigner(ref, pub, sv)
}

func loadFile(path string, o Options) (*Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, fmt.Errorf("key %s: not a file of at most %d bytes", path, maxKeyFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	block, _ := pem.Decode(b)
	switch {
	case block == nil:
		return nil, fmt.Errorf("key %s: not a PEM file", path)
	case block.Type == "PUBLIC KEY":
		return nil, fmt.Errorf("key %s: a public key, want the private one", path)
	}
	encrypted := false
	private, err := cryptoutils.UnmarshalPEMToPrivateKey(b, func(bool) ([]byte, error) {
		encrypted = true
		if o.Password == nil {
			return nil, errors.New("it is encrypted, and there is no password")
		}
		password, err := o.Password()
		if password == nil && err == nil {
			password = []byte{} // nil would mean "not encrypted"
		}
		return password, err
	})
	if err != nil && encrypted {
		return nil, fmt.Errorf("key %s: open with the password: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	by, err := signature.LoadSignerVerifier(private, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	pub, err := by.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return newSigner(filepath.Base(path), pub, by)
}

// Crypto opens a private key of a KMS for formats that sign digests themselves,
// such as Authenticode. ctx is that of all signatures.
func Crypto(ctx context.Context, ref string) (crypto.Signer, error) {
	s, err := Load(ctx, ref, Options{})
	if err != nil {
		return nil, err
	}
	sv, ok := s.by.(kms.SignerVerifier)
	if !ok {
		return nil, fmt.Errorf("key %s: not of a KMS", ref)
	}
	by, _, err := sv.CryptoSigner(ctx, func(error) {}) // it is told of a public key that cannot be had, and that was had above
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", ref, err)
	}
	return by, nil
}

func newSigner(name string, pub crypto.PublicKey, by signature.Signer) (*Signer, error) {
	key, err := sign.NewKey(name, pub)
	if err != nil {
		return nil, err
	}
	return &Signer{key: key, by: by}, nil
}

// Key returns the public half.
func (s *Signer) Key() *sign.Key { return s.key }

// Sign signs a message.
func (s *Signer) Sign(ctx context.Context, message []byte) ([]byte, error) {
	return s.by.SignMessage(bytes.NewReader(message), options.WithContext(ctx))
}

// Generate makes a key pair as `cosign generate-key-pair` does: ECDSA on P-256,
// the private half encrypted with the password, both in PEM.
func Generate(password []byte) (private, public []byte, err error) {
	if password == nil {
		password = []byte{}
	}
	private, public, err = cryptoutils.GeneratePEMEncodedECDSAKeyPair(elliptic.P256(), cryptoutils.StaticPasswordFunc(password))
	if err != nil {
		return nil, nil, fmt.Errorf("key pair: %w", err)
	}
	return private, public, nil
}
