//go:build slow

package ext4

import (
	"fmt"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// More than 65,000 subdirectories are too many for a link count: it is 1 (dir_nlink).
func TestManySubdirectories(t *testing.T) {
	tr := tree.New()
	for i := range 66_000 {
		put(t, tr, fmt.Sprintf("/d/%d", i), &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: testEpoch})
	}
	fs := mustNew(t, tr, options(0))
	check(t, disktest.Save(t, fs))
}
