package build

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
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

// TestARecipesKeySignsAllThatUEFIStarts: the loader and each UKI behind it.
func TestARecipesKeySignsAllThatUEFIStarts(t *testing.T) {
	key, cert := efiKey(t)
	dir := t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("db.key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	write("db.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	write("r.yaml", []byte(withBoot("loader: systemd-boot, entries: [{name: x}], secureBoot: {key: db.key, cert: db.crt}", espPart, rootPart)))
	load := func() *recipe.Recipe {
		r, err := recipe.Load(filepath.Join(dir, "r.yaml"), recipe.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	im, programs := make1(t, load(), withLoaders(t)), 0
	for p, n := range onFAT(t, im, 0) {
		if !strings.HasSuffix(strings.ToLower(p), ".efi") {
			continue
		}
		programs++
		if _, err := authenticode.Verify(n.Data, []*x509.Certificate{cert}); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if programs != 4 || im.Record.SecureBoot != fmt.Sprintf("%x", sha256.Sum256(cert.Raw)) {
		t.Errorf("%d programs, record %q", programs, im.Record.SecureBoot)
	}
	write("db.key", []byte("no key"))
	_, err := Build(t.Context(), load(), withLoaders(t))
	if e, ok := recipeErrorOf(err); !ok || e.Field != "boot.secureBoot" {
		t.Errorf("without a key: %v", err)
	}
}
