package oci

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Ref names an artifact: a layout directory, and in it a tag, a digest, both
// (the digest decides), or neither.
type Ref struct {
	Dir    string
	Tag    string
	Digest diskimage.Digest // zero if not pinned
	// Platform is "os/architecture", for a reference to an image for several;
	// "" is the only one. It is not part of the text form.
	Platform string
}

// tagPattern is what a tag may be: distribution-spec 1.1, "Pulling manifests".
var tagPattern = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// ParseRef reads "oci:DIR[:TAG][@sha256:HEX]". DIR may not hold a colon: other
// tools that read layouts could not name it.
func ParseRef(s string) (Ref, error) {
	rest, ok := strings.CutPrefix(s, "oci:")
	if !ok {
		return Ref{}, fmt.Errorf("reference %q: want oci:DIR[:TAG][@sha256:…]", s)
	}
	var r Ref
	if i := strings.LastIndex(rest, "@sha256:"); i >= 0 {
		d, err := diskimage.ParseDigest(rest[i+1:])
		if err != nil {
			return Ref{}, fmt.Errorf("reference %q: %w", s, err)
		}
		if d.IsZero() {
			return Ref{}, fmt.Errorf("reference %q: the digest is all zeros", s)
		}
		r.Digest, rest = d, rest[:i]
	}
	var tagged bool
	r.Dir, r.Tag, tagged = strings.Cut(rest, ":")
	if r.Dir == "" || strings.ContainsRune(r.Dir, 0) {
		return Ref{}, fmt.Errorf("reference %q: names no directory", s)
	}
	if tagged {
		if err := checkTag(r.Tag); err != nil {
			return Ref{}, fmt.Errorf("reference %q: %w", s, err)
		}
	}
	return r, nil
}

// String returns the form that ParseRef reads.
func (r Ref) String() string {
	s := "oci:" + r.Dir
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if !r.Digest.IsZero() {
		s += "@" + r.Digest.String()
	}
	return s
}

func checkTag(tag string) error {
	if !tagPattern.MatchString(tag) {
		return fmt.Errorf("tag %q: want 1 to 128 letters, digits, '_', '.' or '-', not beginning with '.' or '-'", tag)
	}
	return nil
}
