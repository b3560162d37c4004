package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// noKeys logs in nowhere: tests do not read the configuration of who runs them.
type noKeys struct{}

func (noKeys) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// place is a registry with faults before it, an image in it, and the disk that
// the image holds.
type place struct {
	registry *ocitest.Registry
	faults   *ocitest.Faults
	host     string
	client   *remote.Client
	layout   *oci.Dir
	disk     []byte
	packed   *oci.Packed
}

func (p *place) repo(t testing.TB) *remote.Repo {
	t.Helper()
	r, err := p.client.Repo(p.host, "os/image")
	if err != nil {
		t.Error(err)
	}
	return r
}

func pack(t testing.TB, d *oci.Dir, disk []byte, tag string) *oci.Packed {
	t.Helper()
	p, err := oci.Pack(context.Background(), diskimage.Bytes(disk), oci.Config{OS: "linux", Architecture: "amd64", Name: "image", Version: tag,
		Epoch: time.Unix(1793491200, 0)}, d, oci.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(context.Background(), p.Descriptor, tag); err != nil {
		t.Fatal(err)
	}
	return p
}

func newPlace(t testing.TB) *place {
	t.Helper()
	rnd := rand.New(rand.NewPCG(7, 7))
	p := &place{registry: ocitest.NewRegistry(), disk: make([]byte, 3<<20)}
	for i := 0; i < 2<<20; i++ {
		p.disk[i] = byte(rnd.Uint32()) & 0x7f
	}
	p.faults = ocitest.NewFaults(p.registry)
	server := httptest.NewServer(p.faults)
	t.Cleanup(server.Close)
	p.host = strings.TrimPrefix(server.URL, "http://")
	p.client = remote.New(remote.Options{Keychain: noKeys{}, Stall: 300 * time.Millisecond, Tries: 3, Backoff: time.Millisecond})
	t.Cleanup(p.client.Close)
	var err error
	if p.layout, err = oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "layout")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.layout.Close() })
	p.packed = pack(t, p.layout, p.disk, "v1")
	if _, err := oci.Copy(t.Context(), p.layout, oci.Ref{Tag: "v1"}, p.repo(t), oci.Ref{Tag: "v1"}, oci.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	p.faults.Reset()
	return p
}

// export reads the whole disk from the registry.
func (p *place) export(t testing.TB) ([]byte, error) {
	t.Helper()
	pin, err := oci.Resolve(t.Context(), p.repo(t), oci.Ref{Registry: p.host, Name: "os/image", Tag: "v1"})
	if err != nil {
		return nil, err
	}
	a, err := pin.Open(t.Context())
	if err != nil {
		return nil, err
	}
	defer a.Close()
	f, err := os.Create(filepath.Join(t.TempDir(), "raw"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := a.Export(t.Context(), f, oci.ExportOptions{}); err != nil {
		return nil, err
	}
	return os.ReadFile(f.Name())
}

// TestFaultsOfReading reads an image from a registry that fails in one way,
// once and for ever: what comes is the disk, or an error that says what is wrong.
func TestFaultsOfReading(t *testing.T) {
	at := map[string]ocitest.Position{"first byte": ocitest.First, "second byte": ocitest.Second, "middle": ocitest.Middle, "last byte": ocitest.Last}
	kinds := map[string]ocitest.Action{
		"500": ocitest.Status(500), "503, Retry-After": ocitest.RetryAfter(503, 0), "429, Retry-After": ocitest.RetryAfter(429, 0),
		"reset": ocitest.Reset(), "silence": ocitest.Silence(), "whole blob for a range": ocitest.Whole(), "404": ocitest.Status(404), "403": ocitest.Status(403),
	}
	for name, pos := range at {
		kinds["cut before the "+name], kinds["stall before the "+name], kinds["wrong "+name] = ocitest.Cut(pos), ocitest.Stall(pos), ocitest.WrongByte(pos)
	}
	// What may pass, passes when it happens once.
	permanent := map[string]bool{"404": true, "403": true}
	var wg sync.WaitGroup
	defer wg.Wait()
	for name, action := range kinds { // all at once: most of the time is waiting for silent registries
		p := newPlace(t)
		wg.Go(func() { p.readFaulty(t, name, action, permanent[name]) })
	}
}

func (p *place) readFaulty(t *testing.T, name string, action ocitest.Action, permanent bool) {
	for _, kind := range []ocitest.Kind{ocitest.Manifest, ocitest.Blob} {
		for _, times := range []int{1, -1} {
			for _, after := range []int{0, 2} {
				if kind == ocitest.Manifest && after > 0 {
					continue
				}
				p.faults.Reset()
				p.faults.Add(ocitest.Fault{Kind: kind, Do: action, Times: times, After: after})
				got, err := p.export(t)
				what := fmt.Sprintf("%s: %s, %d times after %d", name, kind, times, after)
				switch {
				case err == nil && !bytes.Equal(got, p.disk):
					t.Errorf("%s: wrong bytes were given out", what)
				case err == nil && times < 0 && name != "whole blob for a range":
					t.Errorf("%s: no error", what)
				case err != nil && times == 1 && !permanent:
					t.Errorf("%s: %v", what, err)
				case err != nil && kind == ocitest.Blob && !strings.Contains(err.Error(), "sha256:"):
					t.Errorf("%s: the error names no blob: %v", what, err)
				}
				if n, _ := p.faults.Count(""); n > 120 {
					t.Errorf("%s: %d requests", what, n)
				}
			}
		}
	}
}

// TestATagThatMovesDoesNotMixTwoImages moves the tag between the requests of one
// read.
func TestATagThatMovesDoesNotMixTwoImages(t *testing.T) {
	p := newPlace(t)
	other := bytes.Clone(p.disk)
	copy(other[1<<20:], "another release")
	second := pack(t, p.layout, other, "v2")
	if _, err := oci.Copy(t.Context(), p.layout, oci.Ref{Tag: "v2"}, p.repo(t), oci.Ref{Tag: "v2"}, oci.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	for after := range 6 {
		p.registry.Tag("os/image", "v1", p.packed.Digest())
		p.faults.Reset()
		p.faults.Add(ocitest.Fault{After: after, Do: ocitest.Meanwhile(func() { p.registry.Tag("os/image", "v1", second.Digest()) })})
		got, err := p.export(t)
		if err != nil || !bytes.Equal(got, p.disk) && !bytes.Equal(got, other) {
			t.Errorf("moved at request %d: neither the one disk nor the other (%v)", after, err)
		}
	}
}

// TestABlobThatIsDeletedMeanwhileIsNamed deletes the largest segment while it
// is read, and while it is copied.
func TestABlobThatIsDeletedMeanwhileIsNamed(t *testing.T) {
	p := newPlace(t)
	gone := p.packed.Index.Segments[0].Digest
	p.faults.Add(ocitest.Fault{Kind: ocitest.Blob, After: 2, Do: ocitest.Meanwhile(func() { p.registry.DropBlob(gone) })})
	if _, err := p.export(t); err == nil || !strings.Contains(err.Error(), gone.String()) {
		t.Errorf("read: %v", err)
	}
	dst, err := oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	_, err = oci.Copy(t.Context(), p.repo(t), oci.Ref{Tag: "v1"}, dst, oci.Ref{Tag: "v1"}, oci.CopyOptions{})
	if err == nil || !strings.Contains(err.Error(), gone.String()) {
		t.Errorf("copy: %v", err)
	}
	if _, err := dst.Open(t.Context(), oci.Ref{Tag: "v1"}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("the copy's tag: %v", err)
	}
}

// TestAMirrorThatLiesIsLeft reads from a mirror whose blobs are all wrong.
func TestAMirrorThatLiesIsLeft(t *testing.T) {
	p, liar := newPlace(t), newPlace(t)
	liar.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: ocitest.WrongByte(ocitest.Middle)})
	p.client = remote.New(remote.Options{Keychain: noKeys{}, Mirrors: []string{liar.host}, Tries: 3, Backoff: time.Millisecond})
	got, err := p.export(t)
	if err != nil || !bytes.Equal(got, p.disk) {
		t.Fatalf("the registry behind the mirror has it right: %v", err)
	}
	if n, _ := liar.faults.Count(ocitest.Blob); n == 0 {
		t.Error("the mirror was not asked")
	}
	dst, err := oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := oci.Copy(t.Context(), p.repo(t), oci.Ref{Tag: "v1"}, dst, oci.Ref{Tag: "v1"}, oci.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	a, err := dst.Open(t.Context(), oci.Ref{Tag: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.VerifyBlobs(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestASecondReleaseSendsOnlyWhatIsNew counts what a push moves.
func TestASecondReleaseSendsOnlyWhatIsNew(t *testing.T) {
	p := newPlace(t)
	first, err := oci.Copy(t.Context(), p.layout, oci.Ref{Tag: "v1"}, p.repo(t), oci.Ref{Tag: "v1"}, oci.CopyOptions{})
	if err != nil || first.BytesSent != 0 {
		t.Fatalf("pushed again: %+v, %v", first, err)
	}
	if n, _ := p.faults.Count(ocitest.Upload); n != 0 {
		t.Errorf("%d requests to upload what is there", n)
	}
}

// TestJoinsAtARegistryAllCount has eight clients put an image each under one tag
// of a registry that knows no such step.
func TestJoinsAtARegistryAllCount(t *testing.T) {
	p := newPlace(t)
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		arch := fmt.Sprintf("arch%d", i)
		packed, err := oci.Pack(t.Context(), diskimage.Bytes(p.disk[:1<<20]), oci.Config{OS: "linux", Architecture: arch, Name: "image",
			Epoch: time.Unix(1793491200, 0)}, p.layout, oci.PackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.layout.Publish(t.Context(), packed.Descriptor, arch); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		client := remote.New(remote.Options{Keychain: noKeys{}})
		t.Cleanup(client.Close)
		repo, err := client.Repo(p.host, "os/image")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			_, err := oci.Copy(t.Context(), p.layout, oci.Ref{Tag: fmt.Sprintf("arch%d", i)}, repo, oci.Ref{Tag: "all"}, oci.CopyOptions{Join: true})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range n {
		if _, err := oci.Resolve(t.Context(), p.repo(t), oci.Ref{Tag: "all", Platform: fmt.Sprintf("linux/arch%d", i)}); err != nil {
			t.Error(err)
		}
	}
}
