package tree_test

import (
	"bytes"
	"fmt"
	"log"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// A base from a tar, with the recipe's files over it, is laid out by package.
func Example() {
	base := tree.New()
	sh := &tree.Inode{Mode: 0o755, Data: diskimage.Bytes([]byte("#!"))}
	bin := &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "usr/bin"}
	list := &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte("/bin/sh\n"))}
	if err := base.Put("/usr/bin/sh", sh); err != nil {
		log.Fatal(err)
	}
	if err := base.Put("/bin", bin); err != nil {
		log.Fatal(err)
	}
	if err := base.Put("/var/lib/dpkg/info/dash.list", list); err != nil {
		log.Fatal(err)
	}
	var archive bytes.Buffer
	if err := tree.WriteTar(&archive, base); err != nil {
		log.Fatal(err)
	}

	t, err := tree.FromTar(bytes.NewReader(archive.Bytes()), int64(archive.Len()))
	if err != nil {
		log.Fatal(err)
	}
	files := tree.New()
	motd := &tree.Inode{Mode: 0o644, MTime: time.Unix(0, 0), Data: diskimage.Bytes([]byte("golden\n"))}
	if err := files.Put("/etc/motd", motd); err != nil {
		log.Fatal(err)
	}
	if t, err = tree.Merge(t, files); err != nil {
		log.Fatal(err)
	}
	if err := tree.AssignClusters(t); err != nil {
		log.Fatal(err)
	}
	for _, p := range []string{"/usr/bin/sh", "/etc/motd"} {
		fmt.Println(p, t.Get(p).Size(), t.Get(p).Cluster)
	}
	// Output:
	// /usr/bin/sh 2 dash
	// /etc/motd 7 /etc/motd
}
