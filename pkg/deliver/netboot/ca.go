package netboot

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// Files of the authority in the state directory.
const (
	caCert, caKey         = "ca.crt", "ca.key"
	serverCert, serverKey = "server.crt", "server.key"
)

// Times of certificates. A machine's clock is not evidence, so that they begin a
// day before.
const (
	caLife     = 10 * 365 * 24 * time.Hour
	serverLife = 90 * 24 * time.Hour
	renewal    = 30 * 24 * time.Hour
	backdate   = 24 * time.Hour
)

// authority is the site's CA, with the server's certificate.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	leaf atomic.Pointer[tls.Certificate]
}

// openAuthority reads the CA, or makes it.
func openAuthority(dir string, now time.Time, rand io.Reader) (*authority, error) {
	a := &authority{dir: dir}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, caCert), filepath.Join(dir, caKey))
	if errors.Is(err, fs.ErrNotExist) {
		return a, a.make(now, rand)
	}
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || pair.Leaf == nil || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("CA: %s is not a CA with an ECDSA key", filepath.Join(dir, caCert))
	}
	a.cert, a.key = pair.Leaf, key
	return a, nil
}

// make makes the CA. A key without its certificate is left where a crash came
// between: nobody has seen the certificate, and another is made.
func (a *authority) make(now time.Time, rand io.Reader) error {
	if _, err := os.Stat(filepath.Join(a.dir, caCert)); err == nil {
		return fmt.Errorf("CA: %s is there, and its key %s is not", filepath.Join(a.dir, caCert), caKey)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return err
	}
	serial, err := serialNumber(rand)
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "imgpipe site CA " + hex.EncodeToString(serial.Bytes()[:4])},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	a.key = key
	return store(a.dir, caCert, caKey, [][]byte{der}, key)
}

// certify makes sure that the server has a certificate for names, which is good
// for a while.
func (a *authority) certify(names []string, now time.Time, rand io.Reader) error {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, serverCert), filepath.Join(a.dir, serverKey))
	if err == nil && pair.Leaf.CheckSignatureFrom(a.cert) == nil && now.Before(pair.Leaf.NotAfter.Add(-renewal)) && !now.Before(pair.Leaf.NotBefore) && covers(pair.Leaf, names) {
		a.leaf.Store(&pair)
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return err
	}
	serial, err := serialNumber(rand)
	if err != nil {
		return err
	}
	until := now.Add(serverLife)
	if until.After(a.cert.NotAfter) {
		until = a.cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, NotBefore: now.Add(-backdate), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand, t, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	if err := store(a.dir, serverCert, serverKey, [][]byte{der, a.cert.Raw}, key); err != nil {
		return err
	}
	a.leaf.Store(&tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf})
	return nil
}

func (a *authority) current() *tls.Certificate { return a.leaf.Load() }

func covers(c *x509.Certificate, names []string) bool {
	for _, n := range names {
		if c.VerifyHostname(n) != nil {
			return false
		}
	}
	return len(c.DNSNames)+len(c.IPAddresses) == len(names)
}

func serialNumber(rand io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(rand, b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and of full length
	return new(big.Int).SetBytes(b), nil
}

// store writes the key, then its certificate: without the latter there is
// neither.
func store(dir, cert, key string, chain [][]byte, k *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	var text []byte
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	if err := atomicfile.WriteFile(filepath.Join(dir, key), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, cert), text, 0o644)
}

// bootKey is the name of an agent: the SHA-256 of its certificate's SPKI, which
// the handshake has proved. "" without one.
func bootKey(t *tls.ConnectionState) string {
	if t == nil || len(t.PeerCertificates) != 1 || t.PeerCertificates[0].PublicKeyAlgorithm != x509.Ed25519 {
		return ""
	}
	sum := sha256.Sum256(t.PeerCertificates[0].RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
