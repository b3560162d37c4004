package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestPublishLeavesATagOneMeaning publishes to a layout in which another tool
// listed two manifests under one tag.
func TestPublishLeavesATagOneMeaning(t *testing.T) {
	d := newLayout(t)
	var desc []v1.Descriptor
	for _, text := range []string{"{}", "{ }", "{  }"} {
		b, err := d.put([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		desc = append(desc, b.descriptor("application/vnd.oci.image.manifest.v1+json", ""))
	}
	for i, tag := range []string{"one", "two"} {
		if err := d.Publish(t.Context(), desc[i], tag); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(d.path, indexFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(b), `"two"`, `"one"`)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(t.Context(), desc[2], "one"); err != nil {
		t.Fatal(err)
	}
	x, err := d.Index()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range x.Manifests {
		if m.Annotations[annotationRefName] == "one" && m.Digest != desc[2].Digest {
			t.Errorf("tag one still names %v", m.Digest)
		}
	}
}

// TestCollectionStopsAtWhatItCannotRead lists a manifest of a kind that this
// version does not know: what it reaches must not be collected.
func TestCollectionStopsAtWhatItCannotRead(t *testing.T) {
	d := newLayout(t)
	layer, err := d.PutBlob([]byte("a layer"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.put([]byte(`{"blobs":[{"digest":"` + layer.String() + `","size":7}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(t.Context(), m.descriptor("application/vnd.oci.artifact.manifest.v1+json", ""), "new"); err != nil {
		t.Fatal(err)
	}
	report, err := d.GC()
	if err == nil {
		t.Errorf("collected %+v", report)
	}
	if _, err := d.ReadBlob(layer, 7, 7); err != nil {
		t.Error(err)
	}
}

// TestReadAfterCloseIsAnError opens a blob of an artifact that is closed.
func TestReadAfterCloseIsAnError(t *testing.T) {
	d := newLayout(t)
	digest, err := d.PutBlob([]byte("blob"))
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(d)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(t.Context(), blobInfo{digest, 4}.descriptor(MediaTypeSegment, ""), 0, 4); err == nil {
		t.Error("read from a closed artifact")
	}
}

func newLayout(t *testing.T) *Dir {
	t.Helper()
	d, err := CreateDir(t.Context(), filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
