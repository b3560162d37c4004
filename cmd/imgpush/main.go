// Command imgpush carries images to registries and disks. It builds nothing, and is small
// enough to run in the memory of a machine that has no disk yet.
package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
)

func main() {
	if isInit() {
		runInit()
	}
	os.Exit(ui.Main(app(), os.Args))
}

func app() *cli.App {
	return &cli.App{
		Name:  "imgpush",
		Usage: "carry golden disk images to registries and onto disks",
		Description: `Every byte is verified before it is written, and what makes a disk bootable is
written last: at every moment the target holds what it held before, untouched, or does
not boot, or is the verified image.

  imgpush push oci:images:debian-server registry.example/os/debian-server:2026.11.1
  imgpush write registry.example/os/debian-server:2026.11.1 /dev/sdX --key cosign.pub`,
		Commands: []*cli.Command{disksCommand(), writeCommand(), checkCommand(), pushCommand(), registryCommand(), verifyCommand(),
			serveCommand(), stageCommand(), deployCommand(), machinesCommand(), jobsCommand(), jobCommand(), cancelCommand(), releaseCommand(), agentCommand()},
	}
}
