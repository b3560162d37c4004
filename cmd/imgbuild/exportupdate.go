package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/fatfs"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// sysupdate is the format of export that is a folder for updates of slots
// (docs/loaders.md, section 4).
const sysupdate = "sysupdate"

// exportUpdate writes what a server of updates has of an image with slots: its
// root, with its hashes where it has some, its UKI, and their SHA-256, which
// come last.
func exportUpdate(c *cli.Context, talk *ui.Talk, a *oci.Artifact, dir string) error {
	cfg := a.Config()
	release := cfg.Name + "_" + cfg.Version
	disk := a.Disk(c.Context)
	var table diskimage.Table
	if cfg.Disk.Table != nil {
		table = *cfg.Disk.Table
	}
	parts := updateParts(&table, disk, release)
	if len(parts) == 0 { // nor a table, of a disk that was imported
		return ui.Fail(ui.ExitUsage, fmt.Errorf("--format %s: the image has no slots", sysupdate), "docs/loaders.md says how a recipe gets them")
	}
	uki, err := findUKI(disk, table.Find(diskimage.RoleESP), release)
	if err != nil {
		return err
	}
	parts[release+".efi"] = uki
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return ui.Fail(ui.ExitTarget, err, "")
	}
	var sums strings.Builder
	var names []string
	for name := range parts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		h := sha256.New()
		if err := exportFile(c, talk, filepath.Join(dir, name), func(f *os.File, progress func(done, total int64)) error {
			return copySparse(f, io.TeeReader(io.NewSectionReader(parts[name], 0, parts[name].Size()), h), parts[name].Size(), progress)
		}); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", h.Sum(nil), name)
	}
	return exportFile(c, talk, filepath.Join(dir, "SHA256SUMS"), func(f *os.File, _ func(done, total int64)) error {
		_, err := f.WriteString(sums.String())
		return err
	})
}

// updateParts are a release's partitions by the names of their files. Those of a sealed
// root have the PARTUUIDs that its root hash asks for in them (sysupdate.d(5), "@u").
func updateParts(table *diskimage.Table, disk diskimage.Disk, release string) map[string]diskimage.Disk {
	parts := map[string]diskimage.Disk{}
	sealed := slices.ContainsFunc(table.Partitions, func(p diskimage.Partition) bool {
		return p.Role == diskimage.RoleVerity && p.Name == release+"_verity"
	})
	for _, p := range table.Partitions {
		name := release
		if sealed {
			name += "_" + p.GUID.String()
		}
		switch {
		case p.Role == diskimage.RoleRoot && p.Name == release:
			parts[name+".root.raw"] = diskSection{disk, p.Extent}
		case p.Role == diskimage.RoleVerity && p.Name == release+"_verity":
			parts[name+".verity.raw"] = diskSection{disk, p.Extent}
		}
	}
	return parts
}

// findUKI reads that of a release, whatever its name says of tries.
func findUKI(disk diskimage.Disk, esp *diskimage.Partition, release string) (diskimage.Disk, error) {
	if esp == nil {
		return nil, errors.New("the image has no EFI system partition")
	}
	files, err := fatfs.Open(diskSection{disk, esp.Extent})
	if err != nil {
		return nil, err
	}
	t, err := files.Tree()
	if err != nil {
		return nil, err
	}
	const dir = "/EFI/Linux"
	for _, name := range t.Children(dir) {
		rest, ok := strings.CutPrefix(name, release)
		if n := t.Get(dir + "/" + name); ok && (rest == ".efi" || strings.HasPrefix(rest, "+")) && n.Data != nil {
			return n.Data, nil
		}
	}
	return nil, fmt.Errorf("no %s/%s.efi on the image's EFI system partition", dir, release)
}

// diskSection is a partition of a disk.
type diskSection struct {
	disk diskimage.Disk
	at   diskimage.Extent
}

func (s diskSection) Size() int64 { return s.at.Len }

func (s diskSection) Extents() (out []diskimage.Extent) {
	for _, e := range s.disk.Extents() {
		if x := e.Intersect(s.at); x.Len > 0 {
			out = append(out, diskimage.Extent{Off: x.Off - s.at.Off, Len: x.Len})
		}
	}
	return out
}

func (s diskSection) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(s.disk, s.at.Off, s.at.Len).ReadAt(p, off)
}

// copySparse writes size bytes of r to a new file; blocks of zeros become holes.
func copySparse(f *os.File, r io.Reader, size int64, progress func(done, total int64)) error {
	b := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		n, err := io.ReadFull(r, b[:min(int64(len(b)), size-off)])
		if err != nil {
			return err
		}
		if slices.ContainsFunc(b[:n], func(c byte) bool { return c != 0 }) {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		progress(off, size)
	}
	return f.Truncate(size)
}
