package kms_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/signature/kms"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	_ "github.com/imgpipe/imgpipe/pkg/oci/sign/kms"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

func TestProviders(t *testing.T) {
	have := kms.SupportedProviders()
	for _, scheme := range []string{"awskms://", "azurekms://", "gcpkms://", "hashivault://"} {
		if !slices.Contains(have, scheme) {
			t.Errorf("no %s in %q", scheme, have)
		}
	}
}

// TestReferencesThatAreNone: each provider reads its own.
func TestReferencesThatAreNone(t *testing.T) {
	for _, ref := range []string{"awskms://", "azurekms://vault", "gcpkms://projects", "hashivault://a/b/c"} {
		if s, err := signer.Load(t.Context(), ref, signer.Options{}); err == nil || !strings.Contains(err.Error(), ref) {
			t.Errorf("%s: got %v, %v", ref, s, err)
		}
	}
}

// TestVault signs by a Vault that has only the two calls of its transit engine
// that signing takes.
func TestVault(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	deny := false
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if deny || r.Header.Get("X-Vault-Token") != "token" {
			http.Error(w, `{"errors":["permission denied"]}`, http.StatusForbidden)
			return
		}
		var data map[string]any
		switch r.URL.Path {
		case "/v1/transit/keys/images":
			data = map[string]any{"latest_version": 1, "keys": map[string]any{"1": map[string]any{"name": "P-256", "public_key": public}}}
		case "/v1/transit/sign/images/sha2-256":
			var ask struct {
				Input     []byte `json:"input"`
				Prehashed bool   `json:"prehashed"`
			}
			if err := json.NewDecoder(r.Body).Decode(&ask); err != nil || !ask.Prehashed {
				http.Error(w, `{"errors":["bad request"]}`, http.StatusBadRequest)
				return
			}
			sig, err := private.Sign(rand.Reader, ask.Input, crypto.SHA256)
			if err != nil {
				t.Error(err)
			}
			data = map[string]any{"signature": "vault:v1:" + base64.StdEncoding.EncodeToString(sig)}
		default:
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": data}) // the client notices
	}))
	defer vault.Close()
	t.Setenv("VAULT_ADDR", vault.URL)
	t.Setenv("VAULT_TOKEN", "token")
	t.Setenv("VAULT_MAX_RETRIES", "0")
	s, err := signer.Load(t.Context(), "hashivault://images", signer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if string(s.Key().PEM()) != public {
		t.Errorf("got key %s", s.Key().PEM())
	}
	message := []byte("a message")
	sig, err := s.Sign(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	h := crypto.SHA256.New()
	h.Write(message)
	if !ecdsa.VerifyASN1(&private.PublicKey, h.Sum(nil), sig) {
		t.Error("the signature does not verify")
	}
	deny = true
	if _, err := s.Sign(t.Context(), message); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("denied: got %v", err)
	}
}

// TestACryptoSignerOfAVault signs a digest with an RSA key, as Authenticode does.
func TestACryptoSignerOfAVault(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data := map[string]any{"latest_version": 1, "keys": map[string]any{"1": map[string]any{"name": "rsa-2048",
			"public_key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}}}
		if r.URL.Path == "/v1/transit/sign/db/sha2-256" {
			var ask struct {
				Input     []byte `json:"input"`
				Prehashed bool   `json:"prehashed"`
				Algorithm string `json:"signature_algorithm"`
			}
			if err := json.NewDecoder(r.Body).Decode(&ask); err != nil || !ask.Prehashed || ask.Algorithm != "pkcs1v15" {
				http.Error(w, `{"errors":["bad request"]}`, http.StatusBadRequest)
				return
			}
			sig, err := rsa.SignPKCS1v15(nil, private, crypto.SHA256, ask.Input)
			if err != nil {
				t.Error(err)
			}
			data = map[string]any{"signature": "vault:v1:" + base64.StdEncoding.EncodeToString(sig)}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": data}) // the client notices
	}))
	defer vault.Close()
	t.Setenv("VAULT_ADDR", vault.URL)
	t.Setenv("VAULT_TOKEN", "token")
	t.Setenv("VAULT_MAX_RETRIES", "0")
	s, err := signer.Crypto(t.Context(), "hashivault://db")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
	if err != nil {
		t.Skip("apt-get install systemd-boot-efi: ", err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "db"}}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, private.Public(), private); err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := authenticode.SignBytes(program, authenticode.Signer{Key: s, Cert: cert})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authenticode.Verify(diskimage.Bytes(signed), []*x509.Certificate{cert}); err != nil {
		t.Error(err)
	}
	if _, err := signer.Crypto(t.Context(), "kms_test.go"); err == nil {
		t.Error("a file is taken for a key of a KMS")
	}
}
