package oci

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// readEverything opens the tag, reads the disk and every blob.
func readEverything(d *Dir, tag string) error {
	ctx := context.Background()
	a, err := d.Open(ctx, Ref{Tag: tag})
	if err != nil {
		return err
	}
	defer a.Close()
	if _, err := a.Disk(ctx).ReadAt(make([]byte, a.Index().DiskSize), 0); err != nil {
		return err
	}
	return a.VerifyBlobs(ctx)
}

// Whichever byte of whichever blob is another one, and wherever a blob is cut
// or grows, an error names the blob.
func TestAnyDamageIsAnErrorThatNamesTheBlob(t *testing.T) {
	d := newDir(t)
	mustPack(t, d, sparse(randomDisk(9, 400<<10), 4096), small(), "v1")
	if err := readEverything(d, "v1"); err != nil {
		t.Fatal(err)
	}
	blobs, err := os.ReadDir(filepath.Join(d.Path(), "blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, e := range blobs {
		path := filepath.Join(d.Path(), "blobs/sha256", e.Name())
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := [][]byte{good[:len(good)-1], append(append([]byte(nil), good...), 0), nil}
		for range 40 {
			b := append([]byte(nil), good...)
			b[rnd.IntN(len(b))] ^= byte(1 + rnd.IntN(255))
			damaged = append(damaged, b)
		}
		for i, b := range damaged {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
			err := readEverything(d, "v1")
			var be *BlobError
			if !errors.As(err, &be) || be.Blob.Hex() != e.Name() || !strings.Contains(err.Error(), e.Name()) {
				t.Errorf("blob %s, damage %d: got %v", e.Name(), i, err)
			}
		}
		if err := os.WriteFile(path, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := readEverything(d, "v1"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path(), "blobs/sha256", blobs[0].Name())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := readEverything(d, "v1"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe in place of a blob: %v", err)
	}
}

// Each flipped byte of a frame makes the read of its chunk fail, names the
// frame's range, and gives none of the chunk's bytes; other chunks still read.
func TestDamagedFrameNamesItsRange(t *testing.T) {
	d := newDir(t)
	mustPack(t, d, sparse(randomDisk(9, 400<<10), 4096), small(), "v1")
	a := mustOpen(t, d, "v1")
	x := a.Index()
	for _, c := range x.Chunks {
		path := d.blobPath(x.Segments[c.Segment].Digest)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := append([]byte(nil), good...)
		bad[c.Frame.Off+c.Frame.Len/2] ^= 0x40
		if err := os.WriteFile(path, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		disk := a.Disk(context.Background())
		p := []byte("untouched")
		_, err = disk.ReadAt(p, c.Off)
		var be *BlobError
		if !errors.As(err, &be) || !errors.Is(err, ErrCorrupt) || be.Range != c.Frame || be.Blob != x.Segments[c.Segment].Digest {
			t.Errorf("chunk %v: got %v, want an error about frame %v", c.Extent, err, c.Frame)
		}
		for _, other := range x.Chunks[:3] {
			if other.Off != c.Off {
				if _, err := disk.ReadAt(p, other.Off); err != nil {
					t.Errorf("chunk %v beside a damaged one: %v", other.Extent, err)
				}
			}
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "raw"))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Export(context.Background(), f, ExportOptions{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("export with chunk %v damaged: %v", c.Extent, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// rewrite publishes the artifact again with its manifest and config changed:
// all digests are right, what they say is not.
func rewrite(t *testing.T, d *Dir, tag string, edit func(manifest, config map[string]any)) string {
	t.Helper()
	ctx := context.Background()
	a, err := d.Open(ctx, Ref{Tag: tag})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	load := func(digest diskimage.Digest) map[string]any {
		b, err := os.ReadFile(d.blobPath(digest))
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(b, &doc); err != nil {
			t.Fatal(err)
		}
		return doc
	}
	put := func(doc any) blobInfo {
		b, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		info, err := d.put(b)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	configDigest, err := digestOf(a.manifest.config.Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, c := load(a.Digest()), load(configDigest)
	edit(m, c)
	info := put(c)
	config := m["config"].(map[string]any)
	config["digest"], config["size"] = info.digest.String(), info.size
	desc := put(m).descriptor("application/vnd.oci.image.manifest.v1+json", "")
	if err := d.Publish(ctx, desc, "edited"); err != nil {
		t.Fatal(err)
	}
	return "edited"
}

func TestContradictionsAreRefused(t *testing.T) {
	layer := func(m map[string]any, i int) map[string]any { return m["layers"].([]any)[i].(map[string]any) }
	for name, c := range map[string]struct {
		edit func(m, c map[string]any)
		want string
	}{
		"nothing":          {func(m, c map[string]any) {}, ""},
		"unknown member":   {func(m, c map[string]any) { c["future"] = 1 }, ""},
		"required feature": {func(m, c map[string]any) { c["requires"] = []string{"verity"} }, `requires "verity"`},
		"artifact type":    {func(m, c map[string]any) { m["artifactType"] = "x" }, "not a disk image"},
		"media type":       {func(m, c map[string]any) { layer(m, 0)["mediaType"] = "x" }, "media type"},
		"segments swapped": {func(m, c map[string]any) {
			a, b := layer(m, 0), layer(m, 1)
			a["digest"], b["digest"] = b["digest"], a["digest"]
			a["size"], b["size"] = b["size"], a["size"]
		}, "segment 0: manifest says"},
		"title":         {func(m, c map[string]any) { layer(m, 0)["annotations"] = map[string]string{} }, "title"},
		"layer missing": {func(m, c map[string]any) { m["layers"] = m["layers"].([]any)[1:] }, "title"},
		"no layers":     {func(m, c map[string]any) { m["layers"] = []any{} }, "layers"},
		"many layers":   {func(m, c map[string]any) { m["layers"] = make([]struct{}, 99) }, "99 layers"},
		"urls":          {func(m, c map[string]any) { layer(m, 0)["urls"] = []string{"http://x"} }, "urls"},
		"bad digest":    {func(m, c map[string]any) { layer(m, 0)["digest"] = "sha256:../../x" }, "hex"},
		"map size":      {func(m, c map[string]any) { l := m["layers"].([]any); l[len(l)-1].(map[string]any)["size"] = 1 << 40 }, "block map has"},
		"huge index":    {func(m, c map[string]any) { l := m["layers"].([]any); l[len(l)-2].(map[string]any)["size"] = 1 << 40 }, "at most"},
		"disk size":     {func(m, c map[string]any) { c["disk"].(map[string]any)["size"] = 512 }, "another disk"},
		"disk digest":   {func(m, c map[string]any) { c["disk"].(map[string]any)["digest"] = "sha256:" + strings.Repeat("a", 64) }, "another disk"},
		"index digest":  {func(m, c map[string]any) { c["disk"].(map[string]any)["index"] = "sha256:" + strings.Repeat("a", 64) }, "another disk"},
		"no platform":   {func(m, c map[string]any) { c["os"] = "" }, "os, architecture"},
		"huge manifest": {func(m, c map[string]any) { m["x"] = strings.Repeat("x", MaxManifest) }, "fewer than"},
		"huge config":   {func(m, c map[string]any) { c["x"] = strings.Repeat("x", MaxConfig) }, "at most"},
		"table too long": {func(m, c map[string]any) {
			c["disk"].(map[string]any)["table"] = map[string]any{"diskSize": 1 << 30, "sectorSize": 512,
				"diskGUID": "00000000-0000-0000-0000-000000000000"}
		}, "table is for"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			mustPack(t, d, sparse(randomDisk(11, 600<<10), 4096), small(), "v1")
			tag := rewrite(t, d, "v1", c.edit)
			err := readEverything(d, tag)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
