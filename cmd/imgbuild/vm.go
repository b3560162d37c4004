package main

import (
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/fatfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// vmFlags are what boot and test share.
func vmFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "disk", Usage: "boot the raw disk `FILE` instead of an image; the file is not changed"},
		&cli.Int64Flag{Name: "sector-size", Usage: "logical sector of --disk in `BYTES`: 512 or 4096", Value: 512},
		&cli.StringFlag{Name: "firmware", Usage: "boot by `NAME`: uefi or bios", DefaultText: "the image's; uefi for hybrid and --disk"},
		&cli.StringFlag{Name: "accel", Usage: "`NAME`: kvm, tcg, or auto, which tries whether kvm really boots a guest", Value: "auto"},
		&cli.IntFlag{Name: "memory", Usage: "memory of the guest in `MIB`", Value: 1024},
		&cli.IntFlag{Name: "cpus", Usage: "`N` processors of the guest", Value: 2},
		&cli.StringFlag{Name: "scratch", Usage: "`DIR` for the scratch copy of the image", DefaultText: "the system's"},
		refs.PlatformFlag,
	}, refs.Flags()...)
}

// guest is a machine ready to boot, and what it boots.
type guest struct {
	qemu.Machine
	why   error // why emulation and not kvm; nil with kvm
	close func()
}

// newGuest prepares the machine for the command's REF or --disk. The image is
// written to a scratch file: the artifact itself is never booted. Before that,
// check judges the rest of the command line, given the image's config, if any.
func newGuest(c *cli.Context, talk *ui.Talk, check func(*oci.Config) error) (*guest, error) {
	g := &guest{close: func() {}}
	path := c.String("disk")
	switch accel := c.String("accel"); {
	case accel != "kvm" && accel != "tcg" && accel != "auto":
		return nil, ui.Usagef(c, "--accel %s: want kvm, tcg or auto", accel)
	case c.IsSet("firmware") && c.String("firmware") != string(qemu.UEFI) && c.String("firmware") != string(qemu.BIOS):
		return nil, ui.Usagef(c, "--firmware %s: want uefi or bios", c.String("firmware"))
	case path == "" && c.NArg() != 1:
		return nil, ui.Usagef(c, "%s needs one REF, or --disk FILE", c.Command.Name)
	case path != "" && c.NArg() != 0:
		return nil, ui.Usagef(c, "%s takes a REF or --disk FILE, not both", c.Command.Name)
	}
	arch, firmware := "amd64", qemu.Firmware(c.String("firmware"))
	sector := c.Int64("sector-size")
	if path != "" {
		if err := check(nil); err != nil {
			return nil, err
		}
		if info, err := os.Stat(path); err != nil {
			return nil, ui.Fail(ui.ExitSource, fmt.Errorf("--disk: %w", err), "")
		} else if info.IsDir() {
			return nil, ui.Fail(ui.ExitSource, fmt.Errorf("--disk: %s is a directory", path), "")
		}
	} else {
		a, err := refs.Artifact(c, c.Args().First())
		if err != nil {
			return nil, err
		}
		defer a.Close()
		cfg := a.Config()
		arch, sector = cfg.Architecture, cfg.Disk.SectorSize
		if firmware, err = imageFirmware(c, &cfg); err != nil {
			return nil, err
		}
		if err := check(&cfg); err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp(c.String("scratch"), "imgpipe-scratch-")
		if err != nil {
			return nil, err
		}
		g.close = func() { os.RemoveAll(dir) }
		path = filepath.Join(dir, "disk.raw")
		if err := exportScratch(c, talk, a, path); err != nil {
			g.close()
			return nil, err
		}
	}
	host, err := qemu.Find(arch)
	if err != nil {
		g.close()
		return nil, err
	}
	g.Machine = qemu.Machine{Host: host, Firmware: firmware, Disk: path, Snapshot: true, SectorSize: sector,
		MemoryMiB: c.Int("memory"), CPUs: c.Int("cpus"), Accel: c.String("accel")}
	if g.Accel == "auto" {
		g.Accel, g.why = probe(c, host, path, sector)
	}
	if g.why != nil {
		talk.Sayf("emulating the processor, which is slow: %v", g.why)
	}
	return g, nil
}

// imageFirmware is what the image starts by: --firmware, where the image can, else
// what it says of itself.
func imageFirmware(c *cli.Context, cfg *oci.Config) (qemu.Firmware, error) {
	has := "uefi"
	if cfg.Boot != nil && cfg.Boot.Firmware != "" {
		has = cfg.Boot.Firmware
	}
	switch want := c.String("firmware"); {
	case want != "" && cfg.Boot != nil && has != "hybrid" && want != has: // what says nothing may be tried
		return "", ui.Usagef(c, "--firmware %s: the image boots by %s alone", want, has)
	case want != "":
		return qemu.Firmware(want), nil
	case has == "bios":
		return qemu.BIOS, nil
	}
	return qemu.UEFI, nil
}

// exportScratch writes a disk that need not outlive the command.
func exportScratch(c *cli.Context, talk *ui.Talk, a *oci.Artifact, path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return exportDisk(c, talk, a, f, func() error { return nil })
}

// probe asks qemu.Probe with the kernel that the disk itself boots.
func probe(c *cli.Context, host qemu.Host, path string, sector int64) (string, error) {
	if _, err := os.Stat("/dev/kvm"); err != nil || host.Arch != "amd64" {
		return "tcg", qemu.ErrNoKVM
	}
	kernel, err := kernelOf(path, sector)
	if err != nil {
		return "tcg", fmt.Errorf("%w: nothing to try it with: %w", qemu.ErrNoKVM, err)
	}
	f, err := os.CreateTemp("", "imgpipe-probe-")
	if err != nil {
		return "tcg", err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(kernel)
	if err := errors.Join(err, f.Close()); err != nil {
		return "tcg", err
	}
	return qemu.Probe(c.Context, host, f.Name())
}

// kernelOf takes the Linux kernel out of a UKI on a disk's ESP.
func kernelOf(path string, sector int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	table, err := gpt.Parse(f, info.Size(), sector)
	if err != nil {
		return nil, err
	}
	esp := table.Find(diskimage.RoleESP)
	if esp == nil {
		return nil, errors.New("the disk has no EFI system partition")
	}
	files, err := fatfs.Open(io.NewSectionReader(f, esp.Extent.Off, esp.Extent.Len))
	if err != nil {
		return nil, err
	}
	t, err := files.Tree()
	if err != nil {
		return nil, err
	}
	names := []string{"/EFI/BOOT/BOOTX64.EFI"}
	for _, name := range t.Children("/EFI/Linux") {
		names = append(names, "/EFI/Linux/"+name)
	}
	for _, name := range names {
		n := t.Get(name)
		if n == nil || n.Data == nil {
			continue
		}
		image, err := pe.NewFile(io.NewSectionReader(n.Data, 0, n.Data.Size()))
		if err != nil {
			continue
		}
		if s := image.Section(".linux"); s != nil && s.Size <= 512<<20 {
			return s.Data()
		}
	}
	return nil, fmt.Errorf("no unified kernel image: looked at %s", strings.Join(names, ", "))
}

func bootCommand() *cli.Command {
	return &cli.Command{
		Name:      "boot",
		Usage:     "run an image in QEMU, its console on this terminal",
		ArgsUsage: "REF | --disk FILE",
		Description: `Boots through UEFI firmware, or a BIOS, on a scratch copy: the image is not changed,
and what the machine writes is gone afterwards. Ctrl-A X leaves, Ctrl-A C opens QEMU's
monitor.

  imgbuild boot oci:images:debian-server
  imgbuild boot oci:images:debian-server --forward tcp:127.0.0.1:2222-:22
  imgbuild boot oci:images:hybrid --firmware bios
  imgbuild boot --disk target.raw`,
		Flags: append(vmFlags(),
			&cli.StringSliceFlag{Name: "forward", Usage: "forward a port to the guest: `RULE` is PROTO:HOST:PORT-:GUESTPORT; may be repeated"}),
		Action: func(c *cli.Context) error {
			talk := ui.From(c)
			g, err := newGuest(c, talk, func(*oci.Config) error { return nil })
			if err != nil {
				return err
			}
			defer g.close()
			g.Forwards = c.StringSlice("forward")
			talk.Sayf("booting with %s; Ctrl-A X leaves", g.Accel)
			return g.Interactive(c.Context, os.Stdin, os.Stdout, os.Stderr)
		},
	}
}

// lastLines returns the last n lines of s.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
