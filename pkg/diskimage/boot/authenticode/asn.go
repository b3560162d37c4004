package authenticode

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"time"
)

// Object identifiers of RFC 2315 (PKCS #7), RFC 2985 (attributes), NIST
// (SHA-256) and of Microsoft's signature format.
var (
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidSHA256RSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidIndirect      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImage       = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
)

var sha256Algorithm = pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,tag:0"`
}

type signedData struct {
	Version      int
	Algorithms   []pkix.AlgorithmIdentifier `asn1:"set"`
	Content      contentInfo
	Certificates asn1.RawValue `asn1:"optional,tag:0"`
	CRLs         asn1.RawValue `asn1:"optional,tag:1"`
	Signers      []signerInfo  `asn1:"set"`
}

type signerInfo struct {
	Version         int
	Issuer          issuerAndSerial
	DigestAlgorithm pkix.AlgorithmIdentifier
	Authenticated   asn1.RawValue `asn1:"optional,tag:0"`
	EncryptionAlg   pkix.AlgorithmIdentifier
	EncryptedDigest []byte
	Unauthenticated asn1.RawValue `asn1:"optional,tag:1"`
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values asn1.RawValue // a SET of one
}

// indirectData is SpcIndirectDataContent: what is signed.
type indirectData struct {
	Data   spcAttribute
	Digest digestInfo
}

type spcAttribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue `asn1:"optional"`
}

type digestInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Digest    []byte
}

// peImageData is SpcPeImageData of no flags, whose file is a link to the
// string "<<<Obsolete>>>" in UTF-16, as the format wants it.
var peImageData = func() []byte {
	var text []byte
	for _, c := range "<<<Obsolete>>>" {
		text = append(text, 0, byte(c))
	}
	tagged := func(tag int, compound bool, b []byte) []byte {
		return marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: compound, Bytes: b}, "")
	}
	file := tagged(0, true, tagged(2, true, tagged(0, false, text)))
	flags := marshal(asn1.BitString{}, "")
	return marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: append(flags, file...)}, "")
}()

// marshal encodes what cannot fail: values of this package's own making.
func marshal(v any, params string) []byte {
	b, err := asn1.MarshalWithParams(v, params)
	if err != nil {
		panic("authenticode: " + err.Error())
	}
	return b
}

// attr is an attribute of one value.
func attr(oid asn1.ObjectIdentifier, value []byte) []byte {
	return marshal(attribute{oid, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: value}}, "")
}

func utcTime(t time.Time) []byte { return marshal(t.UTC().Truncate(time.Second), "utc") }
