package oci

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

func TestPublishIndexListsEachPlatformUnderOneTag(t *testing.T) {
	d := newDir(t)
	amd, arm, newer := packed(t, d, 1, "amd64", ""), packed(t, d, 2, "arm64", ""), packed(t, d, 3, "amd64", "")
	publish := func(keep bool, images ...*Packed) v1.Descriptor {
		t.Helper()
		var list []v1.Descriptor
		for _, p := range images {
			list = append(list, p.Descriptor)
		}
		desc, err := d.PublishIndex(t.Context(), list, "v1", keep)
		if err != nil {
			t.Fatal(err)
		}
		return desc
	}
	check := func(want ...*Packed) {
		t.Helper()
		for _, p := range want {
			a, err := d.Open(t.Context(), Ref{Tag: "v1", Platform: p.Config.OS + "/" + p.Config.Architecture})
			if err != nil {
				t.Fatal(err)
			}
			if a.Digest() != p.Digest() {
				t.Errorf("%s is %v, want %v", p.Config.Architecture, a.Digest(), p.Digest())
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
		foreignIndex(t, d, len(want))
	}
	first := publish(false, amd, arm)
	check(amd, arm)
	if again := publish(false, arm, amd); again.Digest != first.Digest {
		t.Errorf("in another order it is %v, not %v", again.Digest, first.Digest)
	}
	publish(true, newer)
	check(newer, arm)
	publish(false, amd)
	check(amd)
	if _, err := d.PublishIndex(t.Context(), []v1.Descriptor{amd.Descriptor, newer.Descriptor}, "v1", false); err == nil {
		t.Error("two images for one platform are published")
	}
	check(amd)

	// A tag that names a single image becomes an index of both.
	if err := d.Publish(t.Context(), arm.Descriptor, "v1"); err != nil {
		t.Fatal(err)
	}
	publish(true, amd)
	check(amd, arm)
}

// foreignIndex has go-containerregistry read the index that is tagged v1.
func foreignIndex(t *testing.T, d *Dir, count int) {
	t.Helper()
	p, err := layout.FromPath(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	listed, err := d.Resolve(Ref{Tag: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	index, err := root.ImageIndex(listed.Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != count {
		t.Fatalf("%v, %+v; want %d images", err, m, count)
	}
	for _, c := range m.Manifests {
		if c.Platform == nil || c.Platform.OS != "linux" {
			t.Errorf("%v has the platform %v", c.Digest, c.Platform)
		}
		image, err := index.Image(c.Digest)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := image.ConfigFile()
		if err != nil || cfg.Architecture != c.Platform.Architecture {
			t.Errorf("config says %+v, %v; the index %v", cfg, err, c.Platform)
		}
	}
}
