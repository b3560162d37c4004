package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

// client speaks to a registry in the words of the specification.
type client struct {
	t    testing.TB
	base string // http://HOST:PORT
	repo string
}

// reply is an answer, read to its end.
type reply struct {
	*http.Response
	body []byte
}

type header map[string]string

// do sends a request; a path that begins with "/v2/" or has a scheme is taken
// as it is, any other is below the client's repository.
func (c client) do(method, path string, body []byte, h header) reply {
	c.t.Helper()
	r, err := c.try(method, path, bytes.NewReader(body), h)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (c client) try(method, path string, body io.Reader, h header) (reply, error) {
	switch {
	case strings.HasPrefix(path, "/"):
		path = c.base + path
	case !strings.Contains(path, "://"):
		path = c.base + "/v2/" + c.repo + "/" + path
	}
	if body == nil {
		body = http.NoBody
	}
	req, err := http.NewRequestWithContext(context.Background(), method, path, body)
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Accept", typeManifest+", "+typeIndex+", */*")
	for k, v := range h {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultTransport.RoundTrip(req) // no redirects
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res, b}, err
}

// want fails the test unless the answer has one of the statuses.
func (r reply) want(t testing.TB, status ...int) reply {
	t.Helper()
	for _, s := range status {
		if r.StatusCode == s {
			return r
		}
	}
	t.Fatalf("%s %s: status %d, want %v\n%v\n%s", r.Request.Method, r.Request.URL, r.StatusCode, status, r.Header, r.body)
	return r
}

// code fails the test unless the answer is a JSON error of that code.
func (r reply) code(t testing.TB, want string) {
	t.Helper()
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(r.body, &doc); err != nil || len(doc.Errors) == 0 || doc.Errors[0].Code != want {
		t.Errorf("%s %s: got %s, want the error %s", r.Request.Method, r.Request.URL, r.body, want)
	}
}

func (r reply) head(t testing.TB, name, want string) {
	t.Helper()
	if got := r.Header.Get(name); got != want {
		t.Errorf("%s %s: %s is %q, want %q", r.Request.Method, r.Request.URL, name, got, want)
	}
}

func digestOf(b []byte) string { return diskimage.DigestOf(b).String() }

// location is where an answer points, as a path or URL.
func (r reply) location(t testing.TB, query string) string {
	t.Helper()
	l := r.Header.Get("Location")
	if l == "" {
		t.Fatalf("%s %s: no Location", r.Request.Method, r.Request.URL)
	}
	if query == "" {
		return l
	}
	if strings.Contains(l, "?") {
		return l + "&" + query
	}
	return l + "?" + query
}

// start begins an upload and returns its location.
func (c client) start() string {
	c.t.Helper()
	return c.do("POST", "blobs/uploads/", nil, nil).want(c.t, 202).location(c.t, "")
}

// blob pushes a blob and returns its descriptor.
func (c client) blob(b []byte, mediaType string) desc {
	c.t.Helper()
	at := c.do("POST", "blobs/uploads/", nil, nil).want(c.t, 202).location(c.t, "digest="+digestOf(b))
	c.do("PUT", at, b, header{"Content-Type": "application/octet-stream"}).want(c.t, 201)
	return desc{MediaType: mediaType, Digest: digestOf(b), Size: len(b)}
}

type desc struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int               `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	URLs         []string          `json:"urls,omitempty"`
}

const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
	typeEmpty    = "application/vnd.oci.empty.v1+json"
)

// image is a manifest that tests push.
type image struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        *desc             `json:"config,omitempty"`
	Layers        *[]desc           `json:"layers,omitempty"`
	Manifests     *[]desc           `json:"manifests,omitempty"`
	Subject       *desc             `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

func (m image) bytes(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newImage pushes the blobs of an image and returns its manifest.
func (c client) newImage(text string) image {
	c.t.Helper()
	config := c.blob([]byte(`{"architecture":"amd64","os":"linux","note":"`+text+`"}`), typeConfig)
	return image{SchemaVersion: 2, MediaType: typeManifest, Config: &config, Layers: &[]desc{c.blob([]byte("layer of "+text), typeLayer)}}
}

// push pushes a manifest under a reference, its digest for "".
func (c client) push(m image, reference string) (desc, reply) {
	c.t.Helper()
	b := m.bytes(c.t)
	if reference == "" {
		reference = digestOf(b)
	}
	r := c.do("PUT", "manifests/"+reference, b, header{"Content-Type": m.MediaType})
	return desc{MediaType: m.MediaType, Digest: digestOf(b), Size: len(b)}, r
}

// mustPush is push that must succeed.
func (c client) mustPush(m image, reference string) desc {
	c.t.Helper()
	d, r := c.push(m, reference)
	r.want(c.t, 201)
	return d
}

// serve serves a new directory.
func serve(t testing.TB, o registry.Options) (c client, root string) {
	t.Helper()
	root = t.TempDir()
	return serveDir(t, root, o), root
}

func serveDir(t testing.TB, root string, o registry.Options) client {
	t.Helper()
	reg, err := registry.New(root, o)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(reg)
	t.Cleanup(func() {
		server.Close()
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	return client{t, server.URL, "acme/server"}
}

// distribution starts the reference implementation.
func distribution(t testing.TB) client {
	t.Helper()
	return client{t, "http://" + ocitest.Distribution(t), "acme/server"}
}

// newRequest returns a request as a server gets it, or nil for a target that is
// no URL.
func newRequest(method, target string, body []byte) *http.Request {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil
	}
	req, err := http.NewRequest(method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil
	}
	req.URL, req.RequestURI, req.RemoteAddr = u, target, "192.0.2.1:1"
	return req
}
