package sign

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Claim is a statement about a manifest, and a key that vouches for it.
type Claim struct {
	Key    *Key
	Type   string // predicate type; TypeSignature is a signature
	Format Format
	Origin diskimage.Digest // of the manifest that holds it
	// Payload is what was signed. Predicate is the part of it that the type
	// says how to read; nil for a signature.
	Payload   []byte
	Predicate json.RawMessage
}

// Claims returns what keys vouch for, in the order in which it was found: a
// key at most once for each item. What it leaves out is in the second result,
// in words.
func (e *Evidence) Claims(keys []*Key) (claims []Claim, rejected []string) {
	keys = distinct(keys)
	rejected = append(rejected, e.notes...)
	for _, it := range e.items {
		got, err := it.claims(e.Digest, keys)
		if err != nil {
			rejected = append(rejected, fmt.Sprintf("%s in %s: %v", it.format, short(it.origin), err))
		}
		claims = append(claims, got...)
	}
	return claims, rejected
}

// claims returns what keys vouch for in one item, or why none does.
func (it item) claims(about diskimage.Digest, keys []*Key) ([]Claim, error) {
	switch it.format {
	case FormatSimple:
		signers := signedBy(keys, it.body, [][]byte{it.sig})
		if len(signers) == 0 {
			return nil, errAnother(diskimage.Digest{})
		}
		d, err := parseSimple(it.body)
		if err != nil {
			return nil, err
		}
		if d != about {
			return nil, fmt.Errorf("signed by %s, but about %v", names(signers), d)
		}
		return it.by(signers, Claim{Type: TypeSignature, Payload: it.body}), nil
	case FormatBundle:
		e, hint, err := parseBundle(it.body)
		if err != nil {
			return nil, err
		}
		return it.statement(e, hint, about, keys)
	case FormatEnvelope:
		e, err := parseEnvelope(it.body, maxSignatures)
		if err != nil {
			return nil, err
		}
		return it.statement(e, diskimage.Digest{}, about, keys)
	}
	return nil, fmt.Errorf("format %q", it.format)
}

func (it item) statement(e *envelope, hint, about diskimage.Digest, keys []*Key) ([]Claim, error) {
	signers := signedBy(keys, pae(e.payloadType, e.payload), e.signatures)
	if len(signers) == 0 {
		return nil, errAnother(hint)
	}
	s, err := parseStatement(e.payload)
	if err != nil {
		return nil, fmt.Errorf("signed by %s, but: %w", names(signers), err)
	}
	if !s.about(about) {
		return nil, fmt.Errorf("signed by %s, but about another manifest", names(signers))
	}
	c := Claim{Type: s.predicateType, Payload: e.payload}
	if c.Type != TypeSignature {
		c.Predicate = s.predicate
	}
	return it.by(signers, c), nil
}

// signedBy returns those of keys that one of the signatures is by.
func signedBy(keys []*Key, message []byte, sigs [][]byte) (out []*Key) {
	for _, k := range keys {
		for _, sig := range sigs {
			if k.verify(message, sig) {
				out = append(out, k)
				break
			}
		}
	}
	return out
}

func (it item) by(signers []*Key, c Claim) (out []Claim) {
	for _, k := range signers {
		c.Key, c.Format, c.Origin = k, it.format, it.origin
		out = append(out, c)
	}
	return out
}

// errAnother says that none of the keys signed an item.
func errAnother(hint diskimage.Digest) error {
	if hint.IsZero() {
		return fmt.Errorf("signed by another key, or damaged")
	}
	return fmt.Errorf("signed by another key (it says %s), or damaged", short(hint))
}

// found says in a few words what there was.
func (e *Evidence) found() string {
	count := map[Format]int{}
	for _, it := range e.items {
		count[it.format]++
	}
	parts := []string{plural(e.Referrers, "referrer"), plural(count[FormatBundle], "bundle")}
	if n := count[FormatSimple] + count[FormatEnvelope]; n > 0 {
		parts = append(parts, plural(n, "signature")+" of the older kind")
	}
	return strings.Join(parts, ", ")
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
