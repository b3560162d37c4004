package authenticode

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const maxPEM = 1 << 20 // bytes of a file of keys or certificates

// ParseSigner reads a signer from PEM: an RSA key as PKCS #1 or PKCS #8, not
// encrypted, and certificates, of which the first is the key's and others are
// its chain.
func ParseSigner(key, certs []byte) (Signer, error) {
	var s Signer
	k, err := parseKey(key)
	if err != nil {
		return s, fmt.Errorf("key: %w", err)
	}
	c, err := ParseCertificates(certs)
	if err != nil {
		return s, fmt.Errorf("certificate: %w", err)
	}
	s = Signer{Key: k, Cert: c[0], Chain: c[1:]}
	return s, s.Validate()
}

func parseKey(b []byte) (crypto.Signer, error) {
	if len(b) > maxPEM {
		return nil, fmt.Errorf("%d bytes, of at most %d", len(b), maxPEM)
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, errors.New("no PRIVATE KEY in PEM form in it")
		}
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
			return nil, errors.New("it is encrypted: give a decrypted one (openssl pkey -in KEY -out PLAIN)")
		case block.Type == "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		case block.Type == "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			s, ok := k.(crypto.Signer)
			if !ok {
				return nil, fmt.Errorf("a key of type %T does not sign", k)
			}
			return s, nil
		}
	}
}

// ParseCertificates reads the certificates of a PEM file: one or more.
func ParseCertificates(b []byte) (out []*x509.Certificate, err error) {
	if len(b) > maxPEM {
		return nil, fmt.Errorf("%d bytes, of at most %d", len(b), maxPEM)
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no CERTIFICATE in PEM form in it")
	}
	return out, nil
}
