package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func TestConcurrentPublishersLoseNothing(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "layout")
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			d, err := CreateDir(ctx, path)
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			p, err := Pack(ctx, sparse(randomDisk(uint64(i%3), 300<<10), 4096), testConfig(), d, small())
			if err == nil {
				err = d.Publish(ctx, p.Descriptor, fmt.Sprintf("v%d", i))
			}
			if err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	d, err := OpenDir(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range n {
		if err := readEverything(d, fmt.Sprintf("v%d", i)); err != nil {
			t.Error(err)
		}
	}
}

func TestTagsMoveAndDigestsStay(t *testing.T) {
	ctx := context.Background()
	d := newDir(t)
	first := mustPack(t, d, sparse(randomDisk(1, 300<<10), 4096), small(), "v1")
	a := mustOpen(t, d, "")
	second := mustPack(t, d, sparse(randomDisk(2, 300<<10), 4096), small(), "v1")
	if x, err := d.Index(); err != nil || len(x.Manifests) != 1 || x.Manifests[0].Digest != second.Descriptor.Digest {
		t.Fatalf("index.json: %+v, %v", x, err)
	}
	if a.Digest().Hex() != first.Descriptor.Digest.Hex || mustOpen(t, d, "v1").Digest() == a.Digest() {
		t.Error("an open artifact follows its tag")
	}
	ref := Ref{Dir: d.Path(), Tag: "gone", Digest: a.Digest()}
	old, err := Open(ctx, ref)
	if err != nil || old.Digest() != a.Digest() {
		t.Fatalf("by digest: %v", err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	mustPack(t, d, sparse(randomDisk(3, 300<<10), 4096), small(), "v2")
	if err := d.Remove(ctx, "v1"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ref  Ref
		want error
	}{{Ref{Tag: "v1"}, ErrNotFound}, {Ref{Digest: diskimage.DigestOf(nil)}, ErrNotFound}, {Ref{}, nil}} {
		if _, err := d.Resolve(c.ref); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.ref, err, c.want)
		}
	}
	if err := d.Remove(ctx, "v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removing a tag twice: %v", err)
	}
	mustPack(t, d, sparse(randomDisk(1, 300<<10), 4096), small(), "v1")
	if _, err := d.Resolve(Ref{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "v2, v1") {
		t.Errorf("no tag, two images: %v", err)
	}
}

func TestGCKeepsWhatIsListedAndWaitsForNobody(t *testing.T) {
	ctx := context.Background()
	d := newDir(t)
	mustPack(t, d, sparse(randomDisk(1, 300<<10), 4096), small(), "old")
	mustPack(t, d, sparse(randomDisk(2, 300<<10), 4096), small(), "kept")
	if err := d.Remove(ctx, "old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Path(), tempDir, "blob-1"), []byte("left"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := OpenDir(ctx, d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.GC(); !errors.Is(err, ErrInUse) {
		t.Errorf("with another user: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := d.NewBlob()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.GC(); !errors.Is(err, ErrInUse) {
		t.Errorf("with an open blob: %v", err)
	}
	w.Abort()
	report, err := d.GC()
	if err != nil || report.Temps != 1 || report.Blobs < 5 || report.Bytes == 0 {
		t.Errorf("report %+v, %v", report, err)
	}
	if err := readEverything(d, "kept"); err != nil {
		t.Error(err)
	}
	if report, err = d.GC(); err != nil || report != (GCReport{}) {
		t.Errorf("again: report %+v, %v", report, err)
	}
	x := must(d.Index())
	if err := os.WriteFile(filepath.Join(d.Path(), "blobs/sha256", x.Manifests[0].Digest.Hex), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if report, err = d.GC(); !errors.Is(err, ErrCorrupt) || report.Blobs != 0 {
		t.Errorf("with a damaged manifest: report %+v, %v", report, err)
	}
}

func TestForeignDirectoriesAreRefused(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	if _, err := OpenDir(ctx, dir); err == nil {
		t.Error("an empty directory opens")
	}
	if err := os.WriteFile(filepath.Join(dir, "holiday.jpg"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateDir(ctx, dir); err == nil || !strings.Contains(err.Error(), "holiday.jpg") {
		t.Errorf("a directory with other things in it: %v", err)
	}
}

// go-containerregistry and skopeo read the layout and copy it; the digest stays.
func TestOtherToolsReadTheLayout(t *testing.T) {
	d := newDir(t)
	disk := append(randomDisk(2, 600<<10), make([]byte, 600<<10)...)
	p := mustPack(t, d, sparse(disk, 4096), small(), "v1")
	x, err := layout.ImageIndexFromPath(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	m, err := x.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest != p.Descriptor.Digest {
		t.Fatalf("go-containerregistry reads %+v, %v", m, err)
	}
	img, err := x.Image(p.Descriptor.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if got := must(img.Manifest()); len(got.Layers) != len(p.Index.Segments)+2 {
		t.Errorf("go-containerregistry reads %d layers", len(got.Layers))
	}

	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("skopeo is not installed")
	}
	dst := filepath.Join(t.TempDir(), "copy")
	out, err := exec.Command("skopeo", "--insecure-policy", "copy", "oci:"+d.Path()+":v1", "oci:"+dst+":v2").CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
	copied, err := OpenDir(context.Background(), dst)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if err := readEverything(copied, "v2"); err != nil {
		t.Error(err)
	}
	a := mustOpen(t, copied, "v2")
	if a.Digest().Hex() != p.Descriptor.Digest.Hex {
		t.Errorf("skopeo's copy is %v, want %v", a.Digest(), p.Descriptor.Digest)
	}
	// We can add to a layout that skopeo made.
	mustPack(t, copied, sparse(disk[:400<<10], 4096), small(), "v3")
	if err := readEverything(copied, "v3"); err != nil {
		t.Error(err)
	}
}

func TestPlatformOfAnImageForSeveral(t *testing.T) {
	ctx := context.Background()
	d := newDir(t)
	var list []string
	for i, arch := range []string{"amd64", "arm64"} {
		c := testConfig()
		c.Architecture = arch
		p, err := Pack(ctx, sparse(randomDisk(uint64(i), 100<<10), 4096), c, d, small())
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, toJSON(t, p.Descriptor))
	}
	info, err := d.put([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + strings.Join(list, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(ctx, info.descriptor("application/vnd.oci.image.index.v1+json", ""), "multi"); err != nil {
		t.Fatal(err)
	}
	a, err := d.Open(ctx, Ref{Tag: "multi", Platform: "linux/arm64"})
	if err != nil || a.Platform() != "linux/arm64" {
		t.Fatalf("linux/arm64: %v", err)
	}
	for _, platform := range []string{"", "linux/riscv64"} {
		if _, err := d.Open(ctx, Ref{Tag: "multi", Platform: platform}); err == nil || !strings.Contains(err.Error(), "linux/arm64") {
			t.Errorf("platform %q: %v", platform, err)
		}
	}
	if _, err := d.GC(); err != nil {
		t.Fatal(err)
	}
	if err := a.VerifyBlobs(ctx); err != nil {
		t.Errorf("after GC: %v", err)
	}
}
