package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
)

// openFile opens a file that a command line names; - is stdin.
func openFile(name string) (*os.File, error) {
	if name == "-" {
		return os.Stdin, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, ui.Fail(ui.ExitSource, err, "")
	}
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, ui.Fail(ui.ExitSource, errors.Join(fmt.Errorf("%s is a directory", name), f.Close()), "")
	}
	return f, nil
}

// openSource opens the disk in the file f, which the command line calls name: raw,
// qcow2 or a fixed VHD, compressed or not.
func openSource(c *cli.Context, name string, f *os.File, progress func(done, total int64)) (*foreign.Source, error) {
	s, err := foreign.Open(c.Context, f, foreign.OpenOptions{Scratch: c.String("scratch"), Progress: progress})
	if err == nil {
		return s, nil
	}
	if _, ok := errors.AsType[*foreign.UnsupportedError](err); ok {
		err = fmt.Errorf("%s %w", name, err)
	} else {
		err = fmt.Errorf("%s: %w", name, err)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) {
		by := "TMPDIR"
		if slices.ContainsFunc(c.Command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), "scratch") }) {
			by = "--scratch"
		}
		return nil, ui.Fail(ui.ExitOther, err, "name a folder with more room by "+by)
	}
	return nil, ui.Fail(ui.ExitSource, err, foreign.Advice(name, err))
}
