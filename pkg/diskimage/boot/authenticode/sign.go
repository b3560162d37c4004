package authenticode

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
)

// signedData is the PKCS #7 for the digest of a program, in DER.
func (s Signer) signedData(digest [sha256.Size]byte) ([]byte, error) {
	content := marshal(indirectData{
		Data:   spcAttribute{Type: oidPEImage, Value: asn1.RawValue{FullBytes: peImageData}},
		Digest: digestInfo{sha256Algorithm, digest[:]},
	}, "")
	signed, err := s.authenticated(content)
	if err != nil {
		return nil, err
	}
	// RFC 2315, section 9.3: signed as the SET that it is, and not with the tag
	// that it has in SignerInfo.
	set := marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: signed}, "")
	sum := sha256.Sum256(set)
	signature, err := s.Key.Sign(rand.Reader, sum[:], crypto.SHA256) // PKCS #1 v1.5 draws no random numbers for its result
	if err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	certs := slices.Clone(s.Cert.Raw)
	for _, c := range s.Chain {
		certs = append(certs, c.Raw...)
	}
	data := signedData{
		Version:      1,
		Algorithms:   []pkix.AlgorithmIdentifier{sha256Algorithm},
		Content:      contentInfo{oidIndirect, wrapped(content)},
		Certificates: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: certs},
		Signers: []signerInfo{{
			Version:         1,
			Issuer:          issuerAndSerial{asn1.RawValue{FullBytes: s.Cert.RawIssuer}, s.Cert.SerialNumber},
			DigestAlgorithm: sha256Algorithm,
			Authenticated:   asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: signed},
			EncryptionAlg:   pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue},
			EncryptedDigest: signature,
		}},
	}
	der := marshal(contentInfo{oidSignedData, wrapped(marshal(data, ""))}, "")
	// A key held elsewhere may answer anything.
	if _, err := parseSignature(der); err != nil {
		return nil, fmt.Errorf("the key's signature does not fit its certificate: %w", err)
	}
	return der, nil
}

// authenticated returns the attributes that are signed, as DER orders a SET.
func (s Signer) authenticated(content []byte) ([]byte, error) {
	// Authenticode hashes the content of the SEQUENCE, without tag and length.
	body, err := inner(content)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	attrs := [][]byte{
		attr(oidContentType, marshal(oidIndirect, "")),
		attr(oidMessageDigest, marshal(sum[:], "")),
	}
	if !s.Time.IsZero() {
		attrs = append(attrs, attr(oidSigningTime, utcTime(s.Time)))
	}
	slices.SortFunc(attrs, bytes.Compare)
	return slices.Concat(attrs...), nil
}

// wrapped is a value with the tag [0] EXPLICIT.
func wrapped(der []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: der}
}

// inner is the contents of one DER value.
func inner(der []byte) ([]byte, error) {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(der, &v)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes follow a value", len(rest))
	}
	return v.Bytes, nil
}
