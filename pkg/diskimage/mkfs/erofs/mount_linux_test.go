package erofs_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

// TestKernelJudges compares every attribute of every file with the tree's.
func TestKernelJudges(t *testing.T) {
	tr := hardTree(t)
	dev, _ := disktest.Loop(t, disktest.Save(t, mustNew(t, tr, options)), disktest.LoopOptions{ReadOnly: true})
	dir, _ := disktest.Mount(t, dev, "erofs", unix.MS_RDONLY, "")
	disktest.Compare(t, dir, tr, disktest.Comparison{Latest: epoch})
}
