package cmdtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// mkkey makes NAME.key and NAME.pub, unencrypted.
func mkkey(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "mkkey NAME")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	ts.Check(err)
	key, err := sign.NewKey(args[0], private.Public())
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), key.PEM(), 0o644))
}

// Signer signs images with a private key in memory.
type Signer struct {
	Public  *sign.Key
	Private crypto.Signer
}

// Key is whom signatures are believed by.
func (k Signer) Key() *sign.Key { return k.Public }

// Sign signs as cosign does.
func (k Signer) Sign(_ context.Context, message []byte) ([]byte, error) {
	sum := sha256.Sum256(message)
	return k.Private.Sign(rand.Reader, sum[:], crypto.SHA256)
}

func openKey(ts *testscript.TestScript, name string) Signer {
	block, _ := pem.Decode([]byte(ts.ReadFile(name + ".key")))
	if block == nil {
		ts.Fatalf("%s.key: not PEM", name)
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	ts.Check(err)
	signer := private.(crypto.Signer)
	key, err := sign.NewKey(name, signer.Public())
	ts.Check(err)
	return Signer{key, signer}
}

// signImage signs as imgbuild sign does.
func signImage(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "sign REF KEYNAME")
	d, digest := openImage(ts, args[0])
	defer d.Close()
	_, err := sign.Sign(context.Background(), d, digest, openKey(ts, args[1]), sign.Options{})
	ts.Check(err)
}

// attestImage attests as imgbuild attest does.
func attestImage(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 4, "attest REF KEYNAME TYPE JSON")
	d, digest := openImage(ts, args[0])
	defer d.Close()
	_, err := sign.Attest(context.Background(), d, digest, args[2], json.RawMessage(args[3]), openKey(ts, args[1]), sign.Options{})
	ts.Check(err)
}

// trusted verifies as imgpush verify --key does.
func trusted(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2, "[!] trusted REF KEYFILE [TYPE…]")
	d, digest := openImage(ts, args[0])
	defer d.Close()
	key, err := sign.ParseKey(args[1], []byte(ts.ReadFile(args[1])))
	ts.Check(err)
	var types []string
	for _, t := range args[2:] {
		uri, err := sign.PredicateType(t)
		ts.Check(err)
		types = append(types, uri)
	}
	_, err = sign.TrustKeys(key).Verify(context.Background(), d, "oci:/layout", digest, types...)
	if neg == (err == nil) {
		ts.Fatalf("%s by %s: %v", args[0], args[1], err)
	}
}

func openImage(ts *testscript.TestScript, text string) (*oci.Dir, diskimage.Digest) {
	r := ref(ts, text)
	d, err := oci.OpenDir(context.Background(), r.Dir)
	ts.Check(err)
	b, _, err := d.Manifest(context.Background(), r.Tag)
	ts.Check(err)
	return d, diskimage.DigestOf(b)
}
