package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

// point is what distribution-spec 1.1 asks for, or lets a registry do and ours
// does. Every one has a repository of its own.
type point struct {
	name string
	test func(t *testing.T, c client)
	// lacks says why distribution's registry is not asked.
	lacks string
}

func TestConformance(t *testing.T) {
	c, _ := serve(t, registry.Options{})
	conform(t, c, false)
}

// The same points are put to the reference implementation: they are the
// specification's, not ours.
func TestConformanceOfDistribution(t *testing.T) {
	conform(t, distribution(t), true)
}

func conform(t *testing.T, c client, distribution bool) {
	for i, p := range points {
		t.Run(strings.ReplaceAll(p.name, " ", "_"), func(t *testing.T) {
			if distribution && p.lacks != "" {
				t.Skip("distribution: " + p.lacks)
			}
			p.test(t, client{t, c.base, fmt.Sprintf("conform/point-%d", i)})
		})
	}
}

var points = slices.Concat(pullPoints, pushPoints, manifestPoints, discoveryPoints, managementPoints)

var pullPoints = []point{
	{name: "end-1 base", test: func(t *testing.T, c client) {
		c.do("GET", "/v2/", nil, nil).want(t, 200)
	}},
	{name: "end-2 blob", test: func(t *testing.T, c client) {
		d := c.blob([]byte("some bytes"), "")
		r := c.do("GET", "blobs/"+d.Digest, nil, nil).want(t, 200)
		r.head(t, "Docker-Content-Digest", d.Digest)
		r.head(t, "Content-Length", "10")
		if string(r.body) != "some bytes" {
			t.Errorf("got %q", r.body)
		}
		r = c.do("HEAD", "blobs/"+d.Digest, nil, nil).want(t, 200)
		r.head(t, "Docker-Content-Digest", d.Digest)
		r.head(t, "Content-Length", "10")
	}},
	{name: "end-2 blob that is missing", test: func(t *testing.T, c client) {
		c.blob([]byte("another"), "")
		c.do("GET", "blobs/"+digestOf([]byte("missing")), nil, nil).want(t, 404).code(t, "BLOB_UNKNOWN")
		c.do("HEAD", "blobs/"+digestOf([]byte("missing")), nil, nil).want(t, 404)
	}},
	{name: "end-2 not a digest", test: func(t *testing.T, c client) {
		c.do("GET", "blobs/sha256:abc", nil, nil).want(t, 400, 404).code(t, "DIGEST_INVALID")
	}},
	{name: "end-2 every range", test: func(t *testing.T, c client) {
		b := []byte("0123456789abcdefghijklm")
		at := "blobs/" + c.blob(b, "").Digest
		n := len(b)
		ask := func(spec string, from, to int) {
			t.Helper()
			r := c.do("GET", at, nil, header{"Range": "bytes=" + spec}).want(t, 206)
			r.head(t, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, n))
			r.head(t, "Content-Length", fmt.Sprint(to-from))
			if !bytes.Equal(r.body, b[from:to]) {
				t.Errorf("bytes=%s: got %q, want %q", spec, r.body, b[from:to])
			}
		}
		for from := range n {
			for to := from; to < n; to++ {
				ask(fmt.Sprintf("%d-%d", from, to), from, to+1)
			}
			ask(fmt.Sprintf("%d-", from), from, n)
			ask(fmt.Sprintf("-%d", n-from), from, n)
			ask(fmt.Sprintf("%d-1000", from), from, n)
		}
		ask("-1000", 0, n)
	}},
	{name: "end-2 range that is not there", test: func(t *testing.T, c client) {
		d := c.blob([]byte("0123456789"), "")
		for _, spec := range []string{"10-", "10-12", "1000-2000"} {
			c.do("GET", "blobs/"+d.Digest, nil, header{"Range": "bytes=" + spec}).want(t, 416).head(t, "Content-Range", "bytes */10")
		}
	}},
	{name: "end-3 manifest", test: func(t *testing.T, c client) {
		m := c.newImage("pull")
		b := append(m.bytes(t), '\n') // the bytes are kept, not the JSON
		c.do("PUT", "manifests/v1", b, header{"Content-Type": typeManifest}).want(t, 201)
		for _, ref := range []string{"v1", digestOf(b)} {
			r := c.do("GET", "manifests/"+ref, nil, header{"Accept": typeManifest}).want(t, 200)
			r.head(t, "Content-Type", typeManifest)
			r.head(t, "Docker-Content-Digest", digestOf(b))
			if !bytes.Equal(r.body, b) {
				t.Errorf("%s: got %q, want %q", ref, r.body, b)
			}
			r = c.do("HEAD", "manifests/"+ref, nil, header{"Accept": typeManifest}).want(t, 200)
			r.head(t, "Docker-Content-Digest", digestOf(b))
			r.head(t, "Content-Length", fmt.Sprint(len(b)))
			r.head(t, "Content-Type", typeManifest)
		}
	}},
	{name: "end-3 manifest that is missing", test: func(t *testing.T, c client) {
		c.mustPush(c.newImage("x"), "v1")
		for _, ref := range []string{"v2", digestOf([]byte("missing"))} {
			c.do("GET", "manifests/"+ref, nil, nil).want(t, 404).code(t, "MANIFEST_UNKNOWN")
			c.do("HEAD", "manifests/"+ref, nil, nil).want(t, 404)
		}
	}},
	{name: "end-3 repository that is missing", test: func(t *testing.T, c client) {
		c.do("GET", "manifests/v1", nil, nil).want(t, 404)
		c.do("HEAD", "manifests/v1", nil, nil).want(t, 404)
	}},
}

var pushPoints = []point{
	{name: "end-4a end-6 post then put", test: func(t *testing.T, c client) {
		b := []byte("monolithic")
		r := c.do("PUT", c.do("POST", "blobs/uploads/", nil, nil).want(t, 202).location(t, "digest="+digestOf(b)), b, nil).want(t, 201)
		if got := c.do("GET", r.location(t, ""), nil, nil).want(t, 200); !bytes.Equal(got.body, b) {
			t.Errorf("got %q", got.body)
		}
	}},
	{name: "end-4b single post", test: func(t *testing.T, c client) {
		b := []byte("in one request")
		r := c.do("POST", "blobs/uploads/?digest="+digestOf(b), b, nil).want(t, 201)
		r.head(t, "Docker-Content-Digest", digestOf(b))
		c.do("HEAD", r.location(t, ""), nil, nil).want(t, 200)
		c.do("POST", "blobs/uploads/?digest="+digestOf([]byte("other")), b, nil).want(t, 400).code(t, "DIGEST_INVALID")
	}, lacks: "takes a single POST for the beginning of an upload"},
	{name: "end-5 streamed", test: func(t *testing.T, c client) {
		b := []byte("first half, second half")
		r := c.do("PATCH", c.start(), b[:12], nil).want(t, 202)
		r.head(t, "Range", "0-11")
		r = c.do("PATCH", r.location(t, ""), b[12:], nil).want(t, 202)
		r.head(t, "Range", "0-22")
		r = c.do("PUT", r.location(t, "digest="+digestOf(b)), nil, nil).want(t, 201)
		c.do("HEAD", r.location(t, ""), nil, nil).want(t, 200).head(t, "Content-Length", "23")
	}},
	{name: "end-5 end-13 chunked", test: func(t *testing.T, c client) {
		b := []byte("0123456789abcdef")
		at := c.start()
		for from := 0; from < 12; from += 4 {
			r := c.do("PATCH", at, b[from:from+4], header{"Content-Range": fmt.Sprintf("%d-%d", from, from+3)}).want(t, 202)
			r.head(t, "Range", fmt.Sprintf("0-%d", from+3))
			at = r.location(t, "")
			r = c.do("GET", at, nil, nil).want(t, 204)
			r.head(t, "Range", fmt.Sprintf("0-%d", from+3))
			at = r.location(t, "")
		}
		at = withQuery(at, "digest="+digestOf(b))
		r := c.do("PUT", at, b[12:], header{"Content-Range": "12-15"}).want(t, 201)
		if got := c.do("GET", r.location(t, ""), nil, nil).want(t, 200); !bytes.Equal(got.body, b) {
			t.Errorf("got %q", got.body)
		}
	}},
	{name: "end-5 chunk out of order", test: func(t *testing.T, c client) {
		at := c.do("PATCH", c.start(), []byte("0123"), header{"Content-Range": "0-3"}).want(t, 202).location(t, "")
		c.do("PATCH", at, []byte("89ab"), header{"Content-Range": "8-11"}).want(t, 416)
		at = c.do("GET", at, nil, nil).want(t, 204).location(t, "")
		r := c.do("PATCH", at, []byte("4567"), header{"Content-Range": "4-7"}).want(t, 202)
		r.head(t, "Range", "0-7")
	}},
	{name: "end-6 last chunk out of order", test: func(t *testing.T, c client) {
		at := c.do("PATCH", c.start(), []byte("0123"), header{"Content-Range": "0-3"}).want(t, 202).location(t, "digest="+digestOf([]byte("012389ab")))
		c.do("PUT", at, []byte("89ab"), header{"Content-Range": "8-11"}).want(t, 416)
	}},
	{name: "end-6 wrong digest", test: func(t *testing.T, c client) {
		c.do("PUT", withQuery(c.start(), "digest="+digestOf([]byte("right"))), []byte("wrong"), nil).want(t, 400).code(t, "DIGEST_INVALID")
		c.do("HEAD", "blobs/"+digestOf([]byte("right")), nil, nil).want(t, 404)
		c.do("HEAD", "blobs/"+digestOf([]byte("wrong")), nil, nil).want(t, 404)
	}},
	{name: "end-6 no digest", test: func(t *testing.T, c client) {
		c.do("PUT", c.start(), []byte("x"), nil).want(t, 400).code(t, "DIGEST_INVALID")
	}},
	{name: "end-6 empty blob", test: func(t *testing.T, c client) {
		d := c.blob(nil, "")
		c.do("GET", "blobs/"+d.Digest, nil, nil).want(t, 200).head(t, "Content-Length", "0")
	}},
	{name: "end-5 upload that is missing", test: func(t *testing.T, c client) {
		c.start()
		for _, method := range []string{"PATCH", "GET"} {
			c.do(method, "blobs/uploads/0b7b1b4e-0000-4000-8000-000000000000", nil, nil).want(t, 404).code(t, "BLOB_UPLOAD_UNKNOWN")
		}
	}, lacks: "calls the ID invalid"},
	{name: "end-14 cancel", test: func(t *testing.T, c client) {
		at := c.start()
		c.do("DELETE", at, nil, nil).want(t, 204)
		c.do("GET", at, nil, nil).want(t, 404).code(t, "BLOB_UPLOAD_UNKNOWN")
	}},
	{name: "end-11 mount", test: func(t *testing.T, c client) {
		d := c.blob([]byte("to be mounted"), "")
		other := client{t, c.base, c.repo + "/other"}
		r := other.do("POST", "blobs/uploads/?mount="+d.Digest+"&from="+c.repo, nil, nil).want(t, 201)
		if got := other.do("GET", r.location(t, ""), nil, nil).want(t, 200); string(got.body) != "to be mounted" {
			t.Errorf("got %q", got.body)
		}
	}},
	{name: "end-11 mount of what is missing", test: func(t *testing.T, c client) {
		b := []byte("not there")
		at := c.do("POST", "blobs/uploads/?mount="+digestOf(b)+"&from=conform/nobody", nil, nil).want(t, 202).location(t, "digest="+digestOf(b))
		c.do("PUT", at, b, nil).want(t, 201)
	}},
	{name: "end-11 mount from anywhere", test: func(t *testing.T, c client) {
		d := c.blob([]byte("wherever it is"), "")
		client{t, c.base, c.repo + "/other"}.do("POST", "blobs/uploads/?mount="+d.Digest, nil, nil).want(t, 201, 202)
	}},
}

func withQuery(location, query string) string {
	if strings.Contains(location, "?") {
		return location + "&" + query
	}
	return location + "?" + query
}

var manifestPoints = []point{
	{name: "end-7 by tag and digest", test: func(t *testing.T, c client) {
		m := c.newImage("x")
		for _, ref := range []string{"v1", ""} {
			d, r := c.push(m, ref)
			r.want(t, 201).head(t, "Docker-Content-Digest", d.Digest)
			c.do("HEAD", r.location(t, ""), nil, nil).want(t, 200)
		}
	}},
	{name: "end-7b several tags", test: func(t *testing.T, c client) {
		b := c.newImage("x").bytes(t)
		r := c.do("PUT", "manifests/"+digestOf(b)+"?tag=1.2.3&tag=1.2&tag=1", b, header{"Content-Type": typeManifest}).want(t, 201)
		if got := strings.Join(r.Header.Values("OCI-Tag"), ", "); got != "1.2.3, 1.2, 1" {
			t.Errorf("OCI-Tag: %q", got)
		}
		c.do("HEAD", "manifests/1.2", nil, nil).want(t, 200).head(t, "Docker-Content-Digest", digestOf(b))
	}, lacks: "does not know tag parameters"},
	{name: "end-7 not its digest", test: func(t *testing.T, c client) {
		b := c.newImage("x").bytes(t)
		c.do("PUT", "manifests/"+digestOf([]byte("y")), b, header{"Content-Type": typeManifest}).want(t, 400).code(t, "DIGEST_INVALID")
	}},
	{name: "end-7 blob missing", test: func(t *testing.T, c client) {
		m := c.newImage("x")
		*m.Layers = append(*m.Layers, desc{MediaType: typeLayer, Digest: digestOf([]byte("missing")), Size: 7})
		_, r := c.push(m, "v1")
		r.want(t, 400, 404).code(t, "MANIFEST_BLOB_UNKNOWN")
		c.do("HEAD", "manifests/v1", nil, nil).want(t, 404)
	}},
	{name: "end-7 not JSON", test: func(t *testing.T, c client) {
		c.newImage("x")
		c.do("PUT", "manifests/v1", []byte("{"), header{"Content-Type": typeManifest}).want(t, 400).code(t, "MANIFEST_INVALID")
	}},
	{name: "end-7 kind not known", test: func(t *testing.T, c client) {
		c.do("PUT", "manifests/v1", []byte(`{"schemaVersion":2,"mediaType":"text/plain"}`), header{"Content-Type": "text/plain"}).want(t, 400, 415).code(t, "MANIFEST_INVALID")
	}},
	{name: "end-7 content type contradicts", test: func(t *testing.T, c client) {
		c.do("PUT", "manifests/v1", c.newImage("x").bytes(t), header{"Content-Type": typeIndex}).want(t, 400).code(t, "MANIFEST_INVALID")
	}},
	{name: "end-7 3 MB and too large", test: func(t *testing.T, c client) {
		m := c.newImage("x")
		m.Annotations = map[string]string{"note": strings.Repeat("x", 3_000_000)}
		c.mustPush(m, "large")
		m.Annotations = map[string]string{"note": strings.Repeat("x", 4<<20)}
		_, r := c.push(m, "v1")
		r.want(t, 413, 400)
	}},
	{name: "end-7 index", test: func(t *testing.T, c client) {
		child := c.mustPush(c.newImage("x"), "")
		x := image{SchemaVersion: 2, MediaType: typeIndex, Manifests: &[]desc{child}}
		c.mustPush(x, "multi")
		c.do("GET", "manifests/"+child.Digest, nil, nil).want(t, 200).head(t, "Content-Type", typeManifest)
		c.mustPush(image{SchemaVersion: 2, MediaType: typeIndex, Manifests: &[]desc{}}, "empty")
		x.Manifests = &[]desc{{MediaType: typeManifest, Digest: digestOf([]byte("missing")), Size: 7}}
		_, r := c.push(x, "broken")
		r.want(t, 400, 404).code(t, "MANIFEST_BLOB_UNKNOWN")
	}},
	{name: "end-7 tag moves", test: func(t *testing.T, c client) {
		first := c.mustPush(c.newImage("one"), "v1")
		second := c.mustPush(c.newImage("two"), "v1")
		c.do("HEAD", "manifests/v1", nil, nil).want(t, 200).head(t, "Docker-Content-Digest", second.Digest)
		c.do("GET", "manifests/"+first.Digest, nil, nil).want(t, 200)
	}},
	{name: "end-7 no layers, no media type", test: func(t *testing.T, c client) {
		config := c.blob([]byte("{}"), typeEmpty)
		b := image{SchemaVersion: 2, Config: &config, Layers: &[]desc{}}.bytes(t)
		c.do("PUT", "manifests/bare", b, header{"Content-Type": typeManifest}).want(t, 201)
		c.do("GET", "manifests/bare", nil, nil).want(t, 200).head(t, "Content-Type", typeManifest)
	}},
}

var discoveryPoints = []point{
	{name: "end-8a tags", test: func(t *testing.T, c client) {
		m := c.newImage("x")
		for _, tag := range []string{"v2", "v10", "a", "V1", "_1"} {
			c.mustPush(m, tag)
		}
		if got, _ := c.tags("tags/list"); !slices.Equal(got, []string{"V1", "_1", "a", "v10", "v2"}) {
			t.Errorf("got %q", got)
		}
	}},
	{name: "end-8b pages", test: func(t *testing.T, c client) {
		m := c.newImage("x")
		var all []string
		for i := range 7 {
			tag := fmt.Sprintf("v%d", i)
			all = append(all, tag)
			c.mustPush(m, tag)
		}
		var got []string
		for next := "tags/list?n=3"; next != ""; {
			var part []string
			part, next = c.tags(next)
			if len(part) > 3 {
				t.Fatalf("a page of %d", len(part))
			}
			got = append(got, part...)
		}
		if !slices.Equal(got, all) {
			t.Errorf("got %q", got)
		}
		if got, _ := c.tags("tags/list?last=v4"); !slices.Equal(got, []string{"v5", "v6"}) {
			t.Errorf("after v4: %q", got)
		}
		if got, _ := c.tags("tags/list?n=1&last=v4a"); !slices.Equal(got, []string{"v5"}) {
			t.Errorf("after v4a: %q", got)
		}
		if got, next := c.tags("tags/list?n=0"); len(got) != 0 || next != "" {
			t.Errorf("n=0: %q, %q", got, next)
		}
		c.do("GET", "tags/list?n=-1", nil, nil).want(t, 400)
	}},
	{name: "end-8a repository that is missing", test: func(t *testing.T, c client) {
		c.do("GET", "tags/list", nil, nil).want(t, 404).code(t, "NAME_UNKNOWN")
	}},
	{name: "end-12a referrers", test: func(t *testing.T, c client) { testReferrers(t, c) }, lacks: "has no referrers API"},
	{name: "end-12a not a digest", test: func(t *testing.T, c client) {
		c.mustPush(c.newImage("x"), "v1")
		c.do("GET", "referrers/sha256:abc", nil, nil).want(t, 400)
	}, lacks: "has no referrers API"},
	{name: "subject of a manifest", test: func(t *testing.T, c client) {
		m := c.newImage("x")
		m.Subject = &desc{MediaType: typeManifest, Digest: digestOf([]byte("later")), Size: 5}
		_, r := c.push(m, "")
		r.want(t, 201).head(t, "OCI-Subject", m.Subject.Digest)
	}, lacks: "has no referrers API"},
}

func (c client) tags(path string) (tags []string, next string) {
	c.t.Helper()
	r := c.do("GET", path, nil, nil).want(c.t, 200)
	var doc struct{ Tags []string }
	if err := json.Unmarshal(r.body, &doc); err != nil {
		c.t.Fatal(err)
	}
	if m := regexp.MustCompile(`^<([^>]+)>; rel="next"$`).FindStringSubmatch(r.Header.Get("Link")); m != nil {
		next = m[1]
	}
	return doc.Tags, next
}

// referrers returns what the API lists, and the filters it applied.
func (c client) referrers(digest, query string) (list []desc, filters string) {
	c.t.Helper()
	r := c.do("GET", "referrers/"+digest+query, nil, nil).want(c.t, 200)
	r.head(c.t, "Content-Type", typeIndex)
	var doc image
	if err := json.Unmarshal(r.body, &doc); err != nil || doc.SchemaVersion != 2 || doc.MediaType != typeIndex || doc.Manifests == nil {
		c.t.Fatalf("referrers: %s, %v", r.body, err)
	}
	return *doc.Manifests, r.Header.Get("OCI-Filters-Applied")
}

func testReferrers(t *testing.T, c client) {
	m := c.newImage("subject")
	subject := desc{MediaType: typeManifest, Digest: digestOf(m.bytes(t)), Size: len(m.bytes(t))}
	if list, _ := c.referrers(subject.Digest, ""); len(list) != 0 {
		t.Errorf("before any: %v", list)
	}
	empty := c.blob([]byte("{}"), typeEmpty)
	notes := map[string]string{"org.example.note": "a \"note\""}
	early := c.mustPush(image{SchemaVersion: 2, MediaType: typeManifest, ArtifactType: "application/x.sbom", Config: &empty,
		Layers: &[]desc{empty}, Subject: &subject, Annotations: notes}, "")
	c.mustPush(m, "v1")
	config := c.blob([]byte("{}"), "application/x.signature")
	byConfig := c.mustPush(image{SchemaVersion: 2, MediaType: typeManifest, Config: &config, Layers: &[]desc{}, Subject: &subject}, "")
	index := c.mustPush(image{SchemaVersion: 2, MediaType: typeIndex, ArtifactType: "application/x.set", Manifests: &[]desc{}, Subject: &subject}, "set")
	second := c.mustPush(image{SchemaVersion: 2, MediaType: typeManifest, ArtifactType: "application/x.signature", Config: &empty,
		Layers: &[]desc{}, Subject: &early}, "")

	want := map[string]string{early.Digest: "application/x.sbom", byConfig.Digest: "application/x.signature", index.Digest: "application/x.set"}
	list, filters := c.referrers(subject.Digest, "")
	for _, d := range list {
		if want[d.Digest] != d.ArtifactType {
			t.Errorf("%s: artifactType %q, want %q", d.Digest, d.ArtifactType, want[d.Digest])
		}
		if d.Digest == early.Digest && (d.Annotations["org.example.note"] != notes["org.example.note"] || d.Size != early.Size || d.MediaType != typeManifest) {
			t.Errorf("got %+v", d)
		}
	}
	if len(list) != len(want) || filters != "" {
		t.Errorf("got %d referrers, filters %q: %v", len(list), filters, list)
	}
	list, filters = c.referrers(subject.Digest, "?artifactType=application/x.sbom")
	if len(list) != 1 || list[0].Digest != early.Digest || filters != "artifactType" {
		t.Errorf("filtered: %v, %q", list, filters)
	}
	if list, _ = c.referrers(early.Digest, ""); len(list) != 1 || list[0].Digest != second.Digest {
		t.Errorf("of a referrer: %v", list)
	}
	c.mustPush(m, "set") // the tag moves
	if list, _ = c.referrers(subject.Digest, ""); len(list) != 3 {
		t.Errorf("after one lost its tag: %v", list)
	}
	c.do("DELETE", "manifests/"+byConfig.Digest, nil, nil).want(t, 202)
	if list, _ = c.referrers(subject.Digest, ""); len(list) != 2 {
		t.Errorf("after one was deleted: %v", list)
	}
}

var managementPoints = []point{
	{name: "end-9 delete tag", test: func(t *testing.T, c client) {
		d := c.mustPush(c.newImage("x"), "v1")
		c.mustPush(c.newImage("x"), "v2")
		c.do("DELETE", "manifests/v1", nil, nil).want(t, 202)
		c.do("GET", "manifests/v1", nil, nil).want(t, 404).code(t, "MANIFEST_UNKNOWN")
		c.do("GET", "manifests/v2", nil, nil).want(t, 200)
		c.do("GET", "manifests/"+d.Digest, nil, nil).want(t, 200)
		c.do("DELETE", "manifests/v1", nil, nil).want(t, 404)
	}},
	{name: "end-9 delete manifest", test: func(t *testing.T, c client) {
		d := c.mustPush(c.newImage("x"), "v1")
		c.mustPush(c.newImage("x"), "v2")
		c.do("DELETE", "manifests/"+d.Digest, nil, nil).want(t, 202)
		for _, ref := range []string{"v1", "v2", d.Digest} {
			c.do("GET", "manifests/"+ref, nil, nil).want(t, 404).code(t, "MANIFEST_UNKNOWN")
		}
		c.do("DELETE", "manifests/"+d.Digest, nil, nil).want(t, 404)
		if got, _ := c.tags("tags/list"); len(got) != 0 {
			t.Errorf("tags left: %q", got)
		}
		c.mustPush(c.newImage("x"), "v1") // and again
		c.do("GET", "manifests/v1", nil, nil).want(t, 200)
	}},
	{name: "end-10 delete blob", test: func(t *testing.T, c client) {
		d := c.blob([]byte("nobody needs it"), "")
		c.do("DELETE", "blobs/"+d.Digest, nil, nil).want(t, 202)
		c.do("GET", "blobs/"+d.Digest, nil, nil).want(t, 404).code(t, "BLOB_UNKNOWN")
		c.do("DELETE", "blobs/"+d.Digest, nil, nil).want(t, 404).code(t, "BLOB_UNKNOWN")
		c.blob([]byte("nobody needs it"), "")
		c.do("GET", "blobs/"+d.Digest, nil, nil).want(t, 200)
	}},
}

// The specification's own program (distribution-spec, directory conformance,
// built by make tools) puts 789 points.
func TestConformanceProgram(t *testing.T) {
	program := ocitest.Tool(t, "conformance")
	c, _ := serve(t, registry.Options{})
	cmd := exec.Command(program)
	cmd.Dir = t.TempDir() // it writes its results there
	cmd.Env = append(os.Environ(), "OCI_REGISTRY="+strings.TrimPrefix(c.base, "http://"), "OCI_TLS=disabled", "OCI_VERSION=dev",
		"OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true", "OCI_API_BLOBS_UPLOAD_CANCEL=true",
		"OCI_API_MANIFESTS_TAG_PARAM=true", "OCI_DATA_SHA512=false") // docs/registry.md: SHA-256 only
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("OCI Conformance Result: Pass")) {
		t.Errorf("%v\n%s", err, out)
	}
}
