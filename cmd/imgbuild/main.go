// Command imgbuild turns a recipe into a golden raw-disk image, stored as an
// OCI artifact: build, look at it, boot it, test it.
package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
)

func main() { os.Exit(ui.Main(app(), os.Args)) }

func app() *cli.App {
	return &cli.App{
		Name:  "imgbuild",
		Usage: "turn a recipe into a golden disk image",
		Description: `imgbuild needs no root, no loop device and no container engine. The same inputs
give the same image, bit for bit.

  imgbuild build recipes/debian-server.yaml -o oci:images:debian-server
  imgbuild inspect oci:images:debian-server
  imgbuild test oci:images:debian-server

'imgpush write' then puts the image onto a disk.`,
		Commands: []*cli.Command{
			buildCommand(), validateCommand(), showCommand(), schemaCommand(),
			inspectCommand(), lsCommand(), catCommand(), treeCommand(), sizeCommand(), diffCommand(), importCommand(), exportCommand(), bootCommand(), testCommand(),
			gcCommand(), cacheCommand(), lockCommand(), doctorCommand(),
			signCommand(), attestCommand(), keygenCommand(),
		},
	}
}
