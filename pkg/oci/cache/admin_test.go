package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci/cache"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
)

// Staging by way of the admin API, from order to removal.
func TestStageByOrder(t *testing.T) {
	s := newSite(t, 4<<20, cache.Options{MaxBytes: 6 << 20})
	find := func(_ context.Context, ref string) (string, string, error) {
		tag, ok := strings.CutPrefix(ref, "registry.example/os:")
		if !ok {
			return "", "", fmt.Errorf("reference %q", ref)
		}
		return repoName, tag, nil
	}
	server := httptest.NewServer(s.cache.StageHandler(find))
	t.Cleanup(server.Close)
	ctx, url := t.Context(), server.URL+"/admin/staged"
	var done, total int64
	staged, err := cache.StageAt(ctx, http.DefaultClient, url, "registry.example/os:1", func(d, of int64) { done, total = d, of })
	if err != nil || staged.Digest != digestOf(s.image.Descriptor) || done != total || done != staged.Bytes {
		t.Fatalf("%+v, %v, %d of %d", staged, err, done, total)
	}
	s.push(t, 8<<20, 3, "2")
	for ref, code := range map[string]string{"registry.example/os:2": "tooLarge", "registry.example/os:none": "notFound", "nonsense": ""} {
		_, err := cache.StageAt(ctx, http.DefaultClient, url, ref, nil)
		if e, ok := errors.AsType[*cache.StagedError](err); !ok || e.Code != code {
			t.Errorf("%s: %v, want code %q", ref, err, code)
		}
	}
	if list, err := cache.StagedAt(ctx, http.DefaultClient, url); err != nil || len(list) != 1 || list[0].Digest != staged.Digest {
		t.Errorf("%+v, %v", list, err)
	}
	if gone, err := cache.UnstageAt(ctx, http.DefaultClient, url, "registry.example/os:1"); err != nil || gone.Digest != staged.Digest {
		t.Errorf("%+v, %v", gone, err)
	}
	if _, err := cache.UnstageAt(ctx, http.DefaultClient, url, "registry.example/os:1"); err == nil {
		t.Error("removed twice")
	}
	var b bytes.Buffer
	s.cache.WriteMetrics(&b)
	if !strings.Contains(b.String(), fmt.Sprintf("\nimgpipe_cache_fetched_bytes_total %d\n", s.cache.Stats.Fetched.Load())) {
		t.Error(b.String())
	}
}

// A staging that ends early keeps no pin, and takes none from an image that
// was staged before.
func TestAStagingThatFailsPinsNothing(t *testing.T) {
	s := newSite(t, 4<<20, cache.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Path: s.segment().Digest.Hex, Do: ocitest.Meanwhile(cancel)})
	if _, err := s.cache.Stage(ctx, repoName, "1", nil); err == nil {
		t.Fatal("staged although it was cancelled")
	}
	if n := s.cache.Pins(); n != 0 {
		t.Errorf("%d pins, want none", n)
	}
	for _, reference := range []string{"1", s.image.Descriptor.Digest.String()} {
		if _, err := s.cache.Stage(t.Context(), repoName, reference, nil); err != nil {
			t.Fatal(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = s.cache.Stage(gone, repoName, "1", nil) // it may do, since all is there
	s.reopen(t)
	if list, err := s.cache.Staged(); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if n := s.cache.Pins(); n != 1 {
		t.Errorf("%d pins, want 1", n)
	}
}
