package oci

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// manifestOf stores a small manifest, with a layer of its own, that is about
// subject if that is not nil.
func manifestOf(t testing.TB, d *Dir, reference, text string, subject *v1.Descriptor) v1.Descriptor {
	t.Helper()
	blob := func(s string) v1.Descriptor {
		digest, err := d.PutBlob([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return v1.Descriptor{MediaType: "text/plain", Digest: hashOf(digest), Size: int64(len(s))}
	}
	return pushJSON(t, d, reference, types.OCIManifestSchema1, v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: blob("{}"), Layers: []v1.Descriptor{blob("layer of " + text)}, Subject: subject})
}

func indexOf(t testing.TB, d *Dir, reference string, children ...v1.Descriptor) v1.Descriptor {
	t.Helper()
	return pushJSON(t, d, reference, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: children})
}

func pushJSON(t testing.TB, d *Dir, reference string, mediaType types.MediaType, m any) v1.Descriptor {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if reference == "digest" {
		reference = diskimage.DigestOf(b).String()
	}
	desc, err := d.PushManifest(t.Context(), reference, mediaType, b)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

func has(d *Dir, desc v1.Descriptor) bool {
	digest, err := digestOf(desc.Digest)
	if err != nil {
		return false
	}
	_, err = os.Stat(d.blobPath(digest))
	return err == nil
}

func TestGCTakesReferrersWithTheirSubject(t *testing.T) {
	ctx := t.Context()
	d := newDir(t)
	kept := manifestOf(t, d, "kept", "kept", nil)
	gone := manifestOf(t, d, "gone", "gone", nil)
	child := manifestOf(t, d, "", "child", nil)
	multi := indexOf(t, d, "multi", child)
	alone := manifestOf(t, d, "digest", "listed by digest", nil)
	moved := manifestOf(t, d, "moves", "before", nil)
	manifestOf(t, d, "moves", "after", nil)

	scheme := func(subject v1.Descriptor, suffix string, children ...v1.Descriptor) v1.Descriptor {
		return indexOf(t, d, "sha256-"+subject.Digest.Hex+suffix, children...)
	}
	// In the order in which a collector that looks once would go wrong.
	goneSig := manifestOf(t, d, "digest", "signature of gone", &gone)
	goneSigSig := manifestOf(t, d, "digest", "of its signature", &goneSig)
	keptSig := manifestOf(t, d, "digest", "signature of kept", &kept)
	keptSigSig := manifestOf(t, d, "digest", "of its signature too", &keptSig)
	childSig := manifestOf(t, d, "digest", "signature of child", &child)
	goneOld := manifestOf(t, d, "", "old signature of gone", nil)
	keptOld := manifestOf(t, d, "", "old signature of kept", nil)
	tagged := manifestOf(t, d, "report", "somebody's report on gone", &gone)
	goneScheme, keptScheme := scheme(gone, "", goneSig), scheme(kept, "", keptSig)
	goneSchemeOld, keptSchemeOld := scheme(gone, ".sig", goneOld), scheme(kept, ".att", keptOld)
	nobody := manifestOf(t, d, "digest", "of what never came", &v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}, Size: 9})

	if report, err := d.GC(); err != nil || report.Manifests != 1 {
		t.Fatalf("before anything was removed: %+v, %v", report, err)
	}
	if err := d.Remove(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	report, err := d.GC()
	if err != nil || report.Manifests != 4 {
		t.Errorf("report %+v, %v: want 4 manifests", report, err)
	}
	for name, m := range map[string]v1.Descriptor{"kept": kept, "child": child, "multi": multi, "alone": alone, "signature of kept": keptSig, "its signature": keptSigSig,
		"signature of child": childSig, "kept by the tag scheme": keptScheme, "old, kept": keptSchemeOld, "its manifest": keptOld, "tagged": tagged} {
		if !has(d, m) {
			t.Errorf("%s is lost", name)
		}
	}
	for name, m := range map[string]v1.Descriptor{"gone": gone, "moved": moved, "signature of gone": goneSig, "its signature": goneSigSig, "gone by the tag scheme": goneScheme,
		"old, gone": goneSchemeOld, "its manifest": goneOld, "of what never came": nobody} {
		if has(d, m) {
			t.Errorf("%s is left", name)
		}
	}
	if report, err = d.GC(); err != nil || report != (GCReport{}) {
		t.Errorf("again: %+v, %v", report, err)
	}
	l, err := d.Listing()
	if err != nil || l.Err() != nil {
		t.Fatal(err, l.Err())
	}
	for _, m := range l.Manifests() {
		if !has(d, m) {
			t.Errorf("%v is listed, and not there", m.Digest)
		}
	}
}

func TestReferrersStayListedWithoutTheirTag(t *testing.T) {
	ctx := t.Context()
	d := newDir(t)
	subject := manifestOf(t, d, "v1", "subject", nil)
	removed := manifestOf(t, d, "removed", "one", &subject)
	moved := manifestOf(t, d, "moves", "two", &subject)
	twice := manifestOf(t, d, "twice", "three", &subject)
	manifestOf(t, d, "again", "three", &subject)
	manifestOf(t, d, "moves", "not about anything", nil)
	for _, tag := range []string{"removed", "twice"} {
		if err := d.Remove(ctx, tag); err != nil {
			t.Fatal(err)
		}
	}
	x, err := d.Index()
	if err != nil || len(x.Manifests) != 5 {
		t.Fatalf("%+v, %v: want 5 entries", x, err)
	}
	got, err := d.Referrers(ctx, must(digestOf(subject.Digest)))
	if err != nil || len(got) != 3 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := d.GC(); err != nil || !has(d, removed) || !has(d, moved) || !has(d, twice) {
		t.Errorf("collected: %v", err)
	}
}

func TestGCKeepsAPlaceOfReferrers(t *testing.T) {
	d := newDir(t)
	elsewhere := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("b", 64)}, Size: 9}
	sig := manifestOf(t, d, "digest", "signature", &elsewhere)
	old := manifestOf(t, d, "sha256-"+elsewhere.Digest.Hex+".sig", "old signature", nil)
	if report, err := d.GC(); err != nil || report != (GCReport{}) || !has(d, sig) || !has(d, old) {
		t.Errorf("report %+v, %v", report, err)
	}
}

func TestGCStopsBeforeItChangesAnything(t *testing.T) {
	d := newDir(t)
	gone := manifestOf(t, d, "", "gone", nil)
	sig := manifestOf(t, d, "digest", "signature", &gone)
	kept := manifestOf(t, d, "kept", "kept", nil)
	digest, err := digestOf(gone.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveBlob(digest); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Path(), "blobs/sha256", kept.Digest.Hex), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := d.Index()
	if err != nil {
		t.Fatal(err)
	}
	if report, err := d.GC(); !errors.Is(err, ErrCorrupt) || report.Blobs != 0 {
		t.Errorf("report %+v, %v", report, err)
	}
	if after, err := d.Index(); err != nil || len(after.Manifests) != len(before.Manifests) || !has(d, sig) {
		t.Errorf("changed: %+v, %v", after, err)
	}
}

func TestLinkedBlobsAreOneFile(t *testing.T) {
	ctx := context.Background()
	from, to := newDir(t), newDir(t)
	digest, err := from.PutBlob([]byte("shared"))
	if err != nil {
		t.Fatal(err)
	}
	stat := func(d *Dir) fs.FileInfo {
		info, err := os.Stat(d.blobPath(digest))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	link := func(what string, want bool) {
		t.Helper()
		if n, err := to.LinkBlob(ctx, from, digest); err != nil || n != 6 {
			t.Fatalf("%s: %d, %v", what, n, err)
		}
		if err := to.VerifyBlob(ctx, digest); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := os.SameFile(stat(from), stat(to)); got != want {
			t.Errorf("%s: one file: %v, want %v", what, got, want)
		}
	}
	link("new", true)
	link("again", true)
	if err := to.RemoveBlob(digest); err != nil || from.VerifyBlob(ctx, digest) != nil {
		t.Fatalf("removing one name: %v", err)
	}
	if err := os.WriteFile(to.blobPath(digest), []byte("damage of another size"), 0o644); err != nil {
		t.Fatal(err)
	}
	link("over a damaged one", false)
	if err := to.RemoveBlob(digest); err != nil {
		t.Fatal(err)
	}
	to.fs = noLinks{to.fs}
	link("without links", false)
	if err := os.WriteFile(from.blobPath(digest), []byte("shaRed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := to.RemoveBlob(digest); err != nil {
		t.Fatal(err)
	}
	if _, err := to.LinkBlob(ctx, from, digest); !errors.Is(err, ErrCorrupt) {
		t.Errorf("copying a damaged blob: %v", err)
	}
	if _, err := to.LinkBlob(ctx, from, diskimage.DigestOf(nil)); !errors.Is(err, ErrNotFound) {
		t.Errorf("linking nothing: %v", err)
	}
}
