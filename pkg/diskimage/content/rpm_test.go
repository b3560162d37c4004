package content_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// rpmRoot is a disk with a database of RPM, or a part of one, and a log beside it.
func rpmRoot(t *testing.T, part int) *content.View {
	t.Helper()
	files := map[string][]byte{}
	for _, name := range []string{"log.sqlite", "log.sqlite-wal"} {
		files[name] = disktest.Gunzip(t, "../rpmdb/testdata/"+name+".gz")
	}
	root := tree.New()
	db := files["log.sqlite"]
	put(t, root, "/usr/lib/sysimage/rpm/rpmdb.sqlite", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(db[:len(db)/part])})
	put(t, root, "/usr/lib/sysimage/rpm/rpmdb.sqlite-wal", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(files["log.sqlite-wal"])})
	put(t, root, "/var/lib/rpm", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "../../usr/lib/sysimage/rpm"})
	put(t, root, "/usr/share/fixture/deep/file-7", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(bytes.Repeat([]byte("0123456789abcde\n"), 60_000))})
	put(t, root, "/usr/bin/fixture", text("of a package that the log removes"))
	fs, err := ext4.New(root, ext4.Options{Size: 16 << 20, UUID: diskimage.DeriveGUID("rpm"), Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	im := content.New([]content.Part{{Name: "root", Number: 1, Extent: diskimage.Extent{Len: 16 << 20}, Filesystem: diskimage.Filesystem{Type: "ext4"}}},
		func(e diskimage.Extent) io.ReaderAt { return io.NewSectionReader(fs, e.Off, e.Len) })
	v, err := im.Partition("root")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSpaceOfRPMPackages(t *testing.T) {
	v := rpmRoot(t, 1)
	s, err := v.Space(nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Packages) != 2 || s.Packages[0].Name != "fixture-many" || s.Packages[0].Bytes != 960_000 || s.Packages[1].Name != content.Unowned || len(v.Notes) > 0 {
		t.Errorf("packages %+v, notes %q", s.Packages, v.Notes)
	}
}

// One that cannot be read hides no space.
func TestSpaceWithoutAnRPMDatabase(t *testing.T) {
	v := rpmRoot(t, 2)
	s, err := v.Space(nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Packages) != 1 || s.Packages[0].Name != content.Unowned || len(v.Notes) != 1 || !strings.Contains(v.Notes[0], "/usr/lib/sysimage/rpm/rpmdb.sqlite") {
		t.Errorf("packages %+v, notes %q", s.Packages, v.Notes)
	}
}
