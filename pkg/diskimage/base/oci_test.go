package base_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// pack is a tar of "path=content", "path -> target", "path => hard link", "path/".
func pack(t testing.TB, entries ...string) []byte {
	t.Helper()
	var headers []tar.Header
	for _, e := range entries {
		h := tar.Header{Typeflag: tar.TypeReg}
		switch {
		case strings.HasSuffix(e, "/"):
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, e, 0o755
		case strings.Contains(e, " => "):
			h.Typeflag = tar.TypeLink
			h.Name, h.Linkname, _ = strings.Cut(e, " => ")
		case strings.Contains(e, " -> "):
			h.Typeflag = tar.TypeSymlink
			h.Name, h.Linkname, _ = strings.Cut(e, " -> ")
		default:
			h.Name, h.Linkname, _ = strings.Cut(e, "=")
		}
		headers = append(headers, h)
	}
	return disktest.Tar(t, headers...)
}

// compress compresses with gzip, zstd or xz; "" leaves as it is.
func compress(t testing.TB, format string, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch format {
	case "":
		return plain
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		w, err = zstd.NewWriter(&b)
	case "xz":
		w, err = xz.NewWriter(&b)
	}
	if err == nil {
		_, err = w.Write(plain)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layer is one whose openings are counted.
func layer(t testing.TB, format string, plain []byte, opened *atomic.Int64) base.Layer {
	stored := compress(t, format, plain)
	return base.Layer{Digest: diskimage.DigestOf(stored), Size: int64(len(stored)), DiffID: diskimage.DigestOf(plain),
		Open: func(context.Context) (io.ReadCloser, error) {
			if opened != nil {
				opened.Add(1)
			}
			return io.NopCloser(bytes.NewReader(stored)), nil
		}}
}

func open(t testing.TB) func(*base.Base, error) *base.Base {
	return func(b *base.Base, err error) *base.Base {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		return b
	}
}

func content(t testing.TB, tr *tree.Tree, p string) string {
	t.Helper()
	b, err := tr.ReadFile(p, 1<<20)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q in it", err, w)
		}
	}
}

func TestLayersOverLayers(t *testing.T) {
	lower := pack(t, "etc/", "etc/a=1", "etc/b=2", "bin -> usr/bin", "usr/bin/tool=old", "Case=upper", "case=lower", "var/x=1")
	middle := pack(t, "etc/.wh.a=", "bin/tool=new", "hard => etc/b", "out -> /../../etc/b", "var/.wh..wh..opq=", "var/y=2")
	upper := pack(t, "hard2 => hard", "etc/a=again")
	dir := t.TempDir()
	var opened atomic.Int64
	im := base.Image{Digest: diskimage.DigestOf([]byte("manifest"))}
	for i, plain := range [][]byte{lower, middle, upper, lower} {
		im.Layers = append(im.Layers, layer(t, []string{"gzip", "zstd", "", "gzip"}[i], plain, &opened))
	}
	im.Layers = im.Layers[:3]
	b := open(t)(base.OCI(t.Context(), im, base.Options{CacheDir: dir}))
	for p, want := range map[string]string{"/etc/a": "again", "/etc/b": "2", "/usr/bin/tool": "new", "/hard2": "2", "/out": "2", "/Case": "upper", "/case": "lower", "/var/y": "2"} {
		if got := content(t, b.Tree, p); got != want {
			t.Errorf("%s is %q, want %q", p, got, want)
		}
	}
	if b.Tree.Get("/hard2") != b.Tree.Get("/etc/b") {
		t.Error("a hard link over three layers is another file")
	}
	if b.Tree.Get("/var/x") != nil || b.Digest != im.Digest || len(b.Parts) != 3 {
		t.Errorf("x %v, digest %v, parts %v", b.Tree.Get("/var/x"), b.Digest, b.Parts)
	}

	// Once more without fetching, and with the same layer twice.
	before := opened.Load()
	im.Layers = append(im.Layers, im.Layers[0])
	open(t)(base.OCI(t.Context(), im, base.Options{CacheDir: dir}))
	if opened.Load() != before {
		t.Errorf("%d layers fetched again", opened.Load()-before)
	}
}

func TestLayersAreCompared(t *testing.T) {
	good := pack(t, "a="+strings.Repeat("1", 200))
	stored := compress(t, "gzip", good)
	flipped := bytes.Clone(stored)
	flipped[len(flipped)/2] ^= 1
	trailing := append(bytes.Clone(stored), "more"...)
	for name, c := range map[string]struct {
		change func(*base.Layer)
		bytes  []byte
		want   string
		digest bool
	}{
		"another byte":   {nil, flipped, "is not what its digest says", true},
		"cut short":      {nil, stored[:len(stored)-3], "is not what its digest says", true},
		"longer":         {nil, trailing, "is not what its digest says", true},
		"empty":          {nil, nil, "is not what its digest says", true},
		"diff ID":        {func(l *base.Layer) { l.DiffID[0] ^= 1 }, stored, "the image's config says", true},
		"xz":             {nil, compress(t, "xz", good), "compressed with xz", false},
		"no tar":         {nil, compress(t, "gzip", bytes.Repeat([]byte("no tar"), 200)), "tar:", false},
		"leaves the tre": {nil, compress(t, "zstd", pack(t, "../a=1")), "leaves the tree", false},
		"tar cut short":  {nil, compress(t, "zstd", good[:600]), "tar:", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := layer(t, "gzip", good, nil)
			if !c.digest {
				l.Digest, l.Size = diskimage.DigestOf(c.bytes), int64(len(c.bytes))
				if r, err := gzip.NewReader(bytes.NewReader(c.bytes)); err == nil {
					plain, _ := io.ReadAll(r)
					l.DiffID = diskimage.DigestOf(plain)
				} else if z, err := zstd.NewReader(bytes.NewReader(c.bytes)); err == nil {
					plain, _ := io.ReadAll(z)
					l.DiffID = diskimage.DigestOf(plain)
				}
			}
			if c.change != nil {
				c.change(&l)
			}
			l.Open = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c.bytes)), nil }
			_, err := base.OCI(t.Context(), base.Image{Layers: []base.Layer{l}}, base.Options{CacheDir: dir})
			wantError(t, err, c.want, "layer 1 of 1", l.Digest.String())
			if errors.Is(err, base.ErrDigest) != c.digest {
				t.Errorf("%v: ErrDigest is %v", err, !c.digest)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "layers", "*.tar")); c.digest && len(left) > 0 {
				t.Errorf("the cache holds %v", left)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "layers", ".*")); len(left) > 0 {
				t.Errorf("the cache holds %v", left)
			}
		})
	}
}

// distrusting gives wrong bytes until it is told.
type distrusting struct {
	io.Reader
	told *atomic.Bool
}

func (d distrusting) Close() error { return nil }
func (d distrusting) Distrust()    { d.told.Store(true) }

func TestWrongLayersAreFetchedElsewhere(t *testing.T) {
	plain := pack(t, "a=1")
	l := layer(t, "", plain, nil)
	told := new(atomic.Bool)
	l.Open = func(context.Context) (io.ReadCloser, error) {
		b := bytes.Clone(plain)
		if !told.Load() {
			b[600] ^= 1
		}
		return distrusting{bytes.NewReader(b), told}, nil
	}
	b := open(t)(base.OCI(t.Context(), base.Image{Layers: []base.Layer{l}}, base.Options{CacheDir: t.TempDir()}))
	if got := content(t, b.Tree, "/a"); got != "1" || !told.Load() {
		t.Errorf("got %q, told %v", got, told.Load())
	}
}

// What somebody did to the cache does not get into an image.
func TestDamagedCache(t *testing.T) {
	dir := t.TempDir()
	var opened atomic.Int64
	im := base.Image{Layers: []base.Layer{layer(t, "gzip", pack(t, "a=1"), &opened)}}
	name := filepath.Join(dir, "layers", im.Layers[0].DiffID.Hex())
	again := func() int64 {
		t.Helper()
		before := opened.Load()
		b := open(t)(base.OCI(t.Context(), im, base.Options{CacheDir: dir}))
		if got := content(t, b.Tree, "/a"); got != "1" {
			t.Errorf("a is %q", got)
		}
		return opened.Load() - before
	}
	again()
	old, err := os.ReadFile(name + ".tar")
	if err != nil {
		t.Fatal(err)
	}
	for what, damage := range map[string]func() error{
		"another content": func() error { return os.WriteFile(name+".tar", bytes.Replace(old, []byte("1"), []byte("2"), 9), 0o644) },
		"cut":             func() error { return os.Truncate(name+".tar", 100) },
		"gone":            func() error { return os.Remove(name + ".tar") },
		"no record":       func() error { return os.Remove(name + ".json") },
		"record":          func() error { return os.WriteFile(name+".json", []byte("{}"), 0o644) },
		"record of noise": func() error { return os.WriteFile(name+".json", []byte("\x00"), 0o644) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if n := again(); n != 1 {
			t.Errorf("%s: fetched %d times", what, n)
		}
	}
	// Copied elsewhere, with other times, it is still what it is.
	if err := os.WriteFile(name+".tar", old, 0o644); err != nil {
		t.Fatal(err)
	}
	if n := again(); n != 0 {
		t.Errorf("a whole copy: fetched %d times", n)
	}
}

func TestLayersStopWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := layer(t, "gzip", pack(t, "a=1"), nil)
	inner := l.Open
	l.Open = func(c context.Context) (io.ReadCloser, error) { cancel(); return inner(c) }
	if _, err := base.OCI(ctx, base.Image{Layers: slices.Repeat([]base.Layer{l}, 2)}, base.Options{CacheDir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
