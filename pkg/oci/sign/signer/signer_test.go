package signer_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/fake"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

func password(s string) signer.Options {
	return signer.Options{Password: func() ([]byte, error) { return []byte(s), nil }}
}

// signs signs an image in a layout, and verifies it with key.
func signs(t *testing.T, s sign.Signer, key *sign.Key) error {
	t.Helper()
	d, err := oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	body, err := os.ReadFile("../testdata/cosign/image.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.PushManifest(t.Context(), "1.0", "application/vnd.oci.image.manifest.v1+json", body); err != nil {
		t.Fatal(err)
	}
	pin, err := oci.Resolve(t.Context(), d, oci.Ref{Tag: "1.0"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sign.Sign(t.Context(), d, pin.Digest(), s, sign.Options{}); err != nil {
		return err
	}
	_, err = sign.TrustKeys(key).Verify(t.Context(), d, "oci:/layout", pin.Digest())
	return err
}

func TestCosignsKeyFile(t *testing.T) {
	const path = "../testdata/cosign/p256.key"
	s, err := signer.Load(t.Context(), path, password("pw"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../testdata/cosign/p256.pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.ParseKey("p256.pub", text)
	if err != nil {
		t.Fatal(err)
	}
	if err := signs(t, s, key); err != nil {
		t.Error(err)
	}
	for name, o := range map[string]signer.Options{"the wrong password": password("wp"), "an empty password": password(""), "no password": {},
		"an interrupted question": {Password: func() ([]byte, error) { return nil, errors.New("interrupted") }}} {
		if _, err := signer.Load(t.Context(), path, o); err == nil || !strings.Contains(err.Error(), "password") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestGenerated(t *testing.T) {
	for _, pw := range []string{"secret", ""} {
		private, public, err := signer.Generate([]byte(pw))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "new.key")
		if err := os.WriteFile(path, private, 0o600); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(private), "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----") {
			t.Errorf("not encrypted: %s", private)
		}
		s, err := signer.Load(t.Context(), path, password(pw))
		if err != nil {
			t.Fatal(err)
		}
		key, err := sign.ParseKey("new.pub", public)
		if err != nil {
			t.Fatal(err)
		}
		if err := signs(t, s, key); err != nil {
			t.Error(err)
		}
	}
}

// keys are of every kind that is taken, each in a form in which openssl writes it.
func keys(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	add := func(name, kind string, der []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		out[name] = pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	for name, curve := range map[string]elliptic.Curve{"p256": elliptic.P256(), "p384": elliptic.P384(), "p521": elliptic.P521()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		add(name, "PRIVATE KEY", der, err)
		der, err = x509.MarshalECPrivateKey(k)
		add(name+"-sec1", "EC PRIVATE KEY", der, err)
	}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	add("rsa-pkcs1", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k), nil)
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(e)
	add("ed25519", "PRIVATE KEY", der, err)
	return out
}

// TestSigstoreAgrees signs with each kind of key and has sigstore's verifier
// judge, as `cosign verify --key` uses it, then turns it round: what sigstore's
// signers make, also by other hashes and paddings, is accepted.
func TestSigstoreAgrees(t *testing.T) {
	message := []byte("a message")
	for name, text := range keys(t) {
		path := filepath.Join(t.TempDir(), name+".key")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := signer.Load(t.Context(), path, signer.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := signs(t, s, s.Key()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		pub, err := cryptoutils.UnmarshalPEMToPublicKey(s.Key().PEM())
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := signature.LoadVerifier(pub, crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := s.Sign(t.Context(), message)
		if err != nil {
			t.Fatal(err)
		}
		if err := theirs.VerifySignature(bytes.NewReader(sig), bytes.NewReader(message)); err != nil {
			t.Errorf("%s: sigstore: %v", name, err)
		}
		private, err := cryptoutils.UnmarshalPEMToPrivateKey(text, nil)
		if err != nil {
			t.Fatal(err)
		}
		for how, opts := range map[string][]signature.LoadOption{"default": nil, "ed25519ph": {options.WithED25519ph()}} {
			by, err := signature.LoadDefaultSignerVerifier(private, opts...)
			if err != nil {
				t.Fatal(err)
			}
			if err := signs(t, foreign{s.Key(), by}, s.Key()); err != nil {
				t.Errorf("%s, sigstore's %s: %v", name, how, err)
			}
		}
		if k, ok := private.(*rsa.PrivateKey); ok {
			by, err := signature.LoadRSAPSSSignerVerifier(k, crypto.SHA256, &rsa.PSSOptions{Hash: crypto.SHA256})
			if err != nil {
				t.Fatal(err)
			}
			if err := signs(t, foreign{s.Key(), by}, s.Key()); err != nil {
				t.Errorf("%s, PSS: %v", name, err)
			}
		}
	}
}

// foreign signs with one of sigstore's signers.
type foreign struct {
	key *sign.Key
	by  signature.Signer
}

func (f foreign) Key() *sign.Key { return f.key }
func (f foreign) Sign(_ context.Context, message []byte) ([]byte, error) {
	return f.by.SignMessage(bytes.NewReader(message))
}

func TestNoKeys(t *testing.T) {
	dir := t.TempDir()
	weak, err := x509.MarshalPKCS8PrivateKey(weakRSA(t))
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := x509.MarshalPKCS8PrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"public":  {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "want the private one"},
		"empty":   {"", "not a PEM file"},
		"garbled": {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "key "},
		"weak":    {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: weak})), "1024 bits"},
		"p224":    {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p224})), "curve"},
		"large":   {strings.Repeat("x", 65<<10), "not a file of at most"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := signer.Load(t.Context(), path, signer.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v, want %s", name, s, err, c.want)
		}
	}
	for ref, want := range map[string]string{dir: "not a file", filepath.Join(dir, "gone"): "no such file", "nokms://x": "no KMS is called nokms"} {
		if s, err := signer.Load(t.Context(), ref, signer.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v, want %s", ref, s, err, want)
		}
	}
}

// TestKMS signs by sigstore's pretended KMS.
func TestKMS(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := signer.Load(context.WithValue(t.Context(), fake.KmsCtxKey{}, crypto.PrivateKey(k)), "fakekms://key", signer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.NewKey("fake", k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := signs(t, s, key); err != nil {
		t.Error(err)
	}
}

// weakRSA is a key of 1024 bits, which the standard library makes for nobody.
func weakRSA(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	k, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
