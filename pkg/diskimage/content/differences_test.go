package content_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
)

// TestDifferencesPointOut changes one thing at a time on one of two equal disks.
func TestDifferencesPointOut(t *testing.T) {
	im, count := disk(t)
	plain := make([]byte, 64<<20)
	if _, err := count.r.ReadAt(plain, 0); err != nil {
		t.Fatal(err)
	}
	find := func(b []byte, what string) int64 {
		t.Helper()
		i := bytes.Index(b, []byte(what))
		if i < 0 {
			t.Fatalf("no %q on the disk", what)
		}
		return int64(i)
	}
	for _, c := range []struct {
		name      string
		at        int64
		partition string
		what      string
		bytes     bool
	}{
		{"contents", find(plain, "hello\n") + 4, "root", "/etc/motd", true},
		{"of the ESP", find(plain, "a program") + 2, "esp", "/boot", true},
		{"in no file", 52 << 20, "data", "in no file", true},
		{"nothing", -1, "", "", false},
	} {
		b := bytes.Clone(plain)
		if c.at >= 0 {
			b[c.at] ^= 0x20
		}
		other := content.New(im.Parts(), func(e diskimage.Extent) io.ReaderAt { return io.NewSectionReader(bytes.NewReader(b), e.Off, e.Len) })
		found, err := content.Differences(im, other, 20)
		if err != nil {
			t.Fatal(err)
		}
		if c.at < 0 {
			if len(found) != 0 {
				t.Errorf("%s: %+v", c.name, found)
			}
			continue
		}
		if len(found) != 1 || found[0].Partition != c.partition || !strings.Contains(strings.ToLower(found[0].What), c.what) || found[0].Bytes != c.bytes {
			t.Errorf("%s: %+v", c.name, found)
			continue
		}
		d := found[0]
		if i := d.Offset % 16; d.A[i]^d.B[i] != 0x20 {
			t.Errorf("%s: byte %d: % x, % x", c.name, d.Offset, d.A, d.B)
		}
	}
}
