package remote_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/internal/blob"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// site is a registry with faults, and a repository of it with something in it.
type site struct {
	reg    *ocitest.Registry
	faults *ocitest.Faults
	addr   string
	name   string
	repo   *remote.Repo
	data   []byte // of a blob
	d      v1.Descriptor
	m      []byte // of a manifest, tagged v1
	md     v1.Descriptor
}

// quick are options under which nothing waits for long.
func quick() remote.Options {
	return remote.Options{Backoff: time.Millisecond, Stall: 10 * time.Second, Conns: 4}
}

func newSite(t *testing.T, o remote.Options, set func(*ocitest.Registry)) *site {
	t.Helper()
	s := &site{reg: ocitest.NewRegistry(), name: "acme/server"}
	if set != nil {
		set(s.reg)
	}
	s.faults = ocitest.NewFaults(s.reg)
	srv := httptest.NewServer(s.faults)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	s.addr = srv.Listener.Addr().String()
	fill := mustRepo(t, quick(), s.addr, "acme/server")
	s.data = randomBytes(300_000)
	s.d = push(t, fill, s.data)
	config := push(t, fill, []byte("{}"))
	s.m = manifestOf(config, v1.Descriptor{}, "application/vnd.example", map[string]string{"pad": strings.Repeat("x", 1000)})
	var err error
	if s.md, err = fill.PushManifest(t.Context(), "v1", "", s.m); err != nil {
		t.Fatal(err)
	}
	s.faults.Reset()
	s.repo = mustRepo(t, o, s.addr, "acme/server")
	return s
}

const partOff, partLen = 1000, 100_000

// The ways in which a row uses the site. Each returns an error if the client
// does, and fails the test if what it got is wrong.
func readPart(t *testing.T, s *site) error {
	got, err := read(t.Context(), s.repo, s.d, partOff, partLen)
	if err == nil && !bytes.Equal(got, s.data[partOff:partOff+partLen]) {
		t.Error("wrong bytes")
	}
	if !bytes.HasPrefix(s.data[partOff:], got) {
		t.Error("wrong bytes before the error")
	}
	if err != nil && (!strings.Contains(err.Error(), s.d.Digest.String()) || !strings.Contains(err.Error(), "1000-101000")) {
		t.Errorf("the error names no blob or range: %v", err)
	}
	return err
}

// walk reads the blob in 30 parts.
func walk(t *testing.T, s *site) error {
	for off := int64(0); off < s.d.Size; off += s.d.Size / 30 {
		got, err := read(t.Context(), s.repo, s.d, off, s.d.Size/30)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, s.data[off:off+s.d.Size/30]) {
			t.Error("wrong bytes")
		}
	}
	return nil
}

func fetchAll(t *testing.T, s *site) error {
	got, err := s.repo.Fetch(t.Context(), s.d, 1<<20)
	if err == nil && !bytes.Equal(got, s.data) {
		t.Error("wrong bytes")
	}
	return err
}

func byTag(t *testing.T, s *site) error { return manifest(t, s, "v1") }

func byDigest(t *testing.T, s *site) error { return manifest(t, s, s.md.Digest.String()) }

func manifest(t *testing.T, s *site, ref string) error {
	got, d, err := s.repo.Manifest(t.Context(), ref)
	if err == nil && (!bytes.Equal(got, s.m) || d.Digest != s.md.Digest || d.MediaType != s.md.MediaType) {
		t.Errorf("got %q, %+v", got, d)
	}
	return err
}

func has(t *testing.T, s *site) error {
	ok, err := s.repo.HasBlob(t.Context(), s.d)
	if err == nil && !ok {
		t.Error("it is there")
	}
	return err
}

// upload pushes 3 MB, in parts.
func upload(t *testing.T, s *site) error { return uploadOf(t, s, 3_000_000) }

func uploadSmall(t *testing.T, s *site) error { return uploadOf(t, s, 10_000) }

func uploadOf(t *testing.T, s *site, n int) error {
	b := randomBytes(n)
	d := descriptor(b)
	moved, err := s.repo.PushBlob(t.Context(), d, opener(b), remote.PushOptions{})
	if err != nil {
		return err
	}
	if moved < d.Size || moved > 3*d.Size {
		t.Errorf("moved %d bytes for %d", moved, d.Size)
	}
	got, err := mustRepo(t, quick(), s.addr, "acme/server").Fetch(t.Context(), d, d.Size)
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("what was pushed is wrong: %v", err)
	}
	return nil
}

// uploadOnce is upload, in one session.
func uploadOnce(t *testing.T, s *site) error {
	err := upload(t, s)
	sessions := 0
	for _, r := range s.faults.Log() {
		if r.Method == http.MethodPost {
			sessions++
		}
	}
	if sessions != 1 {
		t.Errorf("%d sessions", sessions)
	}
	return err
}

// attachOne attaches a manifest, and finds it.
func attachOne(t *testing.T, s *site) error {
	m := manifestOf(descriptor([]byte("{}")), s.md, "application/vnd.example.sig", map[string]string{"k": "v"})
	d, err := s.repo.PushManifest(t.Context(), "", "", m)
	if err != nil {
		return err
	}
	got, err := s.repo.Referrers(t.Context(), digestOf(s.md))
	if err == nil && (len(got) != 1 || got[0].Digest != d.Digest || got[0].ArtifactType != "application/vnd.example.sig" || got[0].Annotations["k"] != "v") {
		t.Errorf("referrers are %+v", got)
	}
	return err
}

// row is one fault, what is done meanwhile, and how it ends.
type row struct {
	name  string
	run   func(*testing.T, *site) error
	fault ocitest.Fault
	set   func(*ocitest.Registry)
	stall time.Duration
	with  func(*testing.T, *site) // before run
	guard func(*ocitest.Tokens)   // tokens are wanted
	err   string                  // a part of the error; "": it works
	is    error
	most  int // requests
}

func faultRows(t *testing.T) []row {
	const always = -1
	b, m, u := ocitest.Blob, ocitest.Manifest, ocitest.Upload
	stall := 500 * time.Millisecond
	header := func(k, v string) ocitest.Action {
		return ocitest.Headers(func(h http.Header) {
			if h.Del(k); v != "" {
				h.Set(k, v)
			}
		})
	}
	var rows []row
	add := func(r ...row) { rows = append(rows, r...) }
	for _, code := range []int{500, 502, 503, 504, 408, 429} {
		add(row{name: fmt.Sprintf("blob: %d", code), run: readPart, fault: ocitest.Fault{Kind: b, Do: ocitest.Status(code)}, most: 2})
	}
	add(row{name: "blob: 429 with Retry-After", run: readPart, fault: ocitest.Fault{Kind: b, Do: ocitest.RetryAfter(429, 1)}, most: 2},
		row{name: "blob: 500 for ever", run: readPart, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Status(500)}, err: "500", most: 5},
		row{name: "blob: connection reset", run: readPart, fault: ocitest.Fault{Kind: b, Do: ocitest.Reset()}, most: 2},
		row{name: "blob: reset for ever", run: readPart, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Reset()}, err: "tried 5 times", most: 10})
	for _, code := range []int{400, 403, 404, 405, 410} {
		add(row{name: fmt.Sprintf("blob: %d", code), run: readPart, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Status(code)}, err: fmt.Sprint(code), most: 1})
	}
	positions := []struct {
		name string
		at   ocitest.Position
	}{{"byte 0", ocitest.First}, {"byte 1", ocitest.Second}, {"the middle", ocitest.Middle}, {"the last byte", ocitest.Last}}
	for _, p := range positions {
		add(row{name: "blob: cut at " + p.name, run: readPart, fault: ocitest.Fault{Kind: b, Do: ocitest.Cut(p.at)}, most: 2},
			row{name: "blob: cut at " + p.name + " for ever", run: readPart, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Cut(p.at)}, err: "EOF", most: 30},
			row{name: "blob: stall at " + p.name, run: readPart, stall: stall, fault: ocitest.Fault{Kind: b, Do: ocitest.Stall(p.at)}, most: 2},
			row{name: "blob: wrong " + p.name, run: fetchAll, fault: ocitest.Fault{Kind: b, Do: ocitest.WrongByte(p.at)}, most: 2},
			row{name: "manifest by digest: cut at " + p.name, run: byDigest, fault: ocitest.Fault{Kind: m, Do: ocitest.Cut(p.at)}, most: 2},
			row{name: "manifest by tag: cut at " + p.name, run: byTag, fault: ocitest.Fault{Kind: m, Do: ocitest.Cut(p.at)}, most: 2},
			row{name: "manifest by digest: wrong " + p.name, run: byDigest, fault: ocitest.Fault{Kind: m, Do: ocitest.WrongByte(p.at)}, most: 2},
			row{name: "manifest by tag: wrong " + p.name, run: byTag, fault: ocitest.Fault{Kind: m, Do: ocitest.WrongByte(p.at)}, most: 2},
			row{name: "upload: cut at " + p.name, run: upload, fault: ocitest.Fault{Kind: u, Method: "PATCH", Do: ocitest.CutUpload(p.at)}, most: 12},
			row{name: "upload in one: cut at " + p.name, run: uploadSmall, fault: ocitest.Fault{Kind: u, Method: "PUT", Do: ocitest.CutUpload(p.at)}, most: 11})
	}
	add(row{name: "blob: wrong byte for ever", run: fetchAll, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.WrongByte(ocitest.Middle)}, is: blob.ErrCorrupt, most: 2},
		row{name: "blob: silence", run: readPart, stall: stall, fault: ocitest.Fault{Kind: b, Do: ocitest.Silence()}, most: 2},
		row{name: "blob: silence for ever", run: readPart, stall: stall, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Silence()}, err: "stalled", most: 5},
		row{name: "blob: drip of a byte in 50 ms", run: readPart, stall: stall, fault: ocitest.Fault{Kind: b, Do: ocitest.Drip(50 * time.Millisecond)}, most: 2},
		row{name: "blob: the whole for a range", run: readPart, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Whole()}, most: 1},
		row{name: "blob: the whole for a range, cut", run: readPart, fault: ocitest.Fault{Kind: b, Do: both(ocitest.Whole(), ocitest.Cut(func(int64) int64 { return 50_000 }))}, most: 2},
		row{name: "blob: the whole, cut before the range", run: readPart, fault: ocitest.Fault{Kind: b, Times: always, Do: both(ocitest.Whole(), ocitest.Cut(ocitest.Second))}, err: "of the whole blob", most: 5},
		row{name: "blob: 416 for a good range", run: readPart, fault: ocitest.Fault{Kind: b, Do: ocitest.Status(416)}, most: 2})
	for _, c := range [][2]string{{"a wrong start", "bytes 1001-100999/300000"}, {"a wrong end", "bytes 1000-100998/300000"}, {"a wrong total", "bytes 1000-100999/300001"},
		{"nothing", ""}, {"nonsense", "bytes */300000"}, {"a huge number", "bytes 99999999999999999999-1/2"}} {
		name, v := c[0], c[1]
		add(row{name: "blob: Content-Range with " + name, run: readPart, fault: ocitest.Fault{Kind: b, Do: header("Content-Range", v)}, most: 2},
			row{name: "blob: Content-Range with " + name + " for ever", run: readPart, fault: ocitest.Fault{Kind: b, Times: always, Do: header("Content-Range", v)}, err: "Content-Range", most: 5})
	}
	add(row{name: "blob: encoded on the way", run: readPart, fault: ocitest.Fault{Kind: b, Do: header("Content-Encoding", "gzip")}, most: 2},
		row{name: "blob: another's size", run: readPart, with: func(_ *testing.T, s *site) { s.d.Size++ }, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Whole()}, is: blob.ErrCorrupt, most: 5},
		row{name: "blob: deleted mid-way", run: readPart, with: func(t *testing.T, s *site) {
			s.faults.Add(ocitest.Fault{Kind: b, After: 1, Times: always, Do: ocitest.Meanwhile(func() { s.reg.DropBlob(digestOf(s.d)) })})
		}, fault: ocitest.Fault{Kind: b, Do: ocitest.Cut(ocitest.Middle)}, is: blob.ErrNotFound, most: 2},
		row{name: "blob: HEAD 503", run: has, fault: ocitest.Fault{Kind: b, Do: ocitest.Status(503)}, most: 2},
		row{name: "blob: a token for 7 requests, 30 ranges", run: walk, guard: func(k *ocitest.Tokens) { k.Uses = 7 }, most: 39},
		row{name: "blob: a token for no request", run: readPart, guard: func(k *ocitest.Tokens) {}, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Status(401)}, err: "401", most: 4},
		row{name: "blob: redirect to another host, 30 ranges", run: walk, with: func(t *testing.T, s *site) {
			_, base := elsewhere(t, s)
			s.faults.Add(ocitest.Fault{Kind: b, Times: always, Do: ocitest.Redirect(base)})
		}, most: 1},
		row{name: "blob: redirect that expires every 10 ranges", run: walk, with: func(t *testing.T, s *site) {
			store, base := elsewhere(t, s)
			s.faults.Add(ocitest.Fault{Kind: b, Times: always, Do: ocitest.Redirect(base)})
			store.Add(ocitest.Fault{Kind: b, After: 10, Do: ocitest.Status(403)})
			store.Add(ocitest.Fault{Kind: b, After: 20, Do: ocitest.Status(403)})
		}, most: 3},
		row{name: "blob: redirect to nobody", run: readPart, fault: ocitest.Fault{Kind: b, Do: ocitest.Redirect("http://127.0.0.1:1")}, most: 2},
		row{name: "blob: redirect in a circle", run: readPart, with: func(_ *testing.T, s *site) {
			s.faults.Add(ocitest.Fault{Kind: b, Times: always, Do: ocitest.Redirect("http://" + s.addr)})
		}, err: "more than 5 redirects", most: 6},
		row{name: "blob: redirect to plain HTTP elsewhere", run: readPart, fault: ocitest.Fault{Kind: b, Times: always, Do: ocitest.Redirect("http://store.example")}, err: "plain HTTP is not allowed", most: 1},
		row{name: "hello: 503", run: readPart, fault: ocitest.Fault{Kind: ocitest.Hello, Do: ocitest.Status(503)}, most: 3},
		row{name: "hello: 404 for ever", run: readPart, fault: ocitest.Fault{Kind: ocitest.Hello, Times: always, Do: ocitest.Status(404)}, err: "404", most: 1},
		row{name: "manifest: deleted", run: byDigest, fault: ocitest.Fault{Kind: m, Times: always, Do: ocitest.Status(404)}, is: blob.ErrNotFound, most: 1},
		row{name: "manifest: wrong byte for ever", run: byDigest, fault: ocitest.Fault{Kind: m, Times: always, Do: ocitest.WrongByte(ocitest.Middle)}, is: blob.ErrCorrupt, most: 5},
		row{name: "manifest: of Docker's first schema", run: byTag, fault: ocitest.Fault{Kind: m, Times: always, Do: text("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}")}, err: "schema 2", most: 1},
		row{name: "manifest: 5 MiB", run: byTag, fault: ocitest.Fault{Kind: m, Times: always, Do: text("application/json", strings.Repeat(" ", 5<<20))}, err: "more than 4194304 bytes", most: 1},
		row{name: "manifest: the tag moves mid-way", run: byTag, with: func(_ *testing.T, s *site) { moveTag(s) }, most: 2})
	for _, method := range []string{"POST", "PATCH", "PUT"} {
		silence := stall
		if method == "PUT" { // the registry may think for ten times as long
			silence = stall / 3
		}
		add(row{name: "upload: " + method + " 503", run: upload, fault: ocitest.Fault{Kind: u, Method: method, Do: ocitest.Status(503)}, most: 12},
			row{name: "upload: " + method + " 429 for ever", run: upload, fault: ocitest.Fault{Kind: u, Method: method, Times: always, Do: ocitest.Status(429)}, err: "429", most: 30},
			row{name: "upload: " + method + " reset", run: upload, fault: ocitest.Fault{Kind: u, Method: method, Do: ocitest.Reset()}, most: 11},
			row{name: "upload: " + method + " silence", run: upload, stall: silence, fault: ocitest.Fault{Kind: u, Method: method, Do: ocitest.Silence()}, most: 11},
			row{name: "upload: " + method + " answer lost", run: upload, fault: ocitest.Fault{Kind: u, Method: method, Do: answerLost}, most: 7},
			row{name: "upload: " + method + " 403", run: upload, fault: ocitest.Fault{Kind: u, Method: method, Times: always, Do: ocitest.Status(403)}, err: "403", most: 5})
	}
	add(row{name: "upload: session lost", run: upload, with: func(t *testing.T, s *site) {
		s.faults.Add(ocitest.Fault{Kind: u, Method: "PUT", Do: ocitest.Meanwhile(s.reg.DropUploads)})
	}, most: 11},
		row{name: "upload: session lost after a cut", run: upload, with: func(t *testing.T, s *site) {
			s.faults.Add(ocitest.Fault{Kind: u, Method: "GET", Do: ocitest.Meanwhile(s.reg.DropUploads)})
		}, fault: ocitest.Fault{Kind: u, Method: "PATCH", Do: ocitest.CutUpload(ocitest.Middle)}, most: 11},
		row{name: "upload: the session tells too little at first", run: uploadOnce, with: func(t *testing.T, s *site) {
			s.faults.Add(ocitest.Fault{Kind: u, Method: "GET", Do: header("Range", "0-0")})
		}, fault: ocitest.Fault{Kind: u, Method: "PATCH", Do: ocitest.CutUpload(ocitest.Middle)}, most: 11},
		row{name: "upload: 417 after a cut", run: upload, with: func(t *testing.T, s *site) {
			s.faults.Add(ocitest.Fault{Kind: u, Method: "PATCH", After: 1, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("Expect") == "" {
					t.Error("no Expect")
				}
				w.WriteHeader(http.StatusExpectationFailed)
			}})
		}, fault: ocitest.Fault{Kind: u, Method: "PATCH", Do: ocitest.CutUpload(ocitest.Middle)}, most: 11},
		row{name: "upload: no PATCH", run: upload, set: func(g *ocitest.Registry) { g.NoPatch = true }, most: 11},
		row{name: "upload: wrong digest, once", run: upload, fault: ocitest.Fault{Kind: u, Method: "PUT", Do: digestInvalid}, most: 11},
		row{name: "upload: wrong digest for ever", run: upload, fault: ocitest.Fault{Kind: u, Method: "PUT", Times: always, Do: digestInvalid}, err: "DIGEST_INVALID", most: 11},
		row{name: "upload: a session without Location", run: upload, fault: ocitest.Fault{Kind: u, Method: "POST", Times: always, Do: ocitest.Status(202)}, err: "Location", most: 3},
		row{name: "attach: API", run: attachOne, most: 6},
		row{name: "attach: no API", run: attachOne, set: func(g *ocitest.Registry) { g.NoReferrers = true }, most: 12},
		row{name: "attach: wrong types listed", run: attachOne, set: func(g *ocitest.Registry) { g.WrongTypes = true }, most: 6},
		row{name: "attach: a page of HTML for the listing", run: attachOne, set: func(g *ocitest.Registry) { g.NoReferrers = true },
			fault: ocitest.Fault{Kind: ocitest.Referrers, Times: always, Do: text("text/html", "<html>")}, most: 12},
		row{name: "attach: 500 from the listing", run: attachOne, fault: ocitest.Fault{Kind: ocitest.Referrers, Do: ocitest.Status(500)}, most: 7},
		row{name: "attach: 500 from the listing for ever", run: attachOne, fault: ocitest.Fault{Kind: ocitest.Referrers, Times: always, Do: ocitest.Status(500)}, err: "500", most: 12},
		row{name: "attach: listing cut", run: attachOne, fault: ocitest.Fault{Kind: ocitest.Referrers, Do: ocitest.Cut(ocitest.Middle)}, most: 7},
		row{name: "attach: no API, index cut", run: attachOne, set: func(g *ocitest.Registry) { g.NoReferrers = true },
			fault: ocitest.Fault{Kind: m, Method: "GET", Path: "sha256-", After: 1, Do: ocitest.Cut(ocitest.Middle)}, most: 13},
		row{name: "attach: no API, index put 500", run: attachOne, set: func(g *ocitest.Registry) { g.NoReferrers = true },
			fault: ocitest.Fault{Kind: m, Method: "PUT", Path: "sha256-", Do: ocitest.Status(500)}, most: 13})
	return rows
}

// both lets one action serve through another.
func both(a, b ocitest.Action) ocitest.Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		a(w, r, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b(w, r, next) }))
	}
}

func text(contentType, body string) ocitest.Action {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", contentType)
		fmt.Fprint(w, body)
	}
}

// answerLost lets the registry do its work, and the client not know.
func answerLost(_ http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

func digestInvalid(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	ocitest.Refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
}

// moveTag makes v1 name another manifest, while the first is half read.
func moveTag(s *site) {
	next := bytes.Replace(s.m, []byte("xxxx"), []byte("yyyy"), 1)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Manifest, Method: "GET", Do: func(w http.ResponseWriter, r *http.Request, reg http.Handler) {
		put := httptest.NewRequest(http.MethodPut, r.URL.Path, bytes.NewReader(next))
		put.Header.Set("Content-Type", string(s.md.MediaType))
		ocitest.Cut(ocitest.Middle)(w, r, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			old := httptest.NewRecorder()
			reg.ServeHTTP(old, r)
			reg.ServeHTTP(httptest.NewRecorder(), put)
			s.m, s.md = next, descriptor(next)
			s.md.MediaType = "application/vnd.oci.image.manifest.v1+json"
			for k, v := range old.Header() {
				w.Header()[k] = v
			}
			w.Write(old.Body.Bytes())
		}))
	}})
}

// TestFaults does something under each fault: it ends well, or in a clear error,
// after a bounded number of requests, and never with wrong bytes.
func TestFaults(t *testing.T) {
	t.Parallel()
	rows := faultRows(t)
	lines := make([]string, len(rows))
	var wg sync.WaitGroup
	limit := make(chan struct{}, 8)
	for i, r := range rows {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			t.Run(r.name, func(t *testing.T) { lines[i] = r.play(t) })
		})
	}
	wg.Wait()
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tREQUESTS\tBYTES\tEND")
	for _, l := range lines {
		fmt.Fprintln(w, l)
	}
	w.Flush()
	t.Logf("what happens under %d faults:\n%s", len(rows), out.String())
}

func (r row) play(t *testing.T) string {
	o := quick()
	if r.stall > 0 {
		o.Stall = r.stall
	}
	var s *site
	if r.guard != nil {
		s, _, _ = guarded(t, r.guard)
	} else {
		s = newSite(t, o, r.set)
	}
	if r.fault.Do != nil {
		s.faults.Add(r.fault)
	}
	if r.with != nil {
		r.with(t, s)
	}
	err := r.run(t, s)
	requests, n := s.faults.Count("")
	end := "right"
	switch {
	case err != nil && r.err == "" && r.is == nil:
		t.Errorf("%v", err)
	case err == nil && (r.err != "" || r.is != nil):
		t.Errorf("no error, want %q %v", r.err, r.is)
	case err != nil && (!strings.Contains(err.Error(), r.err) || r.is != nil && !errors.Is(err, r.is)):
		t.Errorf("%v, want %q %v", err, r.err, r.is)
	}
	if err != nil {
		end = "error: " + strings.NewReplacer(s.addr, "HOST", s.d.Digest.Hex, s.d.Digest.Hex[:8]+"…", s.md.Digest.Hex, s.md.Digest.Hex[:8]+"…").Replace(err.Error())
	}
	if r.stall > 0 { // a busy machine stalls by itself
		r.most += 15
	}
	if requests > r.most+1 { // and the handshake
		for _, rec := range s.faults.Log() {
			t.Logf("%+v", rec)
		}
		t.Errorf("%d requests, want at most %d", requests, r.most+1)
	}
	return fmt.Sprintf("%s\t%d\t%d\t%s", r.name, requests, n, end)
}
