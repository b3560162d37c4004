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
	s := g.session(name, id)
	switch {
	case s == nil:
		Refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
	case r.Method == http.MethodPatch && g.NoPatch:
		Refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "no PATCH here")
	case r.Method == http.MethodPatch || r.Method == http.MethodPut:
		g.take(w, r, id, s)
	case r.Method == http.MethodGet:
		g.mu.Lock()
		defer g.mu.Unlock()
		g.where(w, id, s, http.StatusNoContent)
	case r.Method == http.MethodDelete:
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.sessions, id)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (g *Registry) session(name, id string) *session {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.sessions[id]; s != nil && s.name == name {
		return s
	}
	return nil
}

// take appends a request's body to a session as it comes, and ends the session
// if it is a PUT.
func (g *Registry) take(w http.ResponseWriter, r *http.Request, id string, s *session) {
	g.mu.Lock()
	var first, last int
	n, _ := fmt.Sscanf(r.Header.Get("Content-Range"), "%d-%d", &first, &last)
	ok := n == 2 && first == len(s.data) || r.Header.Get("Content-Range") == "" && (len(s.data) == 0 || r.Method == http.MethodPut)
	s.turn++
	turn := s.turn
	g.mu.Unlock()
	if !ok {
		Refuse(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the upload goes on elsewhere")
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Body.Read(buf)
		g.mu.Lock()
		if s.turn != turn || len(s.data)+n > maxUpload { // another request goes on with it
			g.mu.Unlock()
			Refuse(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the upload goes on elsewhere")
			return
		}
		s.data = append(s.data, buf[:n]...)
		g.mu.Unlock()
		if err == io.EOF {
			break
		}
		if err != nil {
			return // cut: what came stays
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Method == http.MethodPatch {
		g.where(w, id, s, http.StatusAccepted)
		return
	}
	delete(g.sessions, id)
	g.store(w, r, s.name, s.data)
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
	g.where(w, id, g.sessions[id], http.StatusAccepted)
}

// where says how far a session is; its location has a query that must be kept.
func (g *Registry) where(w http.ResponseWriter, id string, s *session, status int) {
	w.Header().Set("Location", fmt.Sprintf("/v2/%s/blobs/uploads/%s?state=%d", s.name, id, len(s.data)))
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(s.data)-1, 0)))
	w.WriteHeader(status)
}
