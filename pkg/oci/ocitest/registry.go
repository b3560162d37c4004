// Package ocitest holds registries for tests: a small one in memory, faults to
// put before it or before any other, and a token server.
//
//	reg := ocitest.NewRegistry()
//	faults := ocitest.NewFaults(reg)
//	srv := httptest.NewServer(faults)
//	faults.Add(ocitest.Fault{Kind: ocitest.Blob, Do: ocitest.Cut(ocitest.Middle)})
//
// The registry keeps what it is given, compares it with its digest, and knows
// nothing of users, limits or disks. It is for tests only: imgpush registry is
// the one to use.
package ocitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Registry is a registry in memory (distribution-spec 1.1). Its fields are set
// before it serves.
type Registry struct {
	NoReferrers bool // no referrers API, and no OCI-Subject
	NoPatch     bool // uploads in one PUT only
	NoMount     bool
	WrongTypes  bool // listings of referrers give the config's media type as artifactType
	PageSize    int  // of listings; 0: all

	mu       sync.Mutex
	repos    map[string]*repo
	sessions map[string]*session
	serial   int
}

type repo struct {
	blobs     map[string][]byte
	manifests map[string]manifest // by digest
	tags      map[string]string
}

type manifest struct {
	mediaType string
	body      []byte
}

type session struct {
	name string
	data []byte
	turn int // of the request that may append
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{repos: make(map[string]*repo), sessions: make(map[string]*session)}
}

func (g *Registry) repo(name string) *repo {
	r := g.repos[name]
	if r == nil {
		r = &repo{blobs: map[string][]byte{}, manifests: map[string]manifest{}, tags: map[string]string{}}
		g.repos[name] = r
	}
	return r
}

// DropBlob forgets a blob of every repository.
func (g *Registry) DropBlob(d diskimage.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.repos {
		delete(r.blobs, d.String())
	}
}

// DropUploads forgets what is being uploaded.
func (g *Registry) DropUploads() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.sessions)
}

// Tag makes tag name a manifest that is there.
func (g *Registry) Tag(name, tag string, d diskimage.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.repo(name).tags[tag] = d.String()
}

// Uploads returns how many uploads are open.
func (g *Registry) Uploads() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.sessions)
}

var endpoint = regexp.MustCompile(`^/v2/(.+)/(blobs/uploads|blobs|manifests|referrers|tags)/([^/]*)$`)

// ServeHTTP implements http.Handler.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m := endpoint.FindStringSubmatch(r.URL.Path)
	if m == nil {
		if r.URL.Path != "/v2/" {
			Refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "no such path")
		}
		return
	}
	name, last := m[1], m[3]
	switch m[2] {
	case "blobs":
		g.blob(w, r, name, last)
	case "blobs/uploads":
		g.upload(w, r, name, last)
	case "manifests":
		g.manifest(w, r, name, last)
	case "referrers":
		g.referrers(w, r, name, last)
	case "tags":
		g.tags(w, r, name)
	}
}

// Refuse answers as a registry does that will not.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
}

func (g *Registry) blob(w http.ResponseWriter, r *http.Request, name, digest string) {
	g.mu.Lock()
	b, ok := g.repo(name).blobs[digest]
	g.mu.Unlock()
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		Refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "blobs are read")
	case !ok:
		Refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
	default:
		w.Header().Set("Docker-Content-Digest", digest)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

func (g *Registry) manifest(w http.ResponseWriter, r *http.Request, name, reference string) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20+1))
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.repo(name)
	digest := reference
	if d := p.tags[reference]; d != "" {
		digest = d
	}
	if r.Method == http.MethodPut {
		g.putManifest(w, r, p, reference, body)
		return
	}
	m, ok := p.manifests[digest]
	if !ok {
		Refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	switch r.Method {
	case http.MethodDelete:
		if delete(p.tags, reference); digest == reference {
			delete(p.manifests, digest)
		}
		w.WriteHeader(http.StatusAccepted)
	case http.MethodGet, http.MethodHead:
		w.Header().Set("Docker-Content-Digest", digest)
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Content-Length", fmt.Sprint(len(m.body)))
		if r.Method == http.MethodGet {
			w.Write(m.body)
		}
	default:
		Refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "")
	}
}

// document is what the registry reads of a manifest.
type document struct {
	ArtifactType string            `json:"artifactType"`
	Config       *v1.Descriptor    `json:"config"`
	Layers       []v1.Descriptor   `json:"layers"`
	Subject      *v1.Descriptor    `json:"subject"`
	Annotations  map[string]string `json:"annotations"`
}

func (g *Registry) putManifest(w http.ResponseWriter, r *http.Request, p *repo, reference string, body []byte) {
	digest := diskimage.DigestOf(body).String()
	var doc document
	switch {
	case len(body) > 4<<20:
		Refuse(w, http.StatusRequestEntityTooLarge, "SIZE_INVALID", "")
		return
	case strings.HasPrefix(reference, "sha256:") && reference != digest:
		Refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return
	case json.Unmarshal(body, &doc) != nil:
		Refuse(w, http.StatusBadRequest, "MANIFEST_INVALID", "not JSON")
		return
	}
	for _, d := range doc.Layers {
		if _, ok := p.blobs[d.Digest.String()]; !ok {
			Refuse(w, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", d.Digest.String())
			return
		}
	}
	p.manifests[digest] = manifest{r.Header.Get("Content-Type"), body}
	if reference != digest {
		p.tags[reference] = digest
	}
	if doc.Subject != nil && !g.NoReferrers {
		w.Header().Set("OCI-Subject", doc.Subject.Digest.String())
	}
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Location", r.URL.Path)
	w.WriteHeader(http.StatusCreated)
}

func (g *Registry) tags(w http.ResponseWriter, r *http.Request, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var tags []string
	for tag := range g.repo(name).tags {
		tags = append(tags, tag)
	}
	slices.Sort(tags)
	page(w, r, g.PageSize, len(tags), func(i, j int) any { return map[string]any{"name": name, "tags": tags[i:j]} })
}

func (g *Registry) referrers(w http.ResponseWriter, r *http.Request, name, subject string) {
	if g.NoReferrers {
		Refuse(w, http.StatusNotFound, "UNSUPPORTED", "no referrers API")
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	list := []v1.Descriptor{}
	for digest, m := range g.repo(name).manifests {
		var doc document
		if json.Unmarshal(m.body, &doc) != nil || doc.Subject == nil || doc.Subject.Digest.String() != subject {
			continue
		}
		d := v1.Descriptor{Size: int64(len(m.body)), ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
		if g.WrongTypes && doc.Config != nil {
			d.ArtifactType = string(doc.Config.MediaType)
		}
		d.Digest, _ = v1.NewHash(digest)
		d.MediaType = "application/vnd.oci.image.manifest.v1+json"
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	page(w, r, g.PageSize, len(list), func(i, j int) any {
		return v1.IndexManifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json", Manifests: list[i:j]}
	})
}

// page writes one page of a listing of n entries, and where the next one is.
func page(w http.ResponseWriter, r *http.Request, size, n int, part func(i, j int) any) {
	from := 0
	fmt.Sscan(r.URL.Query().Get("from"), &from)
	from = min(max(from, 0), n)
	to := n
	if size > 0 && from+size < n {
		to = from + size
		w.Header().Set("Link", fmt.Sprintf(`<%s?from=%d>; rel="next"`, r.URL.Path, to))
	}
	json.NewEncoder(w).Encode(part(from, to))
}
