package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/imgpipe/imgpipe/cmd/internal/cmdtest"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// TestCatFetchesOnlyWhatItNeeds reads a small file of an image with 24 MiB of data
// from a registry that counts what it sends.
func TestCatFetchesOnlyWhatItNeeds(t *testing.T) {
	root := t.TempDir()
	im := cmdtest.Image{Name: "tiny", Sector: 512, Root: 48, Random: 24, Motd: "hello\n"}
	if err := im.Pack(context.Background(), oci.Ref{Dir: filepath.Join(root, "images"), Tag: "a"}); err != nil {
		t.Fatal(err)
	}
	reg := serveCounted(t, root)
	ref, sent := reg.host+"/images:a", &reg.sent
	run := func(args ...string) []byte {
		t.Helper()
		return reg.imgbuild(t, args...)
	}
	var list listing
	if err := json.Unmarshal(run("ls", "--json", ref, "/etc"), &list); err != nil {
		t.Fatal(err)
	}
	r := list.Read
	if want := r.Metadata + r.Wire + r.Between; sent.Load() > want+4<<10 || r.Wire == 0 { // beside it: the registry's own answers
		t.Errorf("ls: %d bytes were sent, and it tells of %d (%+v)", sent.Load(), want, r)
	}
	if r.Chunks > 12 {
		t.Errorf("ls: %d chunks for one directory", r.Chunks)
	}
	if got := run("cat", ref, "/etc/motd"); string(got) != "hello\n" {
		t.Errorf("cat: %q", got)
	}
	if n := sent.Load(); n > 1<<20 {
		t.Errorf("cat: %d bytes were sent for 6", n)
	}
	got := run("cat", ref, "/usr/lib/data")
	if len(got) != 24<<20 {
		t.Errorf("cat: %d bytes of a large file", len(got))
	}
	if n := sent.Load(); n > 25<<20 {
		t.Errorf("cat: %d bytes were sent for 24 MiB", n)
	}
}
