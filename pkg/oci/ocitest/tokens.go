package ocitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Tokens asks for bearer tokens before a registry, and serves them at /token to
// whom it knows by name and password. Nothing depends on time: a token is good
// for a number of requests.
type Tokens struct {
	User, Password string // "": anybody may have a token
	Uses           int    // of a token; 0: any number
	Expires        int    // what expires_in says; 0: nothing

	next http.Handler

	mu     sync.Mutex
	serial int
	live   map[string]*grant
	asked  [][]string
}

type grant struct {
	scopes []string
	left   int
}

// NewTokens returns a token server before next.
func NewTokens(next http.Handler) *Tokens { return &Tokens{next: next, live: make(map[string]*grant)} }

// Asked returns the scopes of each token that was given.
func (t *Tokens) Asked() [][]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.asked)
}

// Revoke makes all tokens worthless.
func (t *Tokens) Revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.live)
}

// ServeHTTP implements http.Handler.
func (t *Tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		t.give(w, r)
		return
	}
	if !t.admits(r) {
		challenge := fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host)
		if s := wanted(r); s != "" {
			challenge += fmt.Sprintf(`,scope="%s"`, s)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	t.next.ServeHTTP(w, r)
}

func (t *Tokens) give(w http.ResponseWriter, r *http.Request) {
	if user, pass, _ := r.BasicAuth(); t.User != "" && (user != t.User || pass != t.Password) {
		Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serial++
	value := fmt.Sprintf("token-%d-of-the-test", t.serial)
	var scopes []string
	for _, s := range r.URL.Query()["scope"] {
		scopes = append(scopes, strings.Fields(s)...)
	}
	t.live[value] = &grant{scopes: scopes, left: t.Uses}
	t.asked = append(t.asked, scopes)
	json.NewEncoder(w).Encode(map[string]any{"token": value, "expires_in": t.Expires})
}

// wanted is the scope that a request needs.
func wanted(r *http.Request) string {
	m := endpoint.FindStringSubmatch(r.URL.Path)
	switch {
	case m == nil:
		return ""
	case r.Method == http.MethodGet && m[2] != "blobs/uploads" || r.Method == http.MethodHead:
		return "repository:" + m[1] + ":pull"
	case r.Method == http.MethodDelete && m[2] == "manifests":
		return "repository:" + m[1] + ":pull,push,delete"
	}
	return "repository:" + m[1] + ":pull,push"
}

func (t *Tokens) admits(r *http.Request) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.live[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if g == nil || t.Uses > 0 && g.left == 0 || !g.allows(wanted(r)) {
		return false
	}
	if from := r.URL.Query().Get("from"); from != "" && r.Method == http.MethodPost && !g.allows("repository:"+from+":pull") {
		return false
	}
	g.left--
	return true
}

func (g *grant) allows(scope string) bool {
	i := strings.LastIndex(scope, ":")
	for _, s := range g.scopes {
		if j := strings.LastIndex(s, ":"); i > 0 && j > 0 && s[:j] == scope[:i] && containsAll(s[j+1:], scope[i+1:]) {
			return true
		}
	}
	return scope == ""
}

func containsAll(have, want string) bool {
	for _, a := range strings.Split(want, ",") {
		if !slices.Contains(strings.Split(have, ","), a) {
			return false
		}
	}
	return true
}
