package tree_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// What FromTar accepts, WriteTar writes so that it is read back equal, and what
// a layer does stays inside the tree.
func FuzzFromTar(f *testing.F) {
	f.Add(disktest.Tar(f, tar.Header{Typeflag: tar.TypeReg, Name: "f", Uid: 1 << 31, ModTime: noon, Format: tar.FormatPAX, Linkname: "hello",
		PAXRecords: map[string]string{"SCHILY.xattr.user.a%3D": "\x00"}}, tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3}))
	f.Add(disktest.Tar(f, entry("l", "bin", "../../usr/bin"), entry("f", "bin/x", "x"), entry("h", "y", "bin/x"), entry("f", ".wh.y", "")))
	f.Add(disktest.Tar(f, tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("long/", 50) + "x", Linkname: "x", Format: tar.FormatGNU}))
	for _, args := range [][]string{{"--format=gnu"}, {"--format=v7"}, {"--sparse-version=0.0"}, {"--sparse-version=0.1"}, {"--sparse-version=1.0"}} {
		d := f.TempDir()
		script := "printf x | dd of=s bs=1 seek=70000 status=none; truncate -s 200000 s; for i in 1 2 3 4 5 6; do printf y | dd of=t bs=4096 seek=$((i*9)) conv=notrunc status=none; done"
		sh := exec.Command("sh", "-c", script)
		sh.Dir = d
		if sh.Run() != nil {
			continue // fewer seeds without the tools
		}
		out := filepath.Join(f.TempDir(), "x")
		if b, err := exec.Command("tar", append(args, "-b1", "--sparse", "--owner=0", "--group=0", "-C", d, "-cf", out, "s", "t")...).CombinedOutput(); err != nil {
			if strings.Contains(args[0], "v7") {
				continue // cannot be sparse
			}
			f.Logf("%s: %v: %s", args, err, b)
		}
		b, err := exec.Command("cat", out).Output()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = withChecksums(b)
		tr, err := tree.FromTar(bytes.NewReader(b), int64(len(b)))
		layered := tree.New()
		if layerErr := layered.ApplyLayer(bytes.NewReader(b), int64(len(b))); err != nil {
			if layerErr != nil && layered.Len() != 1 {
				t.Errorf("a layer that is an error (%v) left %q", layerErr, paths(layered))
			}
			return
		}
		total := int64(0)
		for e := range tr.All() {
			if total += e.Inode.Size(); total > 8<<20 || e.Inode.Size() > 8<<20 {
				return // a large hole, which WriteTar would write out
			}
			if e.Inode.Data == nil {
				continue
			}
			for _, x := range e.Inode.Data.Extents() {
				if x.Validate(e.Inode.Size()) != nil || x.Len == 0 {
					t.Fatalf("%s: extent %v of %d bytes", e.Path, x, e.Inode.Size())
				}
			}
		}
		out := writeTar(t, tr)
		again := fromTar(t, out)
		if d := tree.DiffContents(tr, again); len(d) > 0 {
			t.Fatalf("read back:\n%s", strings.Join(d, "\n"))
		}
		if err := tree.AssignClusters(again); err == nil {
			for e := range again.All() {
				if e.Inode.Cluster == "" {
					t.Fatalf("%s has no cluster", e.Path)
				}
			}
		}
	})
}

// withChecksums makes the checksum of every block that looks like a header right,
// so that the fuzzer gets past it.
func withChecksums(b []byte) []byte {
	b = bytes.Clone(b)
	for i := 0; i+512 <= len(b); i += 512 {
		block := b[i : i+512]
		if string(block[257:262]) != "ustar" {
			continue
		}
		copy(block[148:156], "        ")
		sum := 0
		for _, c := range block {
			sum += int(c)
		}
		copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
	return b
}
