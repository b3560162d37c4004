package customize

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

type mount struct {
	point, spec, kind, options string
	pass                       int
}

// Fstab returns the /etc/fstab (fstab(5)) of an image: one line for the root and
// one for each partition of the recipe that has a mount, by PARTUUID, parents
// first. The root is mounted with errors=remount-ro, as Debian's installer
// writes it, or "ro", and as /dev/mapper/root where it is sealed; a partition that grows with x-systemd.growfs. The config
// partition is never mounted, the EFI system partition only where the recipe
// gives it a mount: nothing in a running image needs it.
func Fstab(table *diskimage.Table, r *recipe.Recipe) []byte {
	var mounts []mount
	for _, p := range table.Partitions {
		point, kind := mountOf(p, r)
		if point == "" || kind == "" {
			continue
		}
		m := mount{point: point, spec: "PARTUUID=" + p.GUID.String(), kind: kind, options: "defaults", pass: 2}
		switch {
		case readOnly(p, r):
			m.options, m.pass = "ro", 0
			if sealed(p, r) { // its PARTUUID follows from what is in it, this file included
				m.spec = "/dev/mapper/root"
			}
		case point == "/":
			m.options, m.pass = "defaults,errors=remount-ro", 1
		case kind == "vfat":
			m.options = "umask=0077"
		}
		if p.Grow {
			m.options += ",x-systemd.growfs"
		}
		mounts = append(mounts, m)
	}
	slices.SortStableFunc(mounts, func(a, b mount) int { return strings.Compare(a.point, b.point) })
	var b bytes.Buffer
	b.WriteString("# <file system> <mount point> <type> <options> <dump> <pass>\n")
	for _, m := range mounts {
		fmt.Fprintf(&b, "%s %s %s %s 0 %d\n", m.spec, escapeFstab(m.point), m.kind, m.options, m.pass)
	}
	return b.Bytes()
}

// readOnly says that nothing writes to a partition.
func readOnly(p diskimage.Partition, r *recipe.Recipe) bool {
	return slices.ContainsFunc(r.Disk.Partitions, func(q recipe.Partition) bool { return q.Name == p.Name && q.ReadOnly })
}

// sealed says that there are hashes of a partition.
func sealed(p diskimage.Partition, r *recipe.Recipe) bool {
	return slices.ContainsFunc(r.Disk.Partitions, func(q recipe.Partition) bool { return q.Type == "verity" && q.For == p.Name })
}

// mountOf returns where a partition is mounted and as what, "" for nowhere.
func mountOf(p diskimage.Partition, r *recipe.Recipe) (point, kind string) {
	kind = p.Filesystem.Type
	i := slices.IndexFunc(r.Disk.Partitions, func(q recipe.Partition) bool { return q.Name == p.Name })
	if i >= 0 {
		point = r.Disk.Partitions[i].Mount
		if kind == "" {
			kind = r.Disk.Partitions[i].Filesystem
		}
	}
	switch {
	case p.Role == diskimage.RoleConfig:
		return "", ""
	case p.Role == diskimage.RoleRoot:
		point = "/"
	}
	if strings.HasPrefix(kind, "fat") {
		kind = "vfat"
	}
	return point, kind
}

// escapeFstab writes the characters that separate fields of fstab as octal.
func escapeFstab(s string) string {
	return strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`, "#", `\043`).Replace(s)
}
