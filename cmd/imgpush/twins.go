package main

import (
	"context"
	"fmt"
	"io"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/guard"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// twins opens the disks that are to be retired, and refuses those that have to
// be and are not named. A raw file is no disk of this machine: of what is written
// to files alone there are no twins but those that are named. The targets of one
// command are copies on purpose.
func (ws writes) twins(ctx context.Context) (out guard.Retirees, err error) {
	w := ws[0]
	var ids []signature.Identity
	var known []blockdev.Info
	isDevice := false
	for _, w := range ws {
		ids, known, isDevice = append(ids, w.ids...), append(known, w.disk.Info()), isDevice || w.disk.Info().Device != ""
	}
	o := blockdev.Options{SectorSize: w.artifact.Config().Disk.SectorSize, ReadOnly: w.result.DryRun}
	for _, path := range w.c.StringSlice("retire") {
		for _, i := range known {
			if sameFile(path, i.Path) {
				return out, ui.Fail(ui.ExitTarget, fmt.Errorf("--retire: %s is %s, which is written or named already; nothing was written", path, i.Path), "")
			}
		}
		t, err := w.beyond.Retire(ctx, path, o, ids)
		if err != nil {
			return out, exitError(err)
		}
		out, known = append(out, t), append(known, t.Info())
	}
	found := []guard.Twin{}
	if isDevice {
		devices, err := blockdev.System{}.List(ctx, blockdev.ListOptions{})
		if err != nil {
			return out, ui.Fail(ui.ExitTarget, fmt.Errorf("whether another disk is a copy of this image is not known: %w; nothing was written", err), "")
		}
		found = guard.Twins(ctx, w.talk.Sayf, devices, guard.OpenDevice(ctx), ids, known...)
	}
	if err := guard.AllowTwins(w.talk.Sayf, found, w.c.StringSlice("allow-twin"), sameFile); err != nil {
		return out, exitError(err)
	}
	for _, w := range ws {
		w.result.Twins = append(append(w.result.Twins, out...), found...)
	}
	if w.result.DryRun {
		return out, nil
	}
	return out, exitError(guard.RefuseTwins(found))
}

// identities are those of an image on its target.
func identities(a *oci.Artifact, want *deliver.Want) []signature.Identity {
	d := a.Config().Disk
	return signature.IdentitiesOf(want.Table(), d.MBR, d.Filesystem)
}

// writeTwins lists the copies, for people.
func writeTwins(out io.Writer, found []guard.Twin) {
	for _, t := range found {
		what := "refused without --retire " + t.Path
		switch {
		case t.Retired:
			what = "made not bootable"
		case t.Allowed:
			what = "left as it is: while both are in one machine, either may boot"
		}
		fmt.Fprintf(out, "  %s shares %s: %s\n", t.Path, guard.Listed(t.Shares), what)
	}
}
