package ext4

import (
	"fmt"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func smallTree(t *testing.T) *tree.Tree {
	tr := tree.New()
	put(t, tr, "/", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	put(t, tr, "/etc", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	motd := put(t, tr, "/etc/motd", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte("golden\n"))})
	put(t, tr, "/etc/motd2", motd)
	put(t, tr, "/etc/long", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: strings.Repeat("x", 60)})
	put(t, tr, "/etc/short", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: strings.Repeat("x", 59)})
	put(t, tr, "/big", &tree.Inode{Mode: 0o600, Data: diskimage.Bytes([]byte(strings.Repeat("0123456789abcdef", 1<<17)))})
	for i := range 1000 {
		put(t, tr, fmt.Sprintf("/many/file-%d", i), &tree.Inode{Mode: 0o640, UID: 70000, Data: diskimage.Bytes(make([]byte, i))})
	}
	put(t, tr, "/cap", &tree.Inode{Mode: 0o755, Xattrs: map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "user.big": strings.Repeat("y", 3000), "user.a": ""}})
	return tr
}

func TestSmallTree(t *testing.T) {
	for _, size := range []int64{0, 12 << 20, 64 << 20, 1 << 30, 6 << 30} {
		fs := mustNew(t, smallTree(t), options(size))
		check(t, disktest.Save(t, fs))
	}
}
