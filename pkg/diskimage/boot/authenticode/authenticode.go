// Package authenticode signs EFI programs for Secure Boot, verifies them, and
// takes signatures off again.
//
//	s, err := authenticode.ParseSigner(keyPEM, certPEM)
//	signed, err := authenticode.Sign(uki, s)             // a Disk: nothing is copied
//	by, err := authenticode.Verify(signed, trusted)      // the certificate that vouches
//	sigs, err := authenticode.Signatures(signed)
//	plain, err := authenticode.Strip(signed)
//
// A signature is a PKCS #7 SignedData over the digest of the program, in the
// program's attribute certificate table. The formats are those of Microsoft's
// "Windows Authenticode Portable Executable Signature Format" (2008) and "PE
// Format", and of RFC 2315; what firmware takes is in UEFI 2.10, section
// 32.2.4.
//
// It guarantees that the same program and key give the same bytes (PKCS #1 v1.5,
// and no time in it unless asked for); that a program which firmware, sbverify
// and osslsigncode could take for different bytes is refused, namely one whose
// sections leave gaps or overlap; that every length and count read from a
// program is bounded before it is used; and that Strip undoes Sign, but for the
// padding to eight bytes and the checksum, which it computes anew.
//
// It does not look at the time, as no firmware does here: an expired
// certificate vouches. It does not know revocations (dbx). RSA and SHA-256 are
// all it makes and takes, since firmware does not reliably know more.
package authenticode

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Signer is who signs. Key may be held elsewhere: it is asked once a
// signature, for PKCS #1 v1.5 over a SHA-256.
type Signer struct {
	Key   crypto.Signer       // RSA of 2048 to 4096 bits
	Cert  *x509.Certificate   // of Key
	Chain []*x509.Certificate // more certificates to carry, up to the one that firmware has; nil where that is Cert
	Time  time.Time           // said in the signature; zero says none, which firmware does not miss
}

// Bounds of keys, in bits, and of what a program may carry.
const (
	minKeyBits    = 2048
	maxKeyBits    = 4096
	maxSignatures = 16
	maxTable      = 1 << 20 // bytes of the certificate table
	maxCerts      = 16      // of one signature
)

// Validate says what is wrong with a signer before anything is built for it.
func (s Signer) Validate() error {
	if s.Key == nil || s.Cert == nil {
		return errors.New("signer: a key and its certificate are needed")
	}
	pub, ok := s.Key.Public().(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("signer: a key of type %T, and firmware takes RSA", s.Key.Public())
	}
	if err := checkKey(pub); err != nil {
		return fmt.Errorf("signer: %w", err)
	}
	if !pub.Equal(s.Cert.PublicKey) {
		return fmt.Errorf("signer: the certificate of %q is for another key", s.Cert.Subject)
	}
	if len(s.Chain) >= maxCerts {
		return fmt.Errorf("signer: a chain of %d certificates, of at most %d", len(s.Chain), maxCerts-1)
	}
	return nil
}

func checkKey(pub *rsa.PublicKey) error {
	if n := pub.N.BitLen(); n < minKeyBits || n > maxKeyBits {
		return fmt.Errorf("an RSA key of %d bits: want %d to %d", n, minKeyBits, maxKeyBits)
	}
	return nil
}

// Sign returns the program with one more signature. Signatures that it has
// stay. The program is read once, and then served from where it lies: it must
// stay as it is.
func Sign(d diskimage.Disk, s Signer) (diskimage.Disk, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	p, err := parse(d)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if len(p.entries) >= maxSignatures {
		return nil, fmt.Errorf("sign: it has %d signatures already", len(p.entries))
	}
	digest, sum, err := p.hash()
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	der, err := s.signedData(digest)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return p.with(append(p.entries, der), sum)
}

// SignBytes is Sign for a program in memory.
func SignBytes(program []byte, s Signer) ([]byte, error) {
	d, err := Sign(diskimage.Bytes(program), s)
	if err != nil {
		return nil, err
	}
	return readAll(d)
}

// Strip returns the program without its signatures.
func Strip(d diskimage.Disk) (diskimage.Disk, error) {
	p, err := parse(d)
	if err != nil {
		return nil, fmt.Errorf("strip: %w", err)
	}
	_, sum, err := p.hash()
	if err != nil {
		return nil, fmt.Errorf("strip: %w", err)
	}
	return p.with(nil, sum)
}

// Digest is what a signature is over: the SHA-256 of the program without its
// checksum and signatures. It is also what the firmware's log of measurements
// and a hash in db or dbx say.
func Digest(d diskimage.Disk) (digest [sha256.Size]byte, err error) {
	p, err := parse(d)
	if err != nil {
		return digest, fmt.Errorf("digest: %w", err)
	}
	digest, _, err = p.hash()
	return digest, err
}
