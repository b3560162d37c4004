package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// recorder is a destination that writes down what is stored in which order.
type recorder struct {
	*Dir
	mu     sync.Mutex
	events []string
	fail   func(event string) error
}

func (r *recorder) note(event string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		if err := r.fail(event); err != nil {
			return err
		}
	}
	r.events = append(r.events, event)
	return nil
}

func (r *recorder) PushBlob(ctx context.Context, d v1.Descriptor, open func(int64) (io.ReadCloser, error), o PushOptions) (int64, error) {
	if err := r.note("blob"); err != nil {
		return 0, err
	}
	return r.Dir.PushBlob(ctx, d, open, o)
}

func (r *recorder) PushManifest(ctx context.Context, reference string, mediaType types.MediaType, body []byte) (v1.Descriptor, error) {
	doc, err := parseDocument(body, mediaType)
	if err != nil {
		return v1.Descriptor{}, err
	}
	event := "manifest"
	switch {
	case doc.Subject != nil:
		event = "referrer"
	case reference != "":
		event = "tag " + reference
	}
	if err := r.note(event); err != nil {
		return v1.Descriptor{}, err
	}
	return r.Dir.PushManifest(ctx, reference, mediaType, body)
}

// attach stores a referrer of subject, whose only layer is text.
func attach(t testing.TB, repo Repository, subject v1.Descriptor, text string) v1.Descriptor {
	t.Helper()
	put := func(b []byte) v1.Descriptor {
		d := v1.Descriptor{MediaType: "application/x-test", Digest: hashOf(diskimage.DigestOf(b)), Size: int64(len(b))}
		open := func(off int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b[off:])), nil }
		if _, err := repo.PushBlob(t.Context(), d, open, PushOptions{}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	subject = v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	body, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: "application/x-" + text,
		Config: put([]byte("{}")), Layers: []v1.Descriptor{put([]byte(text))}, Subject: &subject})
	if err != nil {
		t.Fatal(err)
	}
	desc, err := repo.PushManifest(t.Context(), "", types.OCIManifestSchema1, body)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

func packed(t testing.TB, d *Dir, seed uint64, arch, tag string) *Packed {
	t.Helper()
	c := testConfig()
	c.Architecture = arch
	p, err := Pack(context.Background(), sparse(randomDisk(seed, 1<<20), 4096), c, d, small())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(context.Background(), p.Descriptor, tag); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCopyStoresTheTagLast(t *testing.T) {
	src, dst := newDir(t), &recorder{Dir: newDir(t)}
	p := packed(t, src, 1, "amd64", "v1")
	sig := attach(t, src, p.Descriptor, "signature")
	attach(t, src, sig, "countersignature")
	var last, total int64
	got, err := Copy(t.Context(), src, Ref{Tag: "v1"}, dst, Ref{Tag: "v2"}, CopyOptions{Progress: func(d, n int64) { last, total = d, n }})
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != p.Digest() || got.Images != 1 || got.Referrers != 2 || got.BytesSent != got.Bytes || got.BlobsSent != got.Blobs {
		t.Errorf("report: %+v", got)
	}
	if last != got.Bytes || total != got.Bytes {
		t.Errorf("progress ended at %d of %d, want %d", last, total, got.Bytes)
	}
	order := slices.Compact(dst.events)
	if want := []string{"blob", "manifest", "referrer", "tag v2"}; !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
	a, err := dst.Open(t.Context(), Ref{Tag: "v2"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.VerifyBlobs(t.Context()); err != nil {
		t.Error(err)
	}
	list, err := dst.Referrers(t.Context(), p.Digest())
	if err != nil || len(list) != 1 || list[0].Digest != sig.Digest || list[0].ArtifactType != "application/x-signature" {
		t.Errorf("referrers: %+v, %v", list, err)
	}
	again, err := Copy(t.Context(), src, Ref{Tag: "v1"}, dst, Ref{Tag: "v2"}, CopyOptions{})
	if err != nil || again.BytesSent != 0 || again.BlobsSent != 0 {
		t.Errorf("a second copy sent %+v, %v", again, err)
	}
}

func TestInterruptedCopyLeavesTheTagAlone(t *testing.T) {
	src := newDir(t)
	old, p := packed(t, src, 1, "amd64", "old"), packed(t, src, 2, "amd64", "new")
	attach(t, src, p.Descriptor, "signature")
	broken := errors.New("cut")
	for k := 0; ; k++ {
		dst := &recorder{Dir: newDir(t)}
		if _, err := Copy(t.Context(), src, Ref{Tag: "old"}, dst, Ref{Tag: "v"}, CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		n := 0
		dst.fail = func(string) error {
			if n++; n > k {
				return broken
			}
			return nil
		}
		_, err := Copy(t.Context(), src, Ref{Tag: "new"}, dst, Ref{Tag: "v"}, CopyOptions{Jobs: 1})
		if err == nil {
			if k < 8 {
				t.Fatalf("only %d operations", k)
			}
			return
		}
		if !errors.Is(err, broken) {
			t.Fatalf("cut at %d: %v", k, err)
		}
		if got := mustOpen(t, dst.Dir, "v").Digest(); got != old.Digest() {
			t.Fatalf("cut at %d: the tag names %v, want the old %v", k, got, old.Digest())
		}
		dst.fail = nil
		again, err := Copy(t.Context(), src, Ref{Tag: "new"}, dst, Ref{Tag: "v"}, CopyOptions{})
		if err != nil || mustOpen(t, dst.Dir, "v").Digest() != p.Digest() {
			t.Fatalf("after a cut at %d: %+v, %v", k, again, err)
		}
		if again.BlobsSent > again.Blobs-min(k, again.Blobs) {
			t.Errorf("after a cut at %d, %d of %d blobs were sent again", k, again.BlobsSent, again.Blobs)
		}
	}
}

// liar gives wrong bytes of the right length for the first n reads of blobs.
type liar struct {
	*Dir
	mu sync.Mutex
	n  int
}

func (l *liar) Blob(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n > 0 {
		l.n--
		return distrusted{bytes.NewReader(make([]byte, n))}, nil
	}
	return l.Dir.Blob(ctx, d, off, n)
}

// distrusted is a body of a place that has others to turn to.
type distrusted struct{ io.Reader }

func (distrusted) Close() error { return nil }
func (distrusted) Distrust()    {}

func TestWrongBytesAreAskedForAgain(t *testing.T) {
	src, dst := newDir(t), newDir(t)
	p := packed(t, src, 1, "amd64", "v1")
	if _, err := Copy(t.Context(), &liar{Dir: src, n: 2}, Ref{Tag: "v1"}, dst, Ref{Tag: "v1"}, CopyOptions{Jobs: 1}); err != nil {
		t.Errorf("two wrong answers: %v", err)
	}
	if got := mustOpen(t, dst, "v1"); got.Digest() != p.Digest() || got.VerifyBlobs(t.Context()) != nil {
		t.Errorf("copied %v, want %v", got.Digest(), p.Digest())
	}
	fresh := newDir(t)
	_, err := Copy(t.Context(), &liar{Dir: src, n: 1 << 30}, Ref{Tag: "v1"}, fresh, Ref{Tag: "v1"}, CopyOptions{})
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("nothing but wrong answers: %v", err)
	}
	if x, err := fresh.Index(); err != nil || len(x.Manifests) != 0 {
		t.Errorf("and index.json lists %+v, %v", x, err)
	}
}

func TestPushesJoinUnderOneTag(t *testing.T) {
	src, dst := newDir(t), newDir(t)
	amd, arm := packed(t, src, 1, "amd64", "a"), packed(t, src, 2, "arm64", "b")
	newer := packed(t, src, 3, "amd64", "c")
	open := func(platform string) diskimage.Digest {
		t.Helper()
		pin, err := Resolve(t.Context(), dst, Ref{Tag: "v1", Platform: platform})
		if err != nil {
			t.Fatal(err)
		}
		a, err := pin.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		return a.Digest()
	}
	join := func(tag string, o CopyOptions) *Copied {
		t.Helper()
		o.Join = true
		c, err := Copy(t.Context(), src, Ref{Tag: tag}, dst, Ref{Tag: "v1"}, o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if _, err := Copy(t.Context(), src, Ref{Tag: "a"}, dst, Ref{Tag: "v1"}, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	both := join("b", CopyOptions{})
	if open("linux/amd64") != amd.Digest() || open("linux/arm64") != arm.Digest() {
		t.Error("the index names other images")
	}
	if again := join("b", CopyOptions{}); again.Digest != both.Digest {
		t.Errorf("joining again gives %v, not %v", again.Digest, both.Digest)
	}
	join("c", CopyOptions{})
	if open("linux/amd64") != newer.Digest() || open("linux/arm64") != arm.Digest() {
		t.Error("a newer image does not take the older one's place alone")
	}
	if _, err := Resolve(t.Context(), dst, Ref{Tag: "v1"}); err == nil {
		t.Error("one of two platforms was chosen")
	}
	one := newDir(t)
	if c, err := Copy(t.Context(), dst, Ref{Tag: "v1"}, one, Ref{Tag: "x"}, CopyOptions{Platform: "linux/arm64"}); err != nil || c.Digest != arm.Digest() || c.Images != 1 {
		t.Errorf("one platform: %+v, %v", c, err)
	}
	all := newDir(t)
	if c, err := Copy(t.Context(), dst, Ref{Tag: "v1"}, all, Ref{Tag: "x"}, CopyOptions{}); err != nil || c.Images != 2 {
		t.Errorf("all platforms: %+v, %v", c, err)
	}
	if r, err := all.GC(); err != nil || r.Blobs != 0 {
		t.Errorf("collecting what was just copied: %+v, %v", r, err)
	}
}

func TestJoinsAtTheSameTimeAllCount(t *testing.T) {
	src := newDir(t)
	path := filepath.Join(t.TempDir(), "dst")
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		packed(t, src, uint64(i), fmt.Sprintf("arch%d", i), fmt.Sprint(i))
	}
	for i := range n {
		wg.Go(func() {
			dst, err := createDir(t.Context(), path, unsynced{atomicfile.OS})
			if err != nil {
				t.Error(err)
				return
			}
			defer dst.Close()
			if _, err := Copy(t.Context(), src, Ref{Tag: fmt.Sprint(i)}, dst, Ref{Tag: "v"}, CopyOptions{Join: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	dst, err := OpenDir(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	for i := range n {
		if _, err := Resolve(t.Context(), dst, Ref{Tag: "v", Platform: fmt.Sprintf("linux/arch%d", i)}); err != nil {
			t.Error(err)
		}
	}
}

func TestATaglessReferenceSkipsSignatures(t *testing.T) {
	d := newDir(t)
	p := packed(t, d, 1, "amd64", "v1")
	attach(t, d, p.Descriptor, "signature")
	a, err := d.Open(t.Context(), Ref{})
	if err != nil || a.Digest() != p.Digest() {
		t.Fatalf("%v", err)
	}
	a.Close()
	packed(t, d, 2, "amd64", "v2")
	if _, err := d.Open(t.Context(), Ref{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("one of two images was chosen: %v", err)
	}
}
