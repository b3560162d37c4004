package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
)

func sizeCommand() *cli.Command {
	return &cli.Command{
		Name: "size", Usage: "show what takes the space of an image: packages, folders, files", ArgsUsage: "REF [REF2]",
		Description: `Reads names and extents of all files, and contents only of the package database.

  imgbuild size oci:images:debian-server
  imgbuild size oci:images:debian-server --top 50 --depth 3
  imgbuild size oci:images:1.0 oci:images:1.1`,
		Flags: contentFlags(&cli.IntFlag{Name: "top", Usage: "show the `N` largest of each", Value: 15},
			&cli.IntFlag{Name: "depth", Usage: "folders down to `N` levels", Value: 2}),
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 || c.NArg() > 2 {
				return ui.Usagef(c, "size needs one REF, or two")
			}
			if c.Int("top") < 1 || c.Int("depth") < 1 {
				return ui.Usagef(c, "--top and --depth: at least 1")
			}
			s, err := sizeOf(c, c.Args().First())
			if err != nil {
				return err
			}
			if c.NArg() == 1 {
				s.cut(c.Int("top"))
				return ui.From(c).Result(s, s.write)
			}
			other, err := sizeOf(c, c.Args().Get(1))
			if err != nil {
				return err
			}
			g := growthOf(s, other)
			return ui.From(c).Result(g, g.write)
		},
	}
}

// sizes is what `imgbuild size --json` prints.
type sizes struct {
	Reference  string          `json:"reference"`
	Partitions []content.Space `json:"partitions"`
	Packages   []content.Space `json:"packages"`
	Folders    []content.Space `json:"folders"`
	Files      []content.Space `json:"files"`
	Read       reading         `json:"read"`

	stored bool
}

func sizeOf(c *cli.Context, text string) (s *sizes, err error) {
	d, err := openDisk(c, text)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	v, err := d.view(c)
	if err != nil {
		return nil, err
	}
	var x *diskimage.Index
	if d.artifact != nil {
		x = d.artifact.Index()
	}
	said := len(v.Notes)
	all, err := v.Space(x, c.Int("depth"))
	if err != nil {
		return nil, d.fail(err, "")
	}
	for _, n := range v.Notes[said:] {
		ui.From(c).Sayf("left out: %s", n)
	}
	return &sizes{d.reference, all.Partitions, all.Packages, all.Folders, all.Files, d.read(), x != nil}, nil
}

func (s *sizes) cut(n int) {
	for _, list := range []*[]content.Space{&s.Packages, &s.Folders, &s.Files} {
		*list = (*list)[:min(n, len(*list))]
	}
}

func (s *sizes) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	for i, l := range []struct {
		title  string
		spaces []content.Space
	}{{"partition", s.Partitions}, {"package", s.Packages}, {"folder", s.Folders}, {"file", s.Files}} {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if s.stored {
			fmt.Fprintf(w, "stored\tbytes\t  %s\n", l.title)
		} else {
			fmt.Fprintf(w, "bytes\t  %s\n", l.title)
		}
		for _, x := range l.spaces {
			if s.stored {
				fmt.Fprintf(w, "%s\t", ui.Bytes(x.Stored))
			}
			fmt.Fprintf(w, "%s\t  %s\n", ui.Bytes(x.Bytes), nameText(x.Name))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// growth is what `imgbuild size A B --json` prints.
type growth struct {
	A        string    `json:"a"`
	B        string    `json:"b"`
	Packages []grown   `json:"packages"` // whose space differs, the most grown first
	Read     []reading `json:"read"`
}

type grown struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	Stored int64  `json:"stored"`
}

func growthOf(a, b *sizes) *growth {
	g := &growth{A: a.Reference, B: b.Reference, Packages: []grown{}, Read: []reading{a.Read, b.Read}}
	sums := map[string]grown{}
	for sign, list := range map[int64][]content.Space{-1: a.Packages, 1: b.Packages} {
		for _, p := range list {
			x := sums[p.Name]
			sums[p.Name] = grown{p.Name, x.Bytes + sign*p.Bytes, x.Stored + sign*p.Stored}
		}
	}
	for _, x := range sums {
		if x.Bytes != 0 || x.Stored != 0 {
			g.Packages = append(g.Packages, x)
		}
	}
	slices.SortFunc(g.Packages, func(x, y grown) int {
		return cmp.Or(cmp.Compare(y.Stored, x.Stored), cmp.Compare(y.Bytes, x.Bytes), cmp.Compare(x.Name, y.Name))
	})
	return g
}

func signed(n int64) string {
	if n < 0 {
		return "-" + ui.Bytes(-n)
	}
	return "+" + ui.Bytes(n)
}

func (g *growth) write(out io.Writer) error {
	if len(g.Packages) == 0 {
		_, err := fmt.Fprintln(out, "every package takes the same space")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "stored\tbytes\t  package\n")
	for _, p := range g.Packages {
		fmt.Fprintf(w, "%s\t%s\t  %s\n", signed(p.Stored), signed(p.Bytes), nameText(p.Name))
	}
	return w.Flush()
}
