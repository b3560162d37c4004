package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/diff"
)

// shown is how many files of a filesystem, and how many packages, are listed
// unless all are asked for.
const shown = 20

// write prints a screen for people; all lists everything.
func (d *comparison) write(out io.Writer, all bool) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	for _, s := range []struct {
		name string
		side
	}{{"a", d.A}, {"b", d.B}} {
		fmt.Fprintf(w, "%s\t%s, %s\t%s\n", s.name, strings.TrimSpace(s.Name+" "+s.Version), s.Architecture, s.Digest)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if d.Same {
		fmt.Fprintf(out, "\nno differences: the disk is the same, %s\n", d.A.DiskDigest)
		d.writePackages(out, all) // a config may say what it likes
		return nil
	}
	d.writeFetch(out)
	d.writePartitions(out)
	d.writePackages(out, all)
	for _, fs := range d.Filesystems {
		writeFiles(out, fs, all)
	}
	return nil
}

func (d *comparison) writeFetch(out io.Writer) {
	f := d.Fetch
	fmt.Fprintf(out, "\na machine that holds a fetches %s of %s in %s", ui.Bytes(f.Wire), ui.Bytes(f.Total), count(f.Chunks, "chunk"))
	if f.Chunks > 0 {
		fmt.Fprintf(out, " by %s", count(f.Requests, "request"))
	}
	if along := ui.Bytes(f.Wire + f.Between); along != ui.Bytes(f.Wire) {
		fmt.Fprintf(out, " (%s with what lies between them)", along)
	}
	fmt.Fprintf(out, ", and %s of metadata; it writes %s\n", ui.Bytes(f.Metadata), ui.Bytes(f.Plain+f.Zero))
	if !f.Comparable {
		fmt.Fprintln(out, "  (the images have chunks of different sizes: nothing can be told to be the same)")
	}
	if m := f.Moved; m != nil {
		fmt.Fprintf(out, "  (of that, a has %s (%s) elsewhere on its disk)\n", ui.Bytes(m.Wire), count(m.Chunks, "chunk"))
	}
}

func (d *comparison) writePartitions(out io.Writer) {
	if len(d.Partitions) == 0 {
		fmt.Fprintln(out, "\npartitions: no differences")
		return
	}
	fmt.Fprintln(out, "\npartitions")
	for _, p := range d.Partitions {
		switch p.Change {
		case diff.Added:
			fmt.Fprintf(out, "  + %s: %s at %s, %s\n", p.Name, ui.Bytes(p.After.Extent.Len), ui.Bytes(p.After.Extent.Off), filesystemName(p.After))
		case diff.Removed:
			fmt.Fprintf(out, "  - %s: %s at %s, %s\n", p.Name, ui.Bytes(p.Before.Extent.Len), ui.Bytes(p.Before.Extent.Off), filesystemName(p.Before))
		default:
			fmt.Fprintf(out, "  ~ %s: %s\n", p.Name, strings.Join(whatChanged(p), ", "))
		}
	}
}

func filesystemName(p *diskimage.Partition) string {
	if p.Filesystem.Type == "" {
		return "no filesystem"
	}
	return p.Filesystem.Type
}

// whatChanged says what is different about a partition, with the values.
func whatChanged(p diff.Partition) (out []string) {
	x, y := p.Before, p.After
	for _, what := range p.What {
		from, to := "", ""
		switch what {
		case "name":
			from, to = x.Name, y.Name
		case "guid":
			from, to = x.GUID.String(), y.GUID.String()
		case "type":
			from, to = x.Type.String(), y.Type.String()
		case "attributes":
			from, to = fmt.Sprintf("%#x", uint64(x.Attributes)), fmt.Sprintf("%#x", uint64(y.Attributes))
		case "number":
			from, to = strconv.Itoa(x.Number), strconv.Itoa(y.Number)
		case "role":
			from, to = string(x.Role), string(y.Role)
		case "grow":
			from, to = strconv.FormatBool(x.Grow), strconv.FormatBool(y.Grow)
		case "start":
			from, to = ui.Bytes(x.Extent.Off), ui.Bytes(y.Extent.Off)
		case "size":
			from, to = ui.Bytes(x.Extent.Len), ui.Bytes(y.Extent.Len)
		case "filesystem":
			from, to = filesystemName(x), filesystemName(y)
		case "label":
			from, to = strconv.Quote(x.Filesystem.Label), strconv.Quote(y.Filesystem.Label)
		case "uuid":
			from, to = x.Filesystem.UUID, y.Filesystem.UUID
		case "contents":
			out = append(out, fmt.Sprintf("contents (%s in %s)", ui.Bytes(p.Wire), count(p.Chunks, "chunk")))
			continue
		}
		out = append(out, fmt.Sprintf("%s %s → %s", what, from, to))
	}
	return out
}

func (d *comparison) writePackages(out io.Writer, all bool) {
	if len(d.Packages) == 0 {
		if !d.Same && d.packaged {
			fmt.Fprintln(out, "\npackages: no differences")
		}
		return
	}
	fmt.Fprintf(out, "\npackages: %s\n", tally(d.Packages, func(p diff.PackageChange) string { return p.Change }))
	files := map[string]int{} // by package
	for _, fs := range d.Filesystems {
		for _, f := range fs.Files {
			files[f.Package]++
		}
	}
	version := func(v *diff.Version) string {
		if v.Architecture == "" {
			return v.Version
		}
		return v.Version + " " + v.Architecture
	}
	for i, p := range d.Packages {
		if i == shown && !all {
			fmt.Fprintf(out, "  … and %d more: --files lists them\n", len(d.Packages)-i)
			break
		}
		line := ""
		switch {
		case p.Before == nil:
			line = fmt.Sprintf("+ %s %s", p.Name, version(p.After))
		case p.After == nil:
			line = fmt.Sprintf("- %s %s", p.Name, version(p.Before))
		case p.Before.Architecture == p.After.Architecture:
			line = fmt.Sprintf("~ %s %s → %s, %s", p.Name, p.Before.Version, p.After.Version, p.Change)
		default:
			line = fmt.Sprintf("~ %s %s → %s, %s", p.Name, version(p.Before), version(p.After), p.Change)
		}
		if n := files[p.Name]; n > 0 {
			line += ", " + count(n, "file")
		}
		fmt.Fprintf(out, "  %s\n", line)
	}
}

// tally counts what a list holds: "2 added, 1 upgraded".
func tally[T any](list []T, of func(T) string) string {
	n := map[string]int{}
	for _, v := range list {
		n[of(v)]++
	}
	var out []string
	for _, name := range []string{diff.Added, diff.Removed, diff.Upgraded, diff.Downgraded, diff.Changed} {
		if n[name] > 0 {
			out = append(out, fmt.Sprintf("%d %s", n[name], name))
		}
	}
	return strings.Join(out, ", ")
}

func writeFiles(out io.Writer, fs diff.Filesystem, all bool) {
	if fs.Change == diff.Same {
		return
	}
	fmt.Fprintf(out, "\nfiles of %s", fs.Partition)
	if fs.Type != "" {
		fmt.Fprintf(out, " (%s)", fs.Type)
	}
	switch {
	case fs.Problem != "":
		fmt.Fprintf(out, ": not compared: %s\n", fs.Problem)
		return
	case fs.Change == diff.Added:
		fmt.Fprintf(out, ": %d, all of them new\n", fs.Added)
		return
	case fs.Change == diff.Removed:
		fmt.Fprintf(out, ": %d, all of them gone\n", fs.Removed)
		return
	case len(fs.Files)+fs.Touched == 0:
		fmt.Fprintf(out, ": no differences in %d\n", fs.Equal)
		return
	}
	var parts []string
	if text := tally(fs.Files, func(f diff.FileChange) string { return f.Change }); text != "" {
		parts = append(parts, text)
	}
	if fs.Touched > 0 {
		parts = append(parts, fmt.Sprintf("%d only in their time", fs.Touched))
	}
	fmt.Fprintf(out, ": %s, %d equal\n", strings.Join(parts, ", "), fs.Equal)
	listed, packaged := 0, 0
	for i, f := range fs.Files {
		if f.Package != "" && !all {
			packaged++
			continue
		}
		if listed++; listed > shown && !all {
			fmt.Fprintf(out, "  … and %d more: --files lists them\n", len(fs.Files)-i)
			return
		}
		quoted := strconv.Quote(f.Path) // a name may hold anything
		name := quoted[1 : len(quoted)-1]
		switch f.Change {
		case diff.Added:
			fmt.Fprintf(out, "  + %s\n", name)
		case diff.Removed:
			fmt.Fprintf(out, "  - %s\n", name)
		default:
			fmt.Fprintf(out, "  ~ %s (%s)\n", name, strings.Join(f.What, ", "))
		}
	}
	if packaged > 0 {
		fmt.Fprintf(out, "  … and %d of the packages above: --files lists them\n", packaged)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
