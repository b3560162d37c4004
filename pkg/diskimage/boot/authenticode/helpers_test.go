package authenticode_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
)

// program returns a PE32+ of two sections and some bytes behind them, its PE
// signature at an offset.
func program(at, trailing int) []byte {
	le := binary.LittleEndian
	const headers, raw = 1024, 2048
	b := make([]byte, headers+2*raw+trailing)
	for i := range b[headers:] {
		b[headers+i] = byte(i*7 + i>>8)
	}
	copy(b, "MZ")
	le.PutUint32(b[60:], uint32(at))
	copy(b[at:], "PE\x00\x00")
	coff, opt := b[at+4:], b[at+24:]
	le.PutUint16(coff, 0x8664)
	le.PutUint16(coff[2:], 2)
	le.PutUint16(coff[16:], 240)
	le.PutUint16(coff[18:], 0x22e)
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[16:], 0x1000)
	le.PutUint32(opt[32:], 4096)
	le.PutUint32(opt[36:], 512)
	le.PutUint32(opt[56:], 0x3000)
	le.PutUint32(opt[60:], headers)
	le.PutUint16(opt[68:], 10)
	le.PutUint32(opt[108:], 16)
	for i, name := range []string{".data", ".text"} { // not in the file's order
		h := b[at+24+240+40*i:]
		copy(h, name)
		le.PutUint32(h[8:], raw)
		le.PutUint32(h[12:], uint32(0x1000*(i+1)))
		le.PutUint32(h[16:], raw)
		le.PutUint32(h[20:], uint32(headers+(1-i)*raw))
	}
	return b
}

type pair struct {
	authenticode.Signer
	key, cert string // files
}

// keys are slow to make: each kind is made once.
var keys sync.Map

// newKey returns a key of some bits and its self-signed certificate.
func newKey(t testing.TB, name string, bits int) pair {
	t.Helper()
	made, _ := keys.LoadOrStore(name, sync.OnceValues(func() (authenticode.Signer, error) {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			return authenticode.Signer{}, err
		}
		c, err := certify(name, &k.PublicKey, authenticode.Signer{Key: k})
		return authenticode.Signer{Key: k, Cert: c}, err
	}))
	s, err := made.(func() (authenticode.Signer, error))()
	if err != nil {
		t.Fatal(err)
	}
	p := pair{Signer: s, key: filepath.Join(t.TempDir(), "key.pem"), cert: filepath.Join(t.TempDir(), "cert.pem")}
	der, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, p.key, "PRIVATE KEY", der)
	writePEM(t, p.cert, "CERTIFICATE", s.Cert.Raw)
	return p
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// certify makes a certificate for a key by another, or by itself.
func certify(name string, pub *rsa.PublicKey, by authenticode.Signer) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(name))), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC), // no matter
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	parent := by.Cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, by.Key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func sign(t testing.TB, b []byte, s authenticode.Signer) []byte {
	t.Helper()
	signed, err := authenticode.SignBytes(b, s)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func verify(b []byte, certs ...*x509.Certificate) (*x509.Certificate, error) {
	return authenticode.Verify(diskimage.Bytes(b), certs)
}

func write(t testing.TB, b []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program.efi")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
