package evidence

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// BuildType is what imgbuild build does, and DefaultBuilder what it calls itself
// where nobody says whose machine it runs on: sections of docs/evidence.md.
const (
	BuildType      = "https://github.com/imgpipe/imgpipe/blob/main/docs/evidence.md#build-type-v1"
	DefaultBuilder = "https://github.com/imgpipe/imgpipe/blob/main/docs/evidence.md#unnamed-builder"
)

// Origin is how an image came about: what the user gave, what went in, who
// built, and when.
type Origin struct {
	// What the user gave.
	Recipe string            // the recipe's file name
	Set    map[string]string // variables given on the command line
	Level  string            // of compression

	// What went in.
	Inputs   []Input   // the recipe's files and sources, and the archive's keys
	Archives []Archive // the state of the package archive
	Database *Database // packages, with digests where known; nil for none

	// What the builder chose, and what came out on the way.
	Compressor string           // "klauspost/compress v1.18.0"
	Resolved   diskimage.Digest // the resolved recipe in canonical form
	Packages   *PackageRun      // nil for none

	// Who and when.
	Builder    string            // URI; "" is DefaultBuilder
	Versions   map[string]string // components of the builder: imgpipe, mmdebstrap
	Invocation string            // the run's name in the builder's logs; "" for none
	Started    time.Time         // zero: not said
	Finished   time.Time
}

// Input is a file that the build read.
type Input struct {
	Name   string // relative to the recipe's folder, or of the file itself
	Digest diskimage.Digest
}

// Archive is the signed state of one suite of a package archive.
type Archive struct {
	Suite  string           // bookworm-security; "" for an archive without suites
	Digest diskimage.Digest // of its InRelease
}

// PackageRun is how the tree of packages was made.
type PackageRun struct {
	Mode      string           // root, unshare
	FromCache bool             // an earlier run made it
	Tree      diskimage.Digest // of the tar it was left in
}

type slsaPredicate struct {
	BuildDefinition slsaDefinition `json:"buildDefinition"`
	RunDetails      slsaRun        `json:"runDetails"`
}

type slsaDefinition struct {
	BuildType    string         `json:"buildType"`
	External     slsaExternal   `json:"externalParameters"`
	Internal     map[string]any `json:"internalParameters,omitempty"`
	Dependencies []slsaResource `json:"resolvedDependencies,omitempty"`
}

type slsaExternal struct {
	Recipe string            `json:"recipe"`
	Set    map[string]string `json:"set,omitempty"`
	Level  string            `json:"level,omitempty"`
}

// slsaResource is in-toto's ResourceDescriptor.
type slsaResource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
}

type slsaRun struct {
	Builder    slsaBuilder    `json:"builder"`
	Metadata   *slsaMetadata  `json:"metadata,omitempty"`
	Byproducts []slsaResource `json:"byproducts,omitempty"`
}

type slsaBuilder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

type slsaMetadata struct {
	Invocation string `json:"invocationId,omitempty"`
	Started    string `json:"startedOn,omitempty"`
	Finished   string `json:"finishedOn,omitempty"`
}

// Provenance returns a SLSA v1 provenance predicate as JSON in one line; its
// build type is described in docs/evidence.md. It is about the artifact that the
// statement around it names as its subject.
func Provenance(o *Origin) ([]byte, error) {
	builder := cmp.Or(o.Builder, DefaultBuilder)
	if err := CheckBuilder(builder); err != nil {
		return nil, fmt.Errorf("provenance: %w", err)
	}
	if o.Recipe == "" {
		return nil, errors.New("provenance: no recipe")
	}
	p := slsaPredicate{
		BuildDefinition: slsaDefinition{
			BuildType:    BuildType,
			External:     slsaExternal{o.Recipe, o.Set, o.Level},
			Dependencies: o.dependencies(),
		},
		RunDetails: slsaRun{
			Builder:  slsaBuilder{builder, o.Versions},
			Metadata: o.metadata(),
		},
	}
	internal := map[string]any{}
	if o.Compressor != "" {
		internal["compressor"] = o.Compressor
	}
	if r := o.Packages; r != nil {
		internal["packages"] = map[string]any{"mode": r.Mode, "fromCache": r.FromCache}
	}
	if len(internal) > 0 {
		p.BuildDefinition.Internal = internal
	}
	if !o.Resolved.IsZero() {
		p.RunDetails.Byproducts = append(p.RunDetails.Byproducts, slsaResource{Name: "resolved recipe", Digest: sha256Set(o.Resolved)})
	}
	if r := o.Packages; r != nil && !r.Tree.IsZero() {
		p.RunDetails.Byproducts = append(p.RunDetails.Byproducts, slsaResource{Name: "package tree", Digest: sha256Set(r.Tree)})
	}
	out, err := encode(p)
	if err != nil {
		return nil, fmt.Errorf("provenance: %w", err)
	}
	return out, nil
}

// SameRun reports whether two predicates differ in nothing but when the build ran
// and whether it took the packages from the cache: one of them says it all.
func SameRun(a, b []byte) bool {
	x, err := withoutTimes(a)
	if err != nil {
		return false
	}
	y, err := withoutTimes(b)
	return err == nil && bytes.Equal(x, y)
}

func withoutTimes(predicate []byte) ([]byte, error) {
	var p slsaPredicate
	d := json.NewDecoder(bytes.NewReader(predicate))
	d.DisallowUnknownFields() // what is not understood is not the same
	if err := d.Decode(&p); err != nil {
		return nil, err
	}
	if m := p.RunDetails.Metadata; m != nil {
		m.Started, m.Finished = "", ""
	}
	delete(p.BuildDefinition.Internal, "packages")
	return encode(p)
}

// Statement returns the in-toto statement (v1) that says a predicate of an
// artifact. It is what is stored where nothing is signed.
func Statement(name string, digest diskimage.Digest, predicateType string, predicate []byte) ([]byte, error) {
	b, err := encode(struct {
		Type          string          `json:"_type"`
		Subject       []slsaResource  `json:"subject"`
		PredicateType string          `json:"predicateType"`
		Predicate     json.RawMessage `json:"predicate"`
	}{"https://in-toto.io/Statement/v1", []slsaResource{{Name: name, Digest: sha256Set(digest)}}, predicateType, predicate})
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return b, nil
}

// CheckBuilder says what is wrong with a builder's name: it has to be a URI.
func CheckBuilder(id string) error {
	u, err := url.Parse(id)
	if err != nil || u.Scheme == "" || strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return fmt.Errorf("builder %q is not a URI", id)
	}
	return nil
}

func sha256Set(d diskimage.Digest) map[string]string { return map[string]string{"sha256": d.Hex()} }

// dependencies lists what went in, in an order of its own.
func (o *Origin) dependencies() []slsaResource {
	var out []slsaResource
	for _, in := range o.Inputs {
		out = append(out, slsaResource{Name: in.Name, Digest: sha256Set(in.Digest)})
	}
	for _, a := range o.Archives {
		out = append(out, slsaResource{Name: path.Join(a.Suite, "InRelease"), Digest: sha256Set(a.Digest)})
	}
	if o.Database != nil {
		for i := range o.Database.Packages {
			p := &o.Database.Packages[i]
			r := slsaResource{URI: p.PURL(o.Database.OS)}
			if !p.Archive.IsZero() {
				r.Digest = sha256Set(p.Archive)
			}
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b slsaResource) int {
		return cmp.Or(strings.Compare(a.URI, b.URI), strings.Compare(a.Name, b.Name), strings.Compare(a.Digest["sha256"], b.Digest["sha256"]))
	})
	return slices.CompactFunc(out, func(a, b slsaResource) bool {
		return a.URI == b.URI && a.Name == b.Name && a.Digest["sha256"] == b.Digest["sha256"]
	})
}

func (o *Origin) metadata() *slsaMetadata {
	m := slsaMetadata{Invocation: o.Invocation, Started: timestamp(o.Started), Finished: timestamp(o.Finished)}
	if m == (slsaMetadata{}) {
		return nil
	}
	return &m
}

func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
