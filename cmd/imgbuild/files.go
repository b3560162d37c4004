package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// contentFlags are on all commands that read files out of a disk.
func contentFlags(more ...cli.Flag) []cli.Flag {
	return append(append(more, partitionFlag, refs.PlatformFlag), refs.Flags()...)
}

func lsCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Usage: "list files of an image", ArgsUsage: "REF [PATH…]",
		Description: `Of an image in a layout or a registry, or of a disk in a FILE (raw, qcow2, …), of
which nothing but what the paths need is read. A path crosses into partitions where
the image's fstab mounts them.

  imgbuild ls oci:images:debian-server /etc
  imgbuild ls -l registry.example/os/debian-server:1.0 /boot/efi/EFI
  imgbuild ls disk.qcow2 / --partition esp`,
		Flags: contentFlags(&cli.BoolFlag{Name: "long", Aliases: []string{"l"}, Usage: "kind, mode, owner, size, time and target, too"},
			&cli.BoolFlag{Name: "directory", Aliases: []string{"d"}, Usage: "a directory itself, not what lies in it"},
			&cli.BoolFlag{Name: "numeric", Aliases: []string{"n"}, Usage: "owners as numbers; with --long"}),
		Action: func(c *cli.Context) (err error) {
			if c.NArg() < 1 {
				return ui.Usagef(c, "ls needs a REF")
			}
			d, v, err := openView(c)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, d.Close()) }()
			paths := c.Args().Tail()
			if len(paths) == 0 {
				paths = []string{"/"}
			}
			list := &listing{Reference: d.reference}
			for _, p := range paths {
				files, err := filesAt(v, p, c.Bool("directory"))
				if err != nil {
					return d.fail(err, "")
				}
				list.add(v, p, files)
			}
			list.Read = d.read()
			return ui.From(c).Result(list, func(w io.Writer) error { return list.write(w, c.Bool("long"), c.Bool("numeric")) })
		},
	}
}

// filesAt returns what ls shows for a path.
func filesAt(v *content.View, p string, itself bool) ([]*content.File, error) {
	f, err := v.Lookup(p, !itself)
	if err != nil || itself || f.Inode.Kind != tree.Dir {
		if f, here := v.Lookup(p, false); here == nil { // a link that leads nowhere is listed itself
			return []*content.File{f}, nil
		}
		return []*content.File{f}, err
	}
	return v.List(f)
}

// listing is what `imgbuild ls --json` prints.
type listing struct {
	Reference string        `json:"reference"`
	Paths     []listedPath  `json:"paths"`
	Read      reading       `json:"read"`
	names     content.Names // read when they are needed
}

type listedPath struct {
	Path  string       `json:"path"` // as it was asked for
	Files []listedFile `json:"files"`
}

// listedFile is a file as `ls -l` shows it.
type listedFile struct {
	Path      string    `json:"path"`
	Raw       []byte    `json:"raw,omitempty"` // of a path that is not UTF-8
	Partition string    `json:"partition"`
	Kind      string    `json:"kind"`
	Mode      string    `json:"mode"` // octal
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	User      string    `json:"user"`  // as the image calls it, else the number
	Group     string    `json:"group"` // likewise
	Size      int64     `json:"size"`
	Time      time.Time `json:"time"`
	Target    string    `json:"target,omitempty"`
	Device    string    `json:"device,omitempty"` // MAJOR:MINOR

	name  string
	inode *tree.Inode
}

func listed(f *content.File, names content.Names) listedFile {
	n := f.Inode
	out := listedFile{Path: f.Path, Partition: f.Partition, Kind: n.Kind.String(), Mode: fmt.Sprintf("%04o", n.Mode), UID: n.UID, GID: n.GID,
		User: names.User(n.UID), Group: names.Group(n.GID), Size: n.Size(), Time: n.MTime, Target: n.Target, name: f.Name(), inode: n}
	if !utf8.ValidString(f.Path) {
		out.Raw = []byte(f.Path)
	}
	if n.Kind == tree.CharDevice || n.Kind == tree.BlockDevice {
		out.Device = fmt.Sprintf("%d:%d", n.Major, n.Minor)
	}
	return out
}

func (l *listing) add(v *content.View, p string, files []*content.File) {
	if l.Paths == nil {
		l.names = v.Names()
	}
	path := listedPath{Path: p, Files: []listedFile{}}
	for _, f := range files {
		path.Files = append(path.Files, listed(f, l.names))
	}
	l.Paths = append(l.Paths, path)
}

func (l *listing) write(out io.Writer, long, numeric bool) error {
	w := tabwriter.NewWriter(out, 0, 4, 1, ' ', 0)
	for i, p := range l.Paths {
		if len(l.Paths) > 1 {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "%s:\n", nameText(p.Path))
		}
		for _, f := range p.Files {
			if !long {
				fmt.Fprintln(w, nameText(f.name))
				continue
			}
			user, group := f.User, f.Group
			if numeric {
				user, group = fmt.Sprint(f.UID), fmt.Sprint(f.GID)
			}
			size := fmt.Sprint(f.Size)
			if f.Device != "" {
				size = f.Device
			}
			name := nameText(f.name)
			if f.Target != "" {
				name += " -> " + nameText(f.Target)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", modeText(f.inode), user, group, size, f.Time.UTC().Format("2006-01-02 15:04:05"), name)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// nameText shows a name that could do something to a terminal, or is not UTF-8,
// as a Go string.
func nameText(s string) string {
	quoted := fmt.Sprintf("%q", s)
	if quoted == `"`+s+`"` {
		return s
	}
	return quoted
}

// modeText is what ls writes for kind and mode: -rwsr-xr-t.
func modeText(n *tree.Inode) string {
	kinds := map[tree.Kind]byte{tree.Regular: '-', tree.Dir: 'd', tree.Symlink: 'l', tree.CharDevice: 'c', tree.BlockDevice: 'b', tree.Fifo: 'p', tree.Socket: 's'}
	b := []byte("?rwxrwxrwx")
	b[0] = kinds[n.Kind]
	for i := range 9 {
		if n.Mode>>(8-i)&1 == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit   uint16
		at    int
		x, no byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if n.Mode&s.bit != 0 {
			if b[s.at] == 'x' {
				b[s.at] = s.x
			} else {
				b[s.at] = s.no
			}
		}
	}
	return string(b)
}

func catCommand() *cli.Command {
	return &cli.Command{
		Name: "cat", Usage: "print files of an image", ArgsUsage: "REF PATH…",
		Description: `Symbolic links are followed inside the image. Whatever is printed was compared with
its SHA-256. Bytes that are no text go to a terminal only with --force.

  imgbuild cat registry.example/os/debian-server:1.0 /etc/os-release
  imgbuild cat oci:images:debian-server /boot/efi/EFI/BOOT/BOOTX64.EFI >uki.efi`,
		Flags: contentFlags(&cli.BoolFlag{Name: "force", Usage: "print any bytes to a terminal"}),
		Action: func(c *cli.Context) (err error) {
			if c.NArg() < 2 {
				return ui.Usagef(c, "cat needs a REF and a PATH")
			}
			d, v, err := openView(c)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, d.Close()) }()
			out := c.App.Writer
			if ui.IsTerminal(out) && !c.Bool("force") {
				out = &textOnly{w: out}
			}
			for _, p := range c.Args().Tail() {
				f, err := v.Lookup(p, true)
				if err != nil {
					return d.fail(err, "")
				}
				if err := v.Copy(out, f); err != nil {
					return d.fail(err, "")
				}
			}
			return nil
		},
	}
}

// textOnly passes on what holds no NUL byte and no escape.
type textOnly struct{ w io.Writer }

func (t *textOnly) Write(p []byte) (int, error) {
	if bytes.ContainsAny(p, "\x00\x1b") {
		return 0, ui.Fail(ui.ExitUsage, errors.New("holds bytes that are no text"), "--force, or send it elsewhere than to a terminal")
	}
	return t.w.Write(p)
}
