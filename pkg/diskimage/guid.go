package diskimage

import (
	"crypto/sha1" //nolint:gosec // RFC 9562 defines version 5 over SHA-1
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID is a UUID in the byte order of its text form (RFC 9562). GPT stores its
// first three fields little-endian; see Mixed.
type GUID [16]byte

// namespace is the UUIDv5 namespace of everything imgpipe derives:
// UUIDv5(DNS namespace, "imgpipe").
var namespace = NewGUID(MustGUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), "imgpipe")

// NewGUID returns the version 5 UUID of name in space (RFC 9562, section 5.5).
func NewGUID(space GUID, name string) GUID {
	h := sha1.New() //nolint:gosec // as RFC 9562 says
	h.Write(space[:])
	h.Write([]byte(name))
	var g GUID
	copy(g[:], h.Sum(nil))
	g[6] = g[6]&0x0f | 0x50
	g[8] = g[8]&0x3f | 0x80
	return g
}

// DeriveGUID returns the identity of a thing in an image from the words that
// name it: recipe name, architecture, flavour, role. Every identity and seed of
// an image comes from here, never from a clock or a random source.
func DeriveGUID(words ...string) GUID {
	return NewGUID(namespace, strings.Join(words, "\x00"))
}

// ParseGUID reads the 36-character text form in either case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	h := strings.ReplaceAll(s, "-", "")
	if len(s) != 36 || len(h) != 32 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, fmt.Errorf("GUID %q: want 8-4-4-4-12 hex digits", s)
	}
	if _, err := hex.Decode(g[:], []byte(h)); err != nil {
		return GUID{}, fmt.Errorf("GUID %q: %w", s, err)
	}
	return g, nil
}

// MustGUID is ParseGUID for constants.
func MustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// IsZero reports whether g is all zeros, which GPT uses for "unused".
func (g GUID) IsZero() bool { return g == GUID{} }

// Mixed converts between text order and the order of GPT and EFI (UEFI 2.10,
// appendix A): the first three fields little-endian. It is its own inverse.
func (g GUID) Mixed() GUID {
	g[0], g[1], g[2], g[3] = g[3], g[2], g[1], g[0]
	g[4], g[5] = g[5], g[4]
	g[6], g[7] = g[7], g[6]
	return g
}

// String returns the lower-case 36-character form.
func (g GUID) String() string {
	h := hex.EncodeToString(g[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// MarshalText implements encoding.TextMarshaler.
func (g GUID) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (g *GUID) UnmarshalText(b []byte) (err error) {
	*g, err = ParseGUID(string(b))
	return err
}
