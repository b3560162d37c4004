package ocitest

import (
	"fmt"
	"io"
	"net/http"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// maxUpload bounds what a test may store in one blob.
const maxUpload = 1 << 30

func (g *Registry) upload(w http.ResponseWriter, r *http.Request, name, id string) {
	if r.Method == http.MethodPost {
		g.begin(w, r, name)
		return
	}
	// The body is read without the lock: one upload must not wait for another.
	var got []byte
	var cut error
	if r.Method == http.MethodPatch && g.NoPatch {
		Refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "no PATCH here")
		return
	}
	if r.Method == http.MethodPatch || r.Method == http.MethodPut {
		got, cut = io.ReadAll(io.LimitReader(r.Body, maxUpload))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sessions[id]
	if s == nil || s.name != name {
		Refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
		return
	}
	if cr := r.Header.Get("Content-Range"); cr != "" {
		var first, last int
		if n, _ := fmt.Sscanf(cr, "%d-%d", &first, &last); n != 2 || first != len(s.data) {
			Refuse(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the upload goes on elsewhere")
			return
		}
	}
	if r.Method == http.MethodPatch && r.Header.Get("Content-Range") == "" && len(s.data) > 0 {
		Refuse(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "a second chunk says where it belongs")
		return
	}
	switch r.Method {
	case http.MethodPatch:
		if s.data = append(s.data, got...); cut == nil {
			g.where(w, r, id, s, http.StatusAccepted)
		}
	case http.MethodGet:
		g.where(w, r, id, s, http.StatusNoContent)
	case http.MethodDelete:
		delete(g.sessions, id)
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPut:
		if cut != nil {
			return
		}
		delete(g.sessions, id)
		g.store(w, r, name, append(s.data, got...))
	}
}

// store ends an upload.
func (g *Registry) store(w http.ResponseWriter, r *http.Request, name string, data []byte) {
	digest := r.URL.Query().Get("digest")
	if diskimage.DigestOf(data).String() != digest {
		Refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return
	}
	g.repo(name).blobs[digest] = data
	w.Header().Set("Location", "/v2/"+name+"/blobs/"+digest)
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
}

func (g *Registry) begin(w http.ResponseWriter, r *http.Request, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := r.URL.Query()
	if b, ok := g.repo(q.Get("from")).blobs[q.Get("mount")]; ok && !g.NoMount {
		g.repo(name).blobs[q.Get("mount")] = b
		w.Header().Set("Location", "/v2/"+name+"/blobs/"+q.Get("mount"))
		w.WriteHeader(http.StatusCreated)
		return
	}
	g.serial++
	id := fmt.Sprintf("upload-%d", g.serial)
	g.sessions[id] = &session{name: name}
	g.where(w, r, id, g.sessions[id], http.StatusAccepted)
}

// where says how far a session is; its location has a query that must be kept.
func (g *Registry) where(w http.ResponseWriter, r *http.Request, id string, s *session, status int) {
	w.Header().Set("Location", fmt.Sprintf("/v2/%s/blobs/uploads/%s?state=%d", s.name, id, len(s.data)))
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(s.data)-1, 0)))
	w.WriteHeader(status)
}
