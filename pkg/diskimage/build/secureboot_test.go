package build

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
)

// efiKey makes a key to sign with, and its certificate.
func efiKey(t *testing.T) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func TestTheBootProgramIsSignedWhenAskedFor(t *testing.T) {
	key, cert := efiKey(t)
	program := func(o Options) (*Image, diskimage.Disk) {
		t.Helper()
		im := make1(t, load(t, text), o)
		b, err := foreign.ReadFile(im.Disk, *im.Table.Find(diskimage.RoleESP), "/EFI/BOOT/BOOTX64.EFI", 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		return im, diskimage.Bytes(b)
	}
	im, plain := program(options(t))
	if _, err := authenticode.Verify(plain, []*x509.Certificate{cert}); !errors.Is(err, authenticode.ErrNotTrusted) || im.Record.SecureBoot != "" {
		t.Errorf("unsigned: %v, record %q", err, im.Record.SecureBoot)
	}
	o := options(t)
	o.SecureBoot = &authenticode.Signer{Key: key, Cert: cert}
	im, signed := program(o)
	if _, err := authenticode.Verify(signed, []*x509.Certificate{cert}); err != nil {
		t.Error(err)
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(cert.Raw)); im.Record.SecureBoot != want {
		t.Errorf("record says %q, want %s", im.Record.SecureBoot, want)
	}
	again, _ := program(o)
	if string(all(t, im.Disk)) != string(all(t, again.Disk)) {
		t.Error("two signed builds differ")
	}
}
