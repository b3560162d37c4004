package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// contents says in a few words what is on a disk.
func contents(d oci.DiskConfig) string {
	switch {
	case d.Table != nil:
		return "GPT of " + partitions(len(d.Table.Partitions))
	case d.MBR != nil:
		return "MBR of " + partitions(len(d.MBR.Partitions))
	case d.Filesystem != nil:
		return d.Filesystem.Type + " without partitions"
	}
	return "no partitions"
}

func partitions(n int) string {
	if n == 1 {
		return "1 partition"
	}
	return fmt.Sprint(n, " partitions")
}

// writeMBR lists the partitions of a disk that has an MBR, as rows of columns.
func writeMBR(w io.Writer, m *diskimage.MBR) {
	fmt.Fprintln(w, "\npartition\tstart\tsize\ttype\tfilesystem\tlabel\tPARTUUID")
	for _, p := range m.Partitions {
		active := ""
		if p.Active {
			active = " (active)"
		}
		fmt.Fprintf(w, "%d%s\t%s\t%s\t%s\t%s\t%s\t%s-%02x\n", p.Number, active, ui.Bytes(p.Extent.Off), ui.Bytes(p.Extent.Len),
			p.Type, cmp.Or(p.Filesystem.Type, "none"), cmp.Or(p.Filesystem.Label, "none"), m.DiskID, p.Number)
	}
}
