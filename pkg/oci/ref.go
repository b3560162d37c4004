package oci

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

// Ref names an artifact: a place, which is a layout directory (Dir) or a
// repository of a registry (Registry and Name), and in it a tag, a digest, both
// (the digest decides), or for a layout neither.
type Ref struct {
	Dir      string
	Registry string // HOST[:PORT]
	Name     string // of the repository: acme/images/server
	Tag      string
	Digest   diskimage.Digest // zero if not pinned
	// Platform is "os/architecture", for a reference to an image for several;
	// "" is the only one. It is not part of the text form.
	Platform string
}

var hostPattern = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$`)

// ParseRef reads "oci:DIR[:TAG][@sha256:HEX]" or
// "HOST[:PORT]/NAME[:TAG][@sha256:HEX]". DIR may not hold a colon: other tools
// that read layouts could not name it. HOST is never left out: it has a dot or
// a port, or is localhost, so that a mistyped path does not go to somebody's
// registry.
func ParseRef(s string) (Ref, error) {
	rest, layout := strings.CutPrefix(s, "oci:")
	var r Ref
	if i := strings.LastIndex(rest, "@"); i >= 0 && (strings.HasPrefix(rest[i+1:], "sha256:") || !layout) {
		d, err := diskimage.ParseDigest(rest[i+1:])
		if err != nil {
			return Ref{}, fmt.Errorf("reference %q: %w", s, err)
		}
		if d.IsZero() {
			return Ref{}, fmt.Errorf("reference %q: the digest is all zeros", s)
		}
		r.Digest, rest = d, rest[:i]
	}
	var err error
	if layout {
		err = r.parseLayout(rest)
	} else {
		err = r.parseRegistry(rest)
	}
	if err != nil {
		return Ref{}, fmt.Errorf("reference %q: %w", s, err)
	}
	return r, nil
}

func (r *Ref) parseLayout(rest string) error {
	var tagged bool
	r.Dir, r.Tag, tagged = strings.Cut(rest, ":")
	if r.Dir == "" || strings.ContainsRune(r.Dir, 0) {
		return fmt.Errorf("names no directory")
	}
	if tagged {
		return names.CheckTag(r.Tag)
	}
	return nil
}

func (r *Ref) parseRegistry(rest string) error {
	host, name, ok := strings.Cut(rest, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return fmt.Errorf("neither a layout, oci:DIR[:TAG], nor in a registry, HOST/NAME:TAG")
	}
	if !hostPattern.MatchString(host) {
		return fmt.Errorf("%q is no registry host", host)
	}
	var tagged bool
	name, r.Tag, tagged = strings.Cut(name, ":")
	if err := names.CheckRepository(name); err != nil {
		return err
	}
	r.Registry, r.Name = host, name
	if tagged {
		return names.CheckTag(r.Tag)
	}
	return nil
}

// String returns the form that ParseRef reads.
func (r Ref) String() string {
	s := r.Place()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if !r.Digest.IsZero() {
		s += "@" + r.Digest.String()
	}
	return s
}

// Place returns the reference without tag and digest: oci:DIR or HOST/NAME.
func (r Ref) Place() string {
	if r.IsLayout() {
		return "oci:" + r.Dir
	}
	return r.Registry + "/" + r.Name
}

// IsLayout reports whether the reference names a layout directory.
func (r Ref) IsLayout() bool { return r.Registry == "" }

// reference returns what a Repository calls the artifact: the digest, else the
// tag; "" is a layout's only image.
func (r Ref) reference() string {
	if !r.Digest.IsZero() {
		return r.Digest.String()
	}
	return r.Tag
}
