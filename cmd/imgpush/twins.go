package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// twin is another disk that shares identities with what is written.
type twin struct {
	Path    string               `json:"path"`
	Shares  []signature.Identity `json:"shares"`
	Retired bool                 `json:"retired,omitempty"` // --retire names it
	Allowed bool                 `json:"allowed,omitempty"` // --allow-twin names it
	disk    *blockdev.Disk       // open, if it is to be retired
	boot    []diskimage.Extent   // what that zeroes; LBA 0 leads
}

// retirees are the disks that are made not bootable.
type retirees []twin

func (r retirees) close() (err error) {
	for _, t := range r {
		err = errors.Join(err, t.disk.Close())
	}
	return err
}

// clear makes all of them not bootable.
func (r retirees) clear(context.Context) error {
	for _, t := range r {
		if err := t.clear(); err != nil {
			return err
		}
	}
	return nil
}

// twins opens the disks that are to be retired, and refuses those that have to
// be and are not named. A raw file is no disk of this machine: of what is written
// to files alone there are no twins but those that are named. The targets of one
// command are copies on purpose.
func (ws writes) twins(ctx context.Context) (out retirees, err error) {
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
		t, err := w.beyond.retire(ctx, path, o, ids)
		if err != nil {
			return out, exitError(err)
		}
		out, known = append(out, t), append(known, t.disk.Info())
	}
	found := []twin{}
	if isDevice {
		devices, err := blockdev.System{}.List(ctx, blockdev.ListOptions{})
		if err != nil {
			return out, ui.Fail(ui.ExitTarget, fmt.Errorf("whether another disk is a copy of this image is not known: %w; nothing was written", err), "")
		}
		found = twins(ctx, w.talk.Sayf, devices, openDevice(ctx), ids, known...)
	}
	if err := allowTwins(w.talk.Sayf, found, w.c.StringSlice("allow-twin"), sameFile); err != nil {
		return out, exitError(err)
	}
	for _, w := range ws {
		w.result.Twins = append(append(w.result.Twins, out...), found...)
	}
	if w.result.DryRun {
		return out, nil
	}
	return out, exitError(refuseTwins(found))
}

// identities are those of an image on its target.
func identities(a *oci.Artifact, want *deliver.Want) []signature.Identity {
	d := a.Config().Disk
	return signature.IdentitiesOf(want.Table(), d.MBR, d.Filesystem)
}

// twins finds the disks of this machine that share an identity with what is
// written, besides the targets and those that are retired. It looks at what a
// query may choose and at what is in use, and not at loop and other made-up
// devices: they are gone when the machine boots. What cannot be read is talked
// about.
func twins(ctx context.Context, say func(string, ...any), devices []blockdev.Device, open func(blockdev.Device) (io.ReaderAt, func() error, error), ids []signature.Identity, but ...blockdev.Info) (out []twin) {
	for _, d := range devices {
		if !bootable(d.Kind) || d.Size == 0 || slices.ContainsFunc(but, func(i blockdev.Info) bool { return same(i, d) }) || ctx.Err() != nil {
			continue
		}
		r, done, err := open(d)
		var found *signature.Found
		if err == nil {
			found, err = signature.Probe(r, d.Size, d.SectorSize)
			err = errors.Join(err, done())
		}
		if err != nil {
			say("%s cannot be read: whether it is a copy of this image is not known (%v)", d.Path, err)
			continue
		}
		if shared := signature.Twins(ids, found); len(shared) > 0 {
			out = append(out, twin{Path: d.Path, Shares: shared})
		}
	}
	return out
}

// bootable reports whether firmware starts what is on devices of a kind.
func bootable(k blockdev.Kind) bool { return k == blockdev.KindDisk }

// same reports whether a device is what was opened, by this or another path.
func same(i blockdev.Info, d blockdev.Device) bool {
	return i.Number == d.Number || i.WWN != "" && i.WWN == d.WWN && i.Serial == d.Serial && i.Size == d.Size
}

// openDevice opens a disk for looking at it.
func openDevice(ctx context.Context) func(blockdev.Device) (io.ReaderAt, func() error, error) {
	return func(d blockdev.Device) (io.ReaderAt, func() error, error) {
		disk, err := blockdev.Open(ctx, d.Path, blockdev.Options{ReadOnly: true, Expect: &d})
		if err != nil {
			return nil, nil, err
		}
		return disk, disk.Close, nil
	}
}

// allowTwins marks those that --allow-twin names, and says what that means. It
// has to name what is a copy.
func allowTwins(say func(string, ...any), found []twin, paths []string, same func(a, b string) bool) error {
	for _, path := range paths {
		i := slices.IndexFunc(found, func(t twin) bool { return same(path, t.Path) })
		if i < 0 {
			return &deliver.Error{
				Problem: deliver.ProblemTarget, State: deliver.StateUntouched, Try: "without --allow-twin, copies are listed",
				Err: fmt.Errorf("--allow-twin: %s is no copy of this image among the other disks of this machine", path),
			}
		}
		if t := &found[i]; !t.Allowed {
			t.Allowed = true
			say("warning: %s shares %s with what is written: while both are in one machine, it boots, and is configured from, either", t.Path, listed(t.Shares))
		}
	}
	return nil
}

// refuseTwins says which disks the machine could boot as well.
func refuseTwins(found []twin) error {
	var what, try []string
	for _, t := range found {
		if t.Allowed {
			continue
		}
		what = append(what, fmt.Sprintf("%s shares %s with what is written", t.Path, listed(t.Shares)))
		try = append(try, "--retire "+t.Path)
	}
	if len(what) == 0 {
		return nil
	}
	return &deliver.Error{
		Problem: deliver.ProblemTarget, State: deliver.StateUntouched,
		Err: errors.New("the machine could boot, or configure, another disk in its place: " + strings.Join(what, "; ")),
		Try: "take it out, or " + strings.Join(try, " ") + " to make it not bootable, or --allow-twin if the target goes into another machine",
	}
}

func listed(ids []signature.Identity) string {
	const most = 3
	var text []string
	for _, id := range ids {
		text = append(text, id.String())
	}
	if n := len(text); n > most {
		text = append(text[:most], fmt.Sprintf("%d more", n-most))
	}
	return strings.Join(text, ", ")
}

// retire opens a disk that --retire names, under the guards that a target is
// under, and says what of it makes it a copy. It holds the disk until it is
// closed and changes nothing yet.
func (b beyond) retire(ctx context.Context, path string, o blockdev.Options, ids []signature.Identity) (t twin, err error) {
	disk, err := blockdev.Open(ctx, path, o)
	if err != nil {
		return t, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, disk.Close())
		}
	}()
	refused := func(try, format string, args ...any) error {
		return &deliver.Error{Problem: deliver.ProblemTarget, State: deliver.StateUntouched, Err: fmt.Errorf("--retire: "+format, args...), Try: try}
	}
	found, err := signature.Probe(disk, disk.Size(), disk.SectorSize())
	if err != nil {
		return t, refused("", "%s: %w", path, err)
	}
	t = twin{Path: path, Shares: signature.Twins(ids, found), Retired: true, disk: disk}
	if len(t.Shares) == 0 {
		return t, refused("name the disk that is meant: imgpush disks", "%s is no copy of this image: it shares no disk GUID, PARTUUID, filesystem UUID, nor a CIDATA label", path)
	}
	for _, s := range found.Signatures {
		if s.Protected() && !slices.Contains(b.destroy, s.Name) {
			return t, refused("another disk? else: --destroy "+s.Name, "%s: what is on it is protected: %v", path, s)
		}
	}
	t.boot = found.BootBytes(disk.Size(), disk.SectorSize(), t.Shares...)
	return t, nil
}

// clear makes the disk not bootable: LBA 0 first, then what a firmware could
// repair it from. What it zeroed is read back.
func (t twin) clear() error {
	for i, e := range t.boot {
		if _, err := t.disk.WriteAt(make([]byte, e.Len), e.Off); err != nil {
			return fmt.Errorf("retire %s: bytes %v: write: %w; it may boot still", t.Path, e, err)
		}
		if i > 0 && i < len(t.boot)-1 {
			continue
		}
		if err := t.disk.Flush(); err != nil {
			return fmt.Errorf("retire %s: flush: %w; it may boot still", t.Path, err)
		}
	}
	from, _ := t.disk.Reread()
	for _, e := range t.boot {
		b := make([]byte, e.Len)
		if _, err := from.ReadAt(b, e.Off); err != nil || !bytes.Equal(b, make([]byte, e.Len)) {
			return fmt.Errorf("retire %s: bytes %v: read back: %w; it may boot still", t.Path, e, cmpOr(err))
		}
	}
	if err := t.disk.RereadTable(); err != nil {
		return fmt.Errorf("retire %s: it does not boot any more, but %w", t.Path, err)
	}
	return nil
}

func cmpOr(err error) error {
	if err == nil || err == io.EOF {
		return errors.New("it is not zeros")
	}
	return err
}

// writeTwins lists the copies, for people.
func writeTwins(out io.Writer, found []twin) {
	for _, t := range found {
		what := "refused without --retire " + t.Path
		switch {
		case t.Retired:
			what = "made not bootable"
		case t.Allowed:
			what = "left as it is: while both are in one machine, either may boot"
		}
		fmt.Fprintf(out, "  %s shares %s: %s\n", t.Path, listed(t.Shares), what)
	}
}
