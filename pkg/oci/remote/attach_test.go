package remote_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
)

func noAPI(g *ocitest.Registry) { g.NoReferrers = true }

// tag writes and reads the index of referrers as another client does.
func (s *site) tagPath() string {
	return "/v2/" + s.name + "/manifests/" + strings.Replace(s.md.Digest.String(), ":", "-", 1)
}

func (s *site) readTag() map[string]any {
	w := httptest.NewRecorder()
	s.reg.ServeHTTP(w, httptest.NewRequest(http.MethodGet, s.tagPath(), nil))
	var m map[string]any
	json.Unmarshal(w.Body.Bytes(), &m)
	return m
}

func (s *site) writeTag(t *testing.T, text string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPut, s.tagPath(), strings.NewReader(text))
	r.Header.Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	w := httptest.NewRecorder()
	if s.reg.ServeHTTP(w, r); w.Code != http.StatusCreated {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// foreign is an entry of a client that knows more fields than we do.
func foreign(n int) string {
	return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":7,"digest":"sha256:%064d","artifactType":"of/another","x-new":{"a":[1,2]}}`, n)
}

const indexText = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","x-kept":"yes","annotations":{"a":"b"},"manifests":[%s]}`

func TestAttachKeepsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick(), noAPI)
	s.writeTag(t, fmt.Sprintf(indexText, foreign(1)))
	m := manifestOf(descriptor([]byte("{}")), s.md, "application/vnd.example.sig", nil)
	d, err := s.repo.PushManifest(t.Context(), "", "", m)
	if err != nil {
		t.Fatal(err)
	}
	got := s.readTag()
	list := got["manifests"].([]any)
	if got["x-kept"] != "yes" || len(list) != 2 || list[0].(map[string]any)["x-new"] == nil || list[1].(map[string]any)["digest"] != d.Digest.String() {
		t.Errorf("the index is now %v", got)
	}
	entry := list[1].(map[string]any)
	if entry["artifactType"] != "application/vnd.example.sig" || entry["size"] != float64(len(m)) {
		t.Errorf("our entry is %v", entry)
	}
}

// TestAttachPutsBackWhatAnotherDropped lets a client that has read the index
// before us write it after us: at each of our looks once.
func TestAttachPutsBackWhatAnotherDropped(t *testing.T) {
	t.Parallel()
	for look := 1; look <= 3; look++ {
		s := newSite(t, quick(), noAPI)
		s.writeTag(t, fmt.Sprintf(indexText, foreign(1)))
		s.faults.Add(ocitest.Fault{Kind: ocitest.Manifest, Method: http.MethodGet, Path: "sha256-", After: look, Do: ocitest.Meanwhile(func() {
			s.writeTag(t, fmt.Sprintf(indexText, foreign(2))) // drops the first, too
		})})
		m := manifestOf(descriptor([]byte("{}")), s.md, "application/vnd.example.sig", nil)
		d, err := s.repo.PushManifest(t.Context(), "", "", m)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := json.Marshal(s.readTag())
		for _, want := range []string{d.Digest.Hex, fmt.Sprintf("%064d", 1), fmt.Sprintf("%064d", 2)} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("overwritten before look %d: %s is lost from %s", look, want, text)
			}
		}
	}
}

func TestAttachLeavesAloneWhatIsNoIndex(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick(), noAPI)
	s.writeTag(t, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`)
	m := manifestOf(descriptor([]byte("{}")), s.md, "application/vnd.example.sig", nil)
	if _, err := s.repo.PushManifest(t.Context(), "", "", m); err == nil || !strings.Contains(err.Error(), "not an image index") {
		t.Error(err)
	}
}

// TestAttachesAtOnce runs eight clients against a registry that takes its time
// between reading and writing, so that they do meet, among others that read,
// change and write without looking back.
func TestAttachesAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick(), noAPI)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Manifest, Path: "sha256-", Times: -1, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		time.Sleep(10 * time.Millisecond)
		next.ServeHTTP(w, r)
	}})
	subject := descriptor(manifestOf(descriptor([]byte("{}")), v1.Descriptor{}, "application/vnd.example", nil)) // attachAtOnce's
	other := &site{reg: s.reg, md: subject, name: "acme/attach"}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 8 {
				var list []string
				if old, ok := other.readTag()["manifests"].([]any); ok {
					for _, e := range old {
						b, _ := json.Marshal(e)
						list = append(list, string(b))
					}
				}
				time.Sleep(20 * time.Millisecond) // for others to write
				other.writeTag(t, fmt.Sprintf(indexText, strings.Join(append(list, foreign(100+8*i+j)), ",")))
			}
		})
	}
	attachAtOnce(t, s.addr, 8)
	wg.Wait()
	puts := 0
	for _, r := range s.faults.Log() {
		if r.Method == http.MethodPut && strings.Contains(r.Path, "sha256-") {
			puts++
		}
	}
	t.Logf("8 attaches: the index was written %d times, %d requests in all", puts, count(s.faults, ""))
}

func TestAttachesThroughOneClientShareWrites(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick(), noAPI)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Manifest, Path: "sha256-", Times: -1, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		time.Sleep(20 * time.Millisecond)
		next.ServeHTTP(w, r)
	}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.repo.PushManifest(t.Context(), "", "", manifestOf(descriptor([]byte("{}")), s.md, fmt.Sprintf("a/b%d", i), nil)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := s.repo.Referrers(t.Context(), digestOf(s.md)); err != nil || len(got) != 8 {
		t.Errorf("%d referrers, %v", len(got), err)
	}
	puts := 0
	for _, r := range s.faults.Log() {
		if r.Method == http.MethodPut && strings.Contains(r.Path, "sha256-") {
			puts++
		}
	}
	if puts > 5 {
		t.Errorf("the index was written %d times", puts)
	}
	t.Logf("8 attaches through one client: the index was written %d times", puts)
}

func TestReferrersOfSeveralPagesAndBothLists(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick(), func(g *ocitest.Registry) { g.PageSize, g.WrongTypes = 2, true })
	var want []string
	for i := range 7 {
		m := manifestOf(descriptor([]byte("{}")), s.md, fmt.Sprintf("application/vnd.example.%d", i), map[string]string{"n": fmt.Sprint(i)})
		d, err := s.repo.PushManifest(t.Context(), "", "", m)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, d.Digest.String())
	}
	// In the tag: one that both know, one that is not there, and one that refers to nothing.
	listed := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":%q}`, want[0])
	other := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":%q}`, s.md.Digest)
	s.writeTag(t, fmt.Sprintf(indexText, strings.Join([]string{listed, other, foreign(1)}, ",")))
	got, err := s.repo.Referrers(t.Context(), digestOf(s.md))
	if err != nil || len(got) != 7 {
		t.Fatalf("%d referrers, %v", len(got), err)
	}
	for i, d := range got {
		if d.ArtifactType != "application/vnd.example."+d.Annotations["n"] || d.Size == 1 {
			t.Errorf("%+v", d)
		}
		if i > 0 && got[i-1].Digest.Hex >= d.Digest.Hex {
			t.Error("not in order")
		}
	}
	if n := count(s.faults, ocitest.Referrers); n != 4 {
		t.Errorf("%d pages were read, want 4", n)
	}
}

func TestTypesOfReferrersWithoutOne(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick(), nil)
	for _, c := range []struct{ config, layer, want string }{
		{"application/vnd.example.config", "", "application/vnd.example.config"},
		{"application/vnd.oci.empty.v1+json", "application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.sigstore.bundle.v0.3+json"},
	} {
		config := descriptor([]byte("{}"))
		config.MediaType = "application/x"
		m := map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
			"config": map[string]any{"mediaType": c.config, "size": 2, "digest": config.Digest}, "layers": []any{}}
		if c.layer != "" {
			m["layers"] = []any{map[string]any{"mediaType": c.layer, "size": 2, "digest": config.Digest}}
		}
		b, _ := json.Marshal(m)
		d, err := s.repo.PushManifest(t.Context(), "x", "", b)
		if err != nil || d.ArtifactType != c.want {
			t.Errorf("%+v, %v, want %s", d, err, c.want)
		}
		var got v1.Descriptor
		if _, got, err = s.repo.Manifest(t.Context(), "x"); err != nil || got.ArtifactType != c.want {
			t.Errorf("%+v, %v, want %s", got, err, c.want)
		}
	}
}
