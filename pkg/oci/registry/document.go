package registry

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// document is a manifest or an image index, as far as a registry looks at it.
type document struct {
	SchemaVersion int64             `json:"schemaVersion"`
	MediaType     types.MediaType   `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *descriptor       `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Manifests     []descriptor      `json:"manifests"`
	Subject       *descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
	FSLayers      json.RawMessage   `json:"fsLayers"` // of Docker's schema 1
}

type descriptor struct {
	MediaType types.MediaType `json:"mediaType"`
	Digest    string          `json:"digest"`
	Size      int64           `json:"size"`
	URLs      []string        `json:"urls"`
}

func decode(b []byte, v any) error { return json.Unmarshal(b, v) }

// content returns the descriptors of what a manifest refers to.
func (d *document) content() []descriptor {
	if d.MediaType.IsIndex() || d.Config == nil && d.Layers == nil {
		return d.Manifests
	}
	out := d.Layers
	if d.Config != nil {
		out = append([]descriptor{*d.Config}, out...)
	}
	return out
}

// elsewhere reports whether a blob may be missing: image-spec 1.1,
// "Non-Distributable Layers", are not pushed.
func (d descriptor) elsewhere() bool { return !d.MediaType.IsDistributable() }

// parseManifest reads a manifest that a client says is of contentType, which
// may be "", and refuses what could be read in two ways.
func parseManifest(b []byte, contentType string) (*document, error) {
	invalid := func(format string, args ...any) error {
		return fail(http.StatusBadRequest, codeManifestInvalid, "manifest: "+format, args...)
	}
	doc := new(document)
	if err := decode(b, doc); err != nil {
		return nil, invalid("%v", err)
	}
	said := types.MediaType(contentType)
	switch {
	case doc.MediaType == "" && isManifest(said):
		doc.MediaType = said // image-spec 1.1 lets it be left out
	case doc.MediaType == "":
		doc.MediaType = mediaTypeOf(b)
	case said != "" && said != doc.MediaType:
		return nil, invalid("Content-Type is %.100q, mediaType %.100q", said, doc.MediaType)
	}
	switch {
	case !isManifest(doc.MediaType):
		return nil, invalid("media type %.100q: this registry takes OCI's image manifest and index, and Docker's of schema 2", doc.MediaType)
	case doc.SchemaVersion != 2:
		return nil, invalid("schemaVersion %d, want 2", doc.SchemaVersion)
	case doc.FSLayers != nil, doc.MediaType.IsImage() && doc.Manifests != nil, doc.MediaType.IsIndex() && (doc.Layers != nil || doc.Config != nil):
		return nil, invalid("members of several kinds of manifest in one")
	case doc.MediaType.IsImage() && doc.Config == nil:
		return nil, invalid("no config")
	}
	for _, d := range doc.content() {
		if err := checkDescriptor(d, doc.MediaType.IsIndex()); err != nil {
			return nil, invalid("%v", err)
		}
	}
	if doc.Subject != nil {
		if _, err := parseDigest(doc.Subject.Digest); err != nil {
			return nil, err
		}
		if doc.Subject.Size < 0 {
			return nil, invalid("subject: size %d", doc.Subject.Size)
		}
	}
	if doc.ArtifactType == "" && doc.MediaType.IsImage() {
		doc.ArtifactType = artifactTypeOf(doc)
	}
	return doc, nil
}

// artifactTypeOf is what stands in index.json for a manifest that says none: the
// type of a config that is no container image's.
func artifactTypeOf(doc *document) string {
	if t := doc.Config.MediaType; !t.IsConfig() {
		return string(t)
	}
	return ""
}

func checkDescriptor(d descriptor, ofIndex bool) error {
	if _, err := parseDigest(d.Digest); err != nil {
		f, _ := failureOf(err)
		return fmt.Errorf("%s", f.errors[0].Message)
	}
	switch {
	case d.Size < 0:
		return fmt.Errorf("%s: size %d", d.Digest, d.Size)
	case d.MediaType == "":
		return fmt.Errorf("%s: no mediaType", d.Digest)
	case ofIndex && !isManifest(d.MediaType):
		return fmt.Errorf("%s: media type %.100q in an image index: this registry takes OCI's image manifest and index, and Docker's of schema 2", d.Digest, d.MediaType)
	}
	return nil
}
