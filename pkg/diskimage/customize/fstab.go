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

// Fstab returns the /etc/fstab (fstab(5)) of an image, whose table has the
// recipe's partitions in their order: one line for the root, one for each
// partition that has a mount, by PARTUUID, parents first, and one for each swap.
// The root is mounted with errors=remount-ro, as Debian's installer
// writes it, or "ro", and as /dev/mapper/root where it is sealed; a partition that grows with x-systemd.growfs.
// Of two roots it is the one in slot a, by the name of its partition: the same root may be in slot b
// of another machine. The config
// partition is never mounted, the EFI system partition only where the recipe
// gives it a mount: little in a running image needs it.
func Fstab(table *diskimage.Table, r *recipe.Recipe) []byte {
	var mounts []mount
	for i, p := range table.Partitions {
		point, kind := mountOf(p, r.Disk.Partitions[i])
		if point == "" || kind == "" {
			continue
		}
		m := mount{point: point, spec: "PARTUUID=" + p.GUID.String(), kind: kind, options: "defaults", pass: 2}
		if r.Disk.Partitions[i].Slot != "" {
			m.spec = "PARTLABEL=" + p.Name
		}
		switch {
		case kind == "swap":
			m.options, m.pass = "sw", 0
		case r.Disk.Partitions[i].ReadOnly:
			m.options, m.pass = "ro", 0
			if sealed(r.Disk.Partitions[i], r) { // its PARTUUID follows from what is in it, this file included
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
	slices.SortStableFunc(mounts, func(a, b mount) int { return strings.Compare(a.point, b.point) }) // swap, at "none", comes last
	var b bytes.Buffer
	b.WriteString("# <file system> <mount point> <type> <options> <dump> <pass>\n")
	for _, m := range mounts {
		fmt.Fprintf(&b, "%s %s %s %s 0 %d\n", m.spec, escapeFstab(m.point), m.kind, m.options, m.pass)
	}
	return b.Bytes()
}

// sealed says that there are hashes of a partition.
func sealed(p recipe.Partition, r *recipe.Recipe) bool {
	return slices.ContainsFunc(r.Disk.Partitions, func(q recipe.Partition) bool { return q.Type == "verity" && q.For == p.Name })
}

// mountOf returns where a partition is mounted and as what, "" for nowhere.
func mountOf(p diskimage.Partition, of recipe.Partition) (point, kind string) {
	point, kind = of.Mount, p.Filesystem.Type
	if kind == "" {
		kind = of.Filesystem
	}
	switch p.Role {
	case diskimage.RoleConfig:
		return "", ""
	case diskimage.RoleSwap:
		return "none", "swap"
	case diskimage.RoleRoot:
		if point = "/"; of.Slot == "b" {
			return "", ""
		}
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
