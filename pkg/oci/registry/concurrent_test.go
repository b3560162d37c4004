package registry_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

// Many push at once: the same blobs and others, to the same repository and
// others, under one tag and under their own, while others list, read and delete.
func TestManyAtOnce(t *testing.T) {
	c, root := serve(t, registry.Options{})
	const n = 100
	shared := c.newImage("shared")
	var wg sync.WaitGroup
	pushed := make([]desc, n)
	for i := range n {
		wg.Go(func() {
			p := client{t, c.base, fmt.Sprintf("many/%d", i%3)}
			// t.Fatal belongs to the test's own goroutine: only errors here.
			blob := func(b []byte) {
				r, err := p.try("POST", "blobs/uploads/?digest="+digestOf(b), bytes.NewReader(b), nil)
				if err != nil || r.StatusCode != 201 {
					t.Errorf("blob: %v, %s", err, r.body)
				}
			}
			own := []byte(fmt.Sprintf("layer of %d", i))
			for _, b := range [][]byte{[]byte(`{"architecture":"amd64","os":"linux","note":"shared"}`), []byte("layer of shared"), own} {
				blob(b)
			}
			m := shared
			m.Layers = &[]desc{(*shared.Layers)[0], {MediaType: typeLayer, Digest: digestOf(own), Size: len(own)}}
			b := m.bytes(t)
			pushed[i] = desc{MediaType: typeManifest, Digest: digestOf(b), Size: len(b)}
			for _, tag := range []string{"latest", fmt.Sprintf("v%d", i)} {
				r, err := p.try("PUT", "manifests/"+tag, bytes.NewReader(b), header{"Content-Type": typeManifest})
				if err != nil || r.StatusCode != 201 {
					t.Errorf("manifest: %v, %s", err, r.body)
				}
				for _, ask := range []string{"tags/list", "manifests/latest", "blobs/" + digestOf(own), "referrers/" + digestOf(b)} {
					if r, err := p.try("GET", ask, nil, nil); err != nil || r.StatusCode != 200 {
						t.Errorf("%s: %v, %d", ask, err, r.StatusCode)
					}
				}
			}
			if r, err := p.try("DELETE", "blobs/"+digestOf(own), nil, nil); err != nil || r.StatusCode != 409 {
				t.Errorf("deleting a blob that is needed: %v, %d", err, r.StatusCode)
			}
		})
	}
	wg.Wait()
	for i, d := range pushed {
		p := client{t, c.base, fmt.Sprintf("many/%d", i%3)}
		p.do("HEAD", fmt.Sprintf("manifests/v%d", i), nil, nil).want(t, 200).head(t, "Docker-Content-Digest", d.Digest)
	}
	for i := range 3 {
		temps, err := os.ReadDir(filepath.Join(root, fmt.Sprintf("many/%d/.tmp", i)))
		if err != nil || len(temps) != 0 {
			t.Errorf("left: %v, %v", temps, err)
		}
	}
}

// A manifest is put, and a blob of it deleted, at the same time: the manifest is
// there and whole, or it is not.
func TestPushAndDeleteAtOnce(t *testing.T) {
	c, _ := serve(t, registry.Options{})
	for i := range 30 {
		m := c.newImage(fmt.Sprint(i))
		layer, tag := (*m.Layers)[0].Digest, fmt.Sprintf("v%d", i)
		b := m.bytes(t)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = c.try("DELETE", "blobs/"+layer, nil, nil) }) // which of the two is first does not matter
		wg.Go(func() {
			_, _ = c.try("PUT", "manifests/"+tag, bytes.NewReader(b), header{"Content-Type": typeManifest})
		})
		wg.Wait()
		manifest := c.do("HEAD", "manifests/"+tag, nil, nil).StatusCode
		blob := c.do("HEAD", "blobs/"+layer, nil, nil).StatusCode
		if manifest != blob || manifest != 200 && manifest != 404 {
			t.Errorf("manifest %d, blob %d", manifest, blob)
		}
	}
}

// index.json with a thousand tags and as many referrers does not get in the way.
func TestAThousandTags(t *testing.T) {
	c, root := serve(t, registry.Options{})
	m := c.newImage("x")
	empty := c.blob([]byte("{}"), typeEmpty)
	c.mustPush(m, "v0")
	path := filepath.Join(root, c.repo, "index.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// What a thousand pushes leave, without their thousand syncs.
	entry := string(b[bytes.Index(b, []byte("[{"))+1 : bytes.LastIndex(b, []byte("}]"))+1])
	entries := []string{entry}
	for i := range 999 {
		entries = append(entries, strings.Replace(entry, `"v0"`, fmt.Sprintf(`"v%d"`, i+1), 1))
	}
	subject := desc{MediaType: typeManifest, Digest: digestOf(m.bytes(t)), Size: len(m.bytes(t))}
	for i := range 1000 {
		r := image{SchemaVersion: 2, MediaType: typeManifest, ArtifactType: fmt.Sprintf("application/x.%d", i%2), Config: &empty, Layers: &[]desc{},
			Subject: &subject, Annotations: map[string]string{"n": fmt.Sprint(i)}}.bytes(t)
		if err := os.WriteFile(filepath.Join(root, c.repo, "blobs/sha256", strings.TrimPrefix(digestOf(r), "sha256:")), r, 0o644); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, typeManifest, digestOf(r), len(r)))
	}
	text := `{"schemaVersion":2,"manifests":[` + strings.Join(entries, ",") + `]}`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, _ := c.tags("tags/list"); len(got) != 1000 {
		t.Errorf("%d tags", len(got))
	}
	if list, _ := c.referrers(subject.Digest, ""); len(list) != 1000 {
		t.Errorf("%d referrers", len(list))
	}
	if list, _ := c.referrers(subject.Digest, "?artifactType=application/x.1"); len(list) != 500 {
		t.Errorf("%d referrers of a type", len(list))
	}
	for i := range 20 {
		c.mustPush(m, fmt.Sprintf("new%d", i))
	}
	if got, _ := c.tags("tags/list"); len(got) != 1020 {
		t.Errorf("%d tags", len(got))
	}
}
