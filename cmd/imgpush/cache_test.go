package main

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// An agent reads the image of its job through the cache, and nothing else; also
// after the server was started again. Images are staged by command.
func TestServeCache(t *testing.T) {
	s := newSite(t)
	s.start()
	s.expect(`^m0: job`, "deploy", "m0")
	a := s.agent(0)
	answer, err := a.Claim(t.Context())
	if err != nil || answer.Action != wire.Deploy {
		t.Fatalf("claim: %+v, %v", answer, err)
	}
	image := answer.Job.Image
	status := func(client *http.Client, path string) int {
		t.Helper()
		r, err := client.Get(s.tls + "/v2/" + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	manifest := image.Repository + "/manifests/" + image.Digest
	for path, want := range map[string]int{manifest: 200, image.Repository + "/referrers/" + image.Digest: 200,
		image.Repository + "/manifests/1": 404, "layout/other/manifests/" + image.Digest: 403} {
		if got := status(a.HTTP(), path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	if got := status(s.agent(1).HTTP(), manifest); got != 403 {
		t.Errorf("an agent without a job: %d", got)
	}
	ref := "oci:" + filepath.Join(s.dir, "store") + ":1"
	s.expect(image.Repository+`:1 `+image.Digest, "stage", ref)
	s.expect(image.Digest, "stage")
	if _, errs, code := s.run("stage", "oci:"+filepath.Join(s.dir, "store")+":none"); code != 4 {
		t.Errorf("an image that is not there: %d %s", code, errs)
	}
	if m := s.get("/metrics"); !strings.Contains(m, "\nimgpipe_cache_used_bytes ") {
		t.Error("no metrics of the cache")
	}
	s.stop()
	s.start()
	s.expect(image.Digest, "stage", "--json")
	s.expect(image.Digest, "stage", "--remove", ref)
	s.expect(`^$`, "stage")
}
