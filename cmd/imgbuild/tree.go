package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func treeCommand() *cli.Command {
	return &cli.Command{
		Name: "tree", Usage: "show the files of an image below a directory, and their sizes", ArgsUsage: "REF [PATH]",
		Description: `  imgbuild tree oci:images:debian-server /boot
  imgbuild tree oci:images:debian-server / --depth 1`,
		Flags: contentFlags(&cli.IntFlag{Name: "depth", Aliases: []string{"L"}, Usage: "show `N` levels", DefaultText: "all"}),
		Action: func(c *cli.Context) (err error) {
			if c.NArg() < 1 || c.NArg() > 2 {
				return ui.Usagef(c, "tree needs a REF, and at most one PATH")
			}
			depth := -1
			if c.IsSet("depth") {
				if depth = c.Int("depth"); depth < 1 {
					return ui.Usagef(c, "--depth %d: at least 1", depth)
				}
			}
			d, v, err := openView(c)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, d.Close()) }()
			p := "/"
			if c.NArg() == 2 {
				p = c.Args().Get(1)
			}
			top, err := v.Lookup(p, true)
			if err != nil {
				return d.fail(err, "")
			}
			all, err := v.Walk(top, depth)
			if err != nil {
				return d.fail(err, "")
			}
			t := &shownTree{Reference: d.reference, Tree: branch(all, v.Names()), Read: d.read()}
			return ui.From(c).Result(t, func(w io.Writer) error { return t.write(w) })
		},
	}
}

// shownTree is what `imgbuild tree --json` prints.
type shownTree struct {
	Reference string       `json:"reference"`
	Tree      *shownBranch `json:"tree"`
	Read      reading      `json:"read"`
}

type shownBranch struct {
	listedFile
	Below []*shownBranch `json:"below,omitempty"`
	Cut   bool           `json:"cut,omitempty"` // what lies below was not asked for
}

func branch(b *content.Branch, names content.Names) *shownBranch {
	out := &shownBranch{listedFile: listed(b.File, names), Cut: b.Cut}
	for _, c := range b.Below {
		out.Below = append(out.Below, branch(c, names))
	}
	return out
}

func (t *shownTree) write(w io.Writer) error {
	e := &errWriter{w: w}
	e.printf("%s\n", nameText(t.Tree.Path))
	var dirs, files int
	var size int64
	var show func(b *shownBranch, indent string)
	show = func(b *shownBranch, indent string) {
		for i, c := range b.Below {
			corner, next := "├── ", "│   "
			if i == len(b.Below)-1 {
				corner, next = "└── ", "    "
			}
			text := nameText(c.name)
			switch c.inode.Kind {
			case tree.Dir:
				dirs++
				text += "/"
			case tree.Regular:
				text += "  " + ui.Bytes(c.Size)
				size += c.Size
				files++
			case tree.Symlink:
				text += " -> " + nameText(c.Target)
				files++
			default:
				text += "  " + c.Kind
				files++
			}
			e.printf("%s%s%s\n", indent, corner, text)
			show(c, indent+next)
		}
	}
	show(t.Tree, "")
	e.printf("\n%d directories, %d files, %s\n", dirs, files, ui.Bytes(size))
	return e.err
}

// errWriter keeps the first error.
type errWriter struct {
	w   io.Writer
	err error
}

func (e *errWriter) printf(format string, args ...any) {
	if e.err == nil {
		_, e.err = fmt.Fprintf(e.w, format, args...)
	}
}
