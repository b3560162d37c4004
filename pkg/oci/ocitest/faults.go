package ocitest

import (
	"net/http"
	"strings"
	"sync"
)

// Kind is what a request is about.
type Kind string

// The kinds of requests.
const (
	Hello     Kind = "hello" // /v2/
	Manifest  Kind = "manifest"
	Blob      Kind = "blob"
	Upload    Kind = "upload"
	Referrers Kind = "referrers"
	Tags      Kind = "tags"
	Token     Kind = "token"
	Other     Kind = "other"
)

// KindOf says what a request is about.
func KindOf(r *http.Request) Kind {
	m := endpoint.FindStringSubmatch(r.URL.Path)
	switch {
	case r.URL.Path == "/v2/":
		return Hello
	case strings.HasPrefix(r.URL.Path, "/token"):
		return Token
	case m == nil:
		return Other
	}
	return map[string]Kind{"blobs": Blob, "blobs/uploads": Upload, "manifests": Manifest, "referrers": Referrers, "tags": Tags}[m[2]]
}

// Action serves a request in another way than next does.
type Action func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Fault matches requests, and says what becomes of them.
type Fault struct {
	Kind   Kind   // "": any
	Method string // "": any
	Path   string // a part of it; "": any
	After  int    // this many matching requests pass first
	Times  int    // this many fail then; 0: one, negative: all
	Do     Action

	seen int
}

func (f *Fault) matches(r *http.Request) bool {
	if f.Kind != "" && f.Kind != KindOf(r) || f.Method != "" && f.Method != r.Method || !strings.Contains(r.URL.Path, f.Path) {
		return false
	}
	f.seen++
	n := f.seen - f.After
	return n > 0 && (f.Times < 0 || n <= max(f.Times, 1))
}

// Record is a request that was served.
type Record struct {
	Kind          Kind
	Method        string
	Path          string
	Query         string
	Range         string // of the request
	Authorization string
	Sent          int64 // bytes of the answer's body
	Faulty        bool
}

// Faults puts faults before a registry, and records what is asked of it.
type Faults struct {
	next http.Handler

	mu     sync.Mutex
	faults []*Fault
	log    []Record
}

// NewFaults returns next without faults.
func NewFaults(next http.Handler) *Faults { return &Faults{next: next} }

// Add adds a fault. Of several that match, the first that was added acts.
func (f *Faults) Add(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &fault)
}

// Reset removes the faults and forgets the records.
func (f *Faults) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.log = nil, nil
}

// Log returns what was asked, in the order in which it was begun.
func (f *Faults) Log() []Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Record(nil), f.log...)
}

// Count returns how many requests of a kind there were ("": all), and how many
// bytes of bodies they were answered with.
func (f *Faults) Count(k Kind) (requests int, bytes int64) {
	for _, r := range f.Log() {
		if k == "" || r.Kind == k {
			requests++
			bytes += r.Sent
		}
	}
	return requests, bytes
}

// ServeHTTP implements http.Handler.
func (f *Faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	var do Action
	for _, fault := range f.faults {
		if fault.matches(r) && do == nil {
			do = fault.Do
		}
	}
	i := len(f.log)
	f.log = append(f.log, Record{Kind: KindOf(r), Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
		Range: r.Header.Get("Range"), Authorization: r.Header.Get("Authorization"), Faulty: do != nil})
	f.mu.Unlock()
	cw := &counting{ResponseWriter: w, add: func(n int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if i < len(f.log) { // not Reset
			f.log[i].Sent += int64(n)
		}
	}}
	if do == nil {
		f.next.ServeHTTP(cw, r)
		return
	}
	do(cw, r, f.next)
}

// counting counts what is written through it.
type counting struct {
	http.ResponseWriter
	add func(int)
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.add(n)
	return n, err
}

func (c *counting) Unwrap() http.ResponseWriter { return c.ResponseWriter }
