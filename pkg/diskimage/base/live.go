package base

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/iso"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/squashfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Where live systems and installers have their root: Debian's live-boot, Ubuntu's
// casper, dracut's dmsquash-live, archiso, subiquity.
var liveRoots = []string{"/live/filesystem.squashfs", "/casper/filesystem.squashfs", "/liveos/squashfs.img",
	"/arch/x86_64/airootfs.sfs", "/arch/aarch64/airootfs.sfs", "/install/filesystem.squashfs"}

// liveDepth is how deep they lie.
const liveDepth = 2

// liveTree is the root that an ISO 9660 image would start, and where that lies.
func liveTree(d diskimage.Disk) (*tree.Tree, string, error) {
	files, err := iso.Find(d, d.Size(), liveDepth, func(name string) bool {
		name = strings.ToLower(name)
		return slices.Contains(liveRoots, name) || path.Ext(name) == ".squashfs" || path.Ext(name) == ".sfs"
	})
	if err != nil {
		return nil, "", err
	}
	found, err := chooseLive(files)
	if err != nil {
		return nil, "", err
	}
	// The filesystem says how long it is; of one of 4 GiB and more the image does not.
	size := d.Size() - found.Extent.Off
	fs, err := squashfs.Open(io.NewSectionReader(d, found.Extent.Off, size), size)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", found.Path, err)
	}
	t, err := fs.Tree()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", found.Path, err)
	}
	const within = "/LiveOS/rootfs.img" // Fedora's, before it did without
	n := t.Get(within)
	if n == nil || n.Kind != tree.Regular || n.Data == nil {
		return t, found.Path, nil
	}
	inner, err := foreign.Tree(n.Data, n.Size(), foreign.Probe(n.Data, n.Size()).Type)
	if err != nil {
		err = fmt.Errorf("%s in %s: %w", within, found.Path, err)
	}
	return inner, found.Path + within, err
}

func chooseLive(files []iso.File) (iso.File, error) {
	for _, name := range liveRoots {
		for _, f := range files {
			if strings.ToLower(f.Path) == name {
				return f, nil
			}
		}
	}
	if len(files) == 1 {
		return files[0], nil
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Path)
	}
	if len(names) == 0 {
		return iso.File{}, fmt.Errorf("no squashfs of a live system in it (%s, …)", strings.Join(liveRoots[:3], ", "))
	}
	return iso.File{}, fmt.Errorf("several squashfs, none where a live system has its root: %s; take the one that you want out of it, and give that as base: {disk: {file: …}}", strings.Join(names, ", "))
}
