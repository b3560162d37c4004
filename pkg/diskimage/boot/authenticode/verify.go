package authenticode

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Signature is one signature of a program. It is sound in itself: made by the
// key of Cert over Digest, whoever that is and whatever program that is of.
type Signature struct {
	Digest [sha256.Size]byte // of the program, it says
	Cert   *x509.Certificate // of the key that made it
	Chain  []*x509.Certificate
}

// ErrNotTrusted is that no signature of a program is by whom it must be.
var ErrNotTrusted = errors.New("no signature of a trusted key")

// Signatures returns the signatures of a program, in their order. One that is
// not well made is an error. Whether they are for this program and by whom,
// Verify says.
func Signatures(d diskimage.Disk) ([]Signature, error) {
	p, err := parse(d)
	if err != nil {
		return nil, err
	}
	return p.signatures()
}

func (p *program) signatures() ([]Signature, error) {
	out := make([]Signature, 0, len(p.entries))
	for i, e := range p.entries {
		s, err := parseSignature(e)
		if err != nil {
			return nil, fmt.Errorf("signature %d: %w", i+1, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// Verify returns which trusted certificate vouches for a program: as with
// firmware's db, the signer's own or one that certified it, directly or by
// certificates in the signature. One good signature is enough; others may be by
// anybody. The time plays no part. Errors of trust are ErrNotTrusted.
func Verify(d diskimage.Disk, trusted []*x509.Certificate) (*x509.Certificate, error) {
	p, err := parse(d)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if len(p.entries) == 0 {
		return nil, fmt.Errorf("verify: %w: it is not signed", ErrNotTrusted)
	}
	digest, _, err := p.hash()
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	var reasons []error
	for i, e := range p.entries {
		by, err := vouches(e, digest, trusted)
		if err == nil {
			return by, nil
		}
		reasons = append(reasons, fmt.Errorf("signature %d: %w", i+1, err))
	}
	return nil, fmt.Errorf("verify: %w: %w", ErrNotTrusted, errors.Join(reasons...))
}

func vouches(der []byte, digest [sha256.Size]byte, trusted []*x509.Certificate) (*x509.Certificate, error) {
	s, err := parseSignature(der)
	if err != nil {
		return nil, err
	}
	if s.Digest != digest {
		return nil, fmt.Errorf("it is for a program of digest %x, and this one's is %x: changed after signing", s.Digest[:8], digest[:8])
	}
	// From the signer up. Each step goes to another of at most maxCerts
	// certificates, so this ends.
	at, left := s.Cert, s.Chain
	for {
		for _, t := range trusted {
			if at.Equal(t) || at.CheckSignatureFrom(t) == nil {
				return t, nil
			}
		}
		next := -1
		for i, c := range left {
			if !c.Equal(at) && at.CheckSignatureFrom(c) == nil {
				next = i
				break
			}
		}
		if next < 0 {
			return nil, fmt.Errorf("by %q, which no trusted certificate vouches for", s.Cert.Subject)
		}
		at = left[next]
		left = append(append([]*x509.Certificate(nil), left[:next]...), left[next+1:]...)
	}
}

// parseSignature reads a PKCS #7 and checks that it is sound in itself.
func parseSignature(der []byte) (s Signature, err error) {
	var outer contentInfo
	// What follows is padding: some tools count it to the entry.
	if rest, err := asn1.Unmarshal(der, &outer); err != nil {
		return s, fmt.Errorf("not a PKCS #7: %w", err)
	} else if len(rest) >= certAlign || len(bytes.Trim(rest, "\x00")) > 0 {
		return s, fmt.Errorf("%d bytes follow the PKCS #7", len(rest))
	}
	if !outer.Type.Equal(oidSignedData) {
		return s, fmt.Errorf("a PKCS #7 of type %v, want SignedData", outer.Type)
	}
	var data signedData
	if rest, err := asn1.Unmarshal(outer.Content.Bytes, &data); err != nil {
		return s, fmt.Errorf("SignedData: %w", err)
	} else if len(rest) > 0 {
		return s, fmt.Errorf("%d bytes follow the SignedData", len(rest))
	}
	if len(data.Signers) != 1 {
		return s, fmt.Errorf("%d signers, want one", len(data.Signers))
	}
	content, err := s.content(data.Content)
	if err != nil {
		return s, err
	}
	if err := s.certificates(data); err != nil {
		return s, err
	}
	return s, s.check(data.Signers[0], content)
}

// content reads the digest of the program. It returns the bytes that the
// signature is over.
func (s *Signature) content(c contentInfo) ([]byte, error) {
	if !c.Type.Equal(oidIndirect) {
		return nil, fmt.Errorf("content of type %v, want SpcIndirectDataContent", c.Type)
	}
	var d indirectData
	if rest, err := asn1.Unmarshal(c.Content.Bytes, &d); err != nil {
		return nil, fmt.Errorf("SpcIndirectDataContent: %w", err)
	} else if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes follow the SpcIndirectDataContent", len(rest))
	}
	if !d.Digest.Algorithm.Algorithm.Equal(oidSHA256) || len(d.Digest.Digest) != sha256.Size {
		return nil, fmt.Errorf("a digest of %d bytes by %v, want SHA-256", len(d.Digest.Digest), d.Digest.Algorithm.Algorithm)
	}
	s.Digest = [sha256.Size]byte(d.Digest.Digest)
	return inner(c.Content.Bytes)
}

// certificates reads those of a signature, and finds the signer's.
func (s *Signature) certificates(data signedData) error {
	signer := data.Signers[0]
	for rest := data.Certificates.Bytes; len(rest) > 0; {
		if len(s.Chain) == maxCerts {
			return fmt.Errorf("more than %d certificates", maxCerts)
		}
		var raw asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &raw); err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
		c, err := x509.ParseCertificate(raw.FullBytes)
		if err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
		s.Chain = append(s.Chain, c)
		if s.Cert == nil && bytes.Equal(c.RawIssuer, signer.Issuer.Issuer.FullBytes) && signer.Issuer.Serial != nil && c.SerialNumber.Cmp(signer.Issuer.Serial) == 0 {
			s.Cert = c
		}
	}
	if s.Cert == nil {
		return errors.New("the signer's certificate is not in it")
	}
	return nil
}

// check verifies the signature over the content.
func (s *Signature) check(signer signerInfo, content []byte) error {
	pub, ok := s.Cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("a key of type %T, want RSA", s.Cert.PublicKey)
	}
	if err := checkKey(pub); err != nil {
		return err
	}
	if !signer.DigestAlgorithm.Algorithm.Equal(oidSHA256) {
		return fmt.Errorf("signed over a digest by %v, want SHA-256", signer.DigestAlgorithm.Algorithm)
	}
	if a := signer.EncryptionAlg.Algorithm; !a.Equal(oidRSA) && !a.Equal(oidSHA256RSA) {
		return fmt.Errorf("signed by the algorithm %v, want RSA", a)
	}
	attrs, err := attributes(signer.Authenticated.Bytes)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	if !bytes.Equal(attrs[oidContentType.String()], marshal(oidIndirect, "")) || !bytes.Equal(attrs[oidMessageDigest.String()], marshal(sum[:], "")) {
		return errors.New("its attributes are for another content")
	}
	set := marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: signer.Authenticated.Bytes}, "")
	sum = sha256.Sum256(set)
	if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], signer.EncryptedDigest); err != nil {
		return fmt.Errorf("not made by the key of %q: %w", s.Cert.Subject, err)
	}
	return nil
}

// attributes returns the value of each attribute, in DER, by object identifier.
func attributes(der []byte) (map[string][]byte, error) {
	out := map[string][]byte{}
	for len(der) > 0 {
		var a attribute
		var err error
		if der, err = asn1.Unmarshal(der, &a); err != nil {
			return nil, fmt.Errorf("attributes: %w", err)
		}
		if _, twice := out[a.Type.String()]; twice {
			return nil, fmt.Errorf("attributes: %v twice", a.Type)
		}
		out[a.Type.String()] = a.Values.Bytes
	}
	return out, nil
}
