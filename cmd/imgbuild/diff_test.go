package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imgpipe/imgpipe/cmd/internal/cmdtest"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

// counted adds up what is sent, before it is.
type counted struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	c.sent.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// countingRegistry is a registry that counts what it sends.
type countingRegistry struct {
	host        string
	sent, blobs atomic.Int64 // bytes, requests for blobs; of the last imgbuild
}

// serveCounted serves a folder until the test ends.
func serveCounted(t *testing.T, root string) *countingRegistry {
	t.Helper()
	reg, err := registry.New(root, registry.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &countingRegistry{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			c.blobs.Add(1)
		}
		reg.ServeHTTP(counted{w, &c.sent}, r)
	}))
	t.Cleanup(func() {
		server.Close()
		reg.Close()
	})
	c.host = strings.TrimPrefix(server.URL, "http://")
	return c
}

// imgbuild runs the command in this process, and returns its stdout.
func (c *countingRegistry) imgbuild(t *testing.T, args ...string) []byte {
	t.Helper()
	c.sent.Store(0)
	c.blobs.Store(0)
	var out bytes.Buffer
	program := app()
	program.Writer, program.ErrWriter = &out, io.Discard
	if err := ui.Run(context.Background(), program, append([]string{"imgbuild"}, args...)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestDiffReadsLittleOfARegistry compares two releases with those that are in
// a registry, which counts what it sends.
func TestDiffReadsLittleOfARegistry(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "images")
	for tag, im := range map[string]cmdtest.Image{
		"1.0": {Motd: "one\n"},
		"1.1": {Motd: "two\n", Extra: []string{"/usr/bin/new"}},
	} {
		im.Name, im.Sector, im.Root, im.Config, im.Random = "tiny", 512, 32, 2, 12
		if err := im.Pack(context.Background(), oci.Ref{Dir: dir, Tag: tag}); err != nil {
			t.Fatal(err)
		}
	}
	reg := serveCounted(t, root)
	host, sent, blobs := reg.host+"/images:", &reg.sent, &reg.blobs
	compare := func(a, b string) (c comparison) {
		t.Helper()
		if err := json.Unmarshal(reg.imgbuild(t, "diff", "--json", a, b), &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	layout := "oci:" + dir + ":"
	want := compare(layout+"1.0", layout+"1.1")
	got := compare(host+"1.0", host+"1.1")
	total := want.Fetch.Total
	if all := got.Read.Metadata + got.Read.Wire + got.Read.Between; sent.Load() > all+2000 || sent.Load() < got.Read.Wire || sent.Load() > total/100 {
		t.Errorf("the registry sent %d bytes; the command says %+v; the disk has %d", sent.Load(), got.Read, total)
	}
	if n := blobs.Load(); n > int64(got.Read.Requests)+4 {
		t.Errorf("%d requests for blobs: %+v", n, got.Read)
	}
	want.A.Reference, want.B.Reference = got.A.Reference, got.B.Reference
	x, _ := json.Marshal(want)
	y, _ := json.Marshal(got)
	if !bytes.Equal(x, y) {
		t.Errorf("from the layout %s\nfrom the registry %s", x, y)
	}
	if mixed := compare(layout+"1.0", host+"1.1"); mixed.Fetch != want.Fetch || len(mixed.Filesystems) != len(want.Filesystems) {
		t.Errorf("one of each: %+v", mixed)
	}
}
