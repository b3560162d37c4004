package registry_test

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

// fuzzed is a registry with an image in it, that is asked without a network.
func fuzzed(f *testing.F) (*registry.Registry, string, client, image) {
	f.Helper()
	outer := f.TempDir()
	root := filepath.Join(outer, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		f.Fatal(err)
	}
	c := serveDir(f, root, registry.Options{})
	m := c.newImage("x")
	c.mustPush(m, "v1")
	reg, err := registry.New(root, registry.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = reg.Close() }) // of a test's directory
	return reg, outer, c, m
}

// FuzzRequests: whatever is asked for, the answer is no 5xx and no panic, what is
// wrong is said in the specification's form, and nothing is made outside of the
// directory.
func FuzzRequests(f *testing.F) {
	reg, outer, _, m := fuzzed(f)
	layer := (*m.Layers)[0].Digest
	for _, s := range []string{"GET /v2/", "GET /v2/_catalog?n=1&last=a", "GET /v2/acme/server/blobs/" + layer, "PUT /v2/acme/server/manifests/v2", "GET /v2/acme/server/manifests/v1",
		"POST /v2/a/../../b/blobs/uploads/", "POST /v2/a/b/blobs/uploads/?mount=" + layer + "&from=../acme/server", "POST /v2/a/blobs/uploads/?digest=" + layer, "PATCH /v2/acme/server/blobs/uploads/x",
		"GET /v2/acme/server/referrers/" + layer + "?artifactType=x", "DELETE /v2/acme/server/blobs/" + layer, "GET /v2/acme/server/tags/list?n=99999999999999999999", "GET /v2//tags/list", "OPTIONS *", "GET /v2"} {
		method, target, _ := strings.Cut(s, " ")
		f.Add(method, target, "bytes=0-1", "0-3", []byte("body"))
	}
	f.Fuzz(func(t *testing.T, method, target, byteRange, contentRange string, body []byte) {
		if !strings.HasPrefix(target, "/") || strings.ContainsAny(method+target, " \x00\r\n\t\x7f") || method == "" {
			t.Skip()
		}
		for _, c := range method + target {
			if c < ' ' || c > '~' {
				t.Skip() // net/http lets none of them through
			}
		}
		req := newRequest(method, target, body)
		if req == nil {
			t.Skip()
		}
		req.Header.Set("Range", byteRange)
		req.Header.Set("Content-Range", contentRange)
		w := httptest.NewRecorder()
		reg.ServeHTTP(w, req)
		checkAnswer(t, w, method+" "+target)
		if entries, err := os.ReadDir(outer); err != nil || len(entries) != 1 {
			t.Errorf("%s %s made %v, %v", method, target, entries, err)
		}
	})
}

// FuzzManifests: a manifest is taken, or refused as a client's mistake; one that
// was taken is given back as it came, and says nothing that is not there.
func FuzzManifests(f *testing.F) {
	reg, _, c, m := fuzzed(f)
	f.Add(m.bytes(f), typeManifest)
	m.Subject = &desc{MediaType: typeManifest, Digest: digestOf(nil), Size: 1}
	f.Add(m.bytes(f), typeManifest)
	f.Add(image{SchemaVersion: 2, MediaType: typeIndex, Manifests: &[]desc{}}.bytes(f), typeIndex)
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"a","digest":"`+m.Config.Digest+`","size":1e3},"layers":null}`), typeManifest)
	f.Add([]byte(`{"schemaVersion":2,"layers":[{}],"config":{}}`), "")
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		req := newRequest("PUT", "/v2/"+c.repo+"/manifests/fuzz", body)
		req.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		reg.ServeHTTP(w, req)
		checkAnswer(t, w, string(body))
		if w.Code != 201 {
			return
		}
		get := httptest.NewRecorder()
		reg.ServeHTTP(get, newRequest("GET", "/v2/"+c.repo+"/manifests/fuzz", nil))
		if get.Code != 200 || !bytes.Equal(get.Body.Bytes(), body) {
			t.Errorf("%q was taken; got %d, %q", body, get.Code, get.Body)
		}
		var doc image
		if err := json.Unmarshal(body, &doc); err != nil {
			t.Errorf("%q was taken: %v", body, err)
		}
	})
}

func checkAnswer(t *testing.T, w *httptest.ResponseRecorder, what string) {
	t.Helper()
	if w.Code >= 500 {
		t.Errorf("%s: %d %s", what, w.Code, w.Body)
	}
	if w.Code >= 400 && w.Body.Len() > 0 {
		var doc struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || len(doc.Errors) == 0 || doc.Errors[0].Code == "" {
			t.Errorf("%s: %d %q: %v", what, w.Code, w.Body, err)
		}
	}
}
