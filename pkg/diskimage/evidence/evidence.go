// Package evidence writes what is said about an image beside it: what it is
// made of, an SPDX 2.3 document (a software bill of materials, SBOM), and how
// it came about, a SLSA provenance predicate. docs/evidence.md is the normative
// text.
//
//	db, err := evidence.ReadDatabase(installed)   // Debian's packages and their licences
//	sbom, err := evidence.SBOM(&evidence.Contents{Image: image, Database: db})
//	predicate, err := evidence.Provenance(&evidence.Origin{…})
//
// It guarantees that equal facts give equal bytes, in whatever order they are
// handed over; that nothing is claimed that was not read: what is not known is
// NOASSERTION or missing; and that a damaged package database costs no more
// memory than a whole one. Both documents are pure functions of what they are
// given: no clock, no random number, no network.
//
// It signs nothing: that is pkg/oci/sign's part.
package evidence

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// The predicate types of in-toto statements that carry the documents, and the
// media types of an SPDX document and of a statement by themselves.
const (
	TypeSPDX       = "https://spdx.dev/Document"
	TypeProvenance = "https://slsa.dev/provenance/v1"

	MediaTypeSPDX      = "application/spdx+json"
	MediaTypeStatement = "application/vnd.in-toto+json"
)

// Image says which image the documents are about.
type Image struct {
	Name    string
	Version string // the recipe's release
	Flavour string // "" unless the recipe names one
	Arch    string // Debian's word: amd64, arm64
	Epoch   time.Time
	Disk    diskimage.Digest // docs/format.md, section 7
}

// encode is JSON in one line, with < and > as they are: expressions and names of
// maintainers are read by people.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
