package registry

import (
	"net/http"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// kind is what a path names: distribution-spec 1.1, "Endpoints".
type kind int

const (
	base      kind = iota // /v2/
	catalog               // /v2/_catalog
	blob                  // /v2/NAME/blobs/DIGEST
	uploads               // /v2/NAME/blobs/uploads/
	upload                // /v2/NAME/blobs/uploads/ID
	manifest              // /v2/NAME/manifests/REFERENCE
	tags                  // /v2/NAME/tags/list
	referrers             // /v2/NAME/referrers/DIGEST
)

// endpoints says who answers what. HEAD is GET without the body.
var endpoints = map[kind]map[string]handler{
	base:      {"GET": (*Registry).ping, "HEAD": (*Registry).ping},
	catalog:   {"GET": (*Registry).listCatalog},
	blob:      {"GET": (*Registry).getBlob, "HEAD": (*Registry).getBlob, "DELETE": (*Registry).deleteBlob},
	uploads:   {"POST": (*Registry).startUpload},
	upload:    {"GET": (*Registry).uploadStatus, "PATCH": (*Registry).patchUpload, "PUT": (*Registry).putUpload, "DELETE": (*Registry).cancelUpload},
	manifest:  {"GET": (*Registry).getManifest, "HEAD": (*Registry).getManifest, "PUT": (*Registry).putManifest, "DELETE": (*Registry).deleteManifest},
	tags:      {"GET": (*Registry).listTags},
	referrers: {"GET": (*Registry).listReferrers},
}

// place is what a path names.
type place struct {
	kind   kind
	name   string           // of the repository
	ref    string           // a tag, or the ID of an upload
	digest diskimage.Digest // zero where ref is not one
}

// parsePath reads the path of a request. What it returns is safe to use in the
// name of a file.
func parsePath(path string) (place, error) {
	rest, ok := strings.CutPrefix(path, "/v2")
	switch {
	case ok && (rest == "" || rest == "/"):
		return place{kind: base}, nil
	case ok && rest == "/_catalog":
		return place{kind: catalog}, nil
	case !ok || rest[0] != '/':
		return place{}, fail(http.StatusNotFound, codeUnsupported, "no such endpoint; a registry's are below /v2/")
	}
	rest = rest[1:]
	if name, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return named(place{kind: tags, name: name})
	}
	rest, last := cutLast(rest)
	head, word := cutLast(rest)
	p := place{name: head, ref: last}
	switch {
	case word == "manifests":
		p.kind = manifest
		if strings.Contains(last, ":") {
			return digested(p)
		}
		if err := names.CheckTag(last); err != nil {
			return p, fail(http.StatusBadRequest, codeManifestInvalid, "%v", err)
		}
		return named(p)
	case word == "blobs" && last != "uploads":
		p.kind = blob
		return digested(p)
	case word == "referrers":
		p.kind = referrers
		return digested(p)
	case word == "blobs": // …/blobs/uploads
		p.kind = uploads
		return named(p)
	case word == "uploads" && strings.HasSuffix("/"+head, "/blobs"):
		p.kind, p.name = upload, strings.TrimSuffix(strings.TrimSuffix(head, "blobs"), "/")
		if last == "" {
			p.kind = uploads
		}
		return named(p)
	}
	return place{}, fail(http.StatusNotFound, codeUnsupported, "no such endpoint")
}

// cutLast cuts behind the last slash; without one, all is the last part.
func cutLast(s string) (head, last string) {
	i := strings.LastIndexByte(s, '/')
	return s[:max(i, 0)], s[i+1:]
}

func named(p place) (place, error) {
	if err := oci.CheckName(p.name); err != nil {
		return p, fail(http.StatusBadRequest, codeNameInvalid, "%v", err)
	}
	return p, nil
}

func digested(p place) (place, error) {
	if p, err := named(p); err != nil {
		return p, err
	}
	digest, err := parseDigest(p.ref)
	p.digest = digest
	return p, err
}

// parseDigest reads a digest that a client gives: SHA-256, what a layout's
// blobs/sha256 holds and all registries take.
func parseDigest(s string) (diskimage.Digest, error) {
	if algorithm, _, ok := strings.Cut(s, ":"); ok && algorithm != "sha256" {
		return diskimage.Digest{}, fail(http.StatusBadRequest, codeDigestInvalid, "digest %.140q: this registry takes sha256 only", s)
	}
	digest, err := diskimage.ParseDigest(s)
	if err != nil || digest.IsZero() {
		return digest, fail(http.StatusBadRequest, codeDigestInvalid, "digest %.140q: want sha256: and 64 lower-case hex digits", s)
	}
	return digest, nil
}

func notAllowed(s *stream, k kind) error {
	var methods []string
	for m := range endpoints[k] {
		methods = append(methods, m)
	}
	slices.Sort(methods)
	s.Header().Set("Allow", strings.Join(methods, ", "))
	return fail(http.StatusMethodNotAllowed, codeUnsupported, "not supported here; %s is", strings.Join(methods, ", "))
}
