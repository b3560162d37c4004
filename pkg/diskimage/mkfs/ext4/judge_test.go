package ext4

import (
	"regexp"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var (
	testEpoch = time.Date(2024, 11, 1, 0, 0, 0, 0, time.UTC)
	testUUID  = diskimage.DeriveGUID("test", "amd64", "root")
)

func options(size int64) Options {
	return Options{Size: size, Label: "root", UUID: testUUID, Epoch: testEpoch}
}

// build places a tree, or fails the test.
func mustNew(t *testing.T, tr *tree.Tree, o Options) *FS {
	t.Helper()
	fs, err := New(tr, o)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

var cleanCheck = regexp.MustCompile(`^e2fsck [^\n]*
Pass 1: Checking inodes, blocks, and sizes
Pass 2: Checking directory structure
Pass 3: Checking directory connectivity
Pass 4: Checking reference counts
Pass 5: Checking group summary information
\S+: \d+/\d+ files \([^\n]*\), \d+/\d+ blocks
$`)

// check runs e2fsck, which must have nothing to say.
func check(t *testing.T, image string, args ...string) {
	t.Helper()
	out := disktest.Tool(t, "e2fsck", append(append([]string{"-fn"}, args...), image)...)
	if !cleanCheck.MatchString(out) {
		t.Fatalf("e2fsck is not silent:\n%s", out)
	}
}

// put adds an inode to a tree, or fails the test.
func put(t *testing.T, tr *tree.Tree, path string, in *tree.Inode) *tree.Inode {
	t.Helper()
	if in.MTime.IsZero() {
		in.MTime = testEpoch.Add(-time.Hour - 123456789)
	}
	if err := tr.Put(path, in); err != nil {
		t.Fatal(err)
	}
	return in
}
