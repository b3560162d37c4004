//go:build linux

package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Twin is another disk that shares identities with what is written.
type Twin struct {
	Path    string               `json:"path"`
	Shares  []signature.Identity `json:"shares"`
	Retired bool                 `json:"retired,omitempty"` // --retire names it
	Allowed bool                 `json:"allowed,omitempty"` // --allow-twin names it
	disk    *blockdev.Disk       // open, if it is to be retired
	boot    []diskimage.Extent   // what that zeroes; LBA 0 leads
}

// Retirees are the disks that are made not bootable.
type Retirees []Twin

// Close lets go of them.
func (r Retirees) Close() (err error) {
	for _, t := range r {
		err = errors.Join(err, t.disk.Close())
	}
	return err
}

// Clear makes all of them not bootable.
func (r Retirees) Clear(context.Context) error {
	for _, t := range r {
		if err := t.clear(); err != nil {
			return err
		}
	}
	return nil
}

// Twins finds the disks of this machine that share an identity with what is
// written, besides the targets and those that are retired. It looks at what a
// query may choose and at what is in use, and not at loop and other made-up
// devices: they are gone when the machine boots. What cannot be read is talked
// about.
func Twins(ctx context.Context, say func(string, ...any), devices []blockdev.Device, open func(blockdev.Device) (io.ReaderAt, func() error, error), ids []signature.Identity, but ...blockdev.Info) (out []Twin) {
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
			out = append(out, Twin{Path: d.Path, Shares: shared})
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

// OpenDevice opens a disk for looking at it.
func OpenDevice(ctx context.Context) func(blockdev.Device) (io.ReaderAt, func() error, error) {
	return func(d blockdev.Device) (io.ReaderAt, func() error, error) {
		disk, err := blockdev.Open(ctx, d.Path, blockdev.Options{ReadOnly: true, Expect: &d})
		if err != nil {
			return nil, nil, err
		}
		return disk, disk.Close, nil
	}
}

// AllowTwins marks those of paths among what was found, and says what that
// means. A path that is no copy is an error.
func AllowTwins(say func(string, ...any), found []Twin, paths []string, same func(a, b string) bool) error {
	for _, path := range paths {
		i := slices.IndexFunc(found, func(t Twin) bool { return same(path, t.Path) })
		if i < 0 {
			return &deliver.Error{
				Problem: deliver.ProblemTarget, State: deliver.StateUntouched, Try: "without --allow-twin, copies are listed",
				Err: fmt.Errorf("--allow-twin: %s is no copy of this image among the other disks of this machine", path),
			}
		}
		if t := &found[i]; !t.Allowed {
			t.Allowed = true
			say("warning: %s shares %s with what is written: while both are in one machine, it boots, and is configured from, either", t.Path, Listed(t.Shares))
		}
	}
	return nil
}

// RefuseTwins says which disks the machine could boot as well.
func RefuseTwins(found []Twin) error {
	var what, try []string
	for _, t := range found {
		if t.Allowed {
			continue
		}
		what = append(what, fmt.Sprintf("%s shares %s with what is written", t.Path, Listed(t.Shares)))
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

// Info describes a disk that is to be retired.
func (t Twin) Info() blockdev.Info { return t.disk.Info() }

// Listed names identities, the first few of them.
func Listed(ids []signature.Identity) string {
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

// Retire opens a disk that --retire names, under the guards that a target is
// under, and says what of it makes it a copy. It holds the disk until it is
// closed and changes nothing yet.
func (b Beyond) Retire(ctx context.Context, path string, o blockdev.Options, ids []signature.Identity) (t Twin, err error) {
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
	t = Twin{Path: path, Shares: signature.Twins(ids, found), Retired: true, disk: disk}
	if len(t.Shares) == 0 {
		return t, refused("name the disk that is meant: imgpush disks", "%s is no copy of this image: it shares no disk GUID, PARTUUID, filesystem UUID, nor a CIDATA label", path)
	}
	for _, s := range found.Signatures {
		if s.Protected() && !slices.Contains(b.Destroy, s.Name) {
			return t, refused("another disk? else: --destroy "+s.Name, "%s: what is on it is protected: %v", path, s)
		}
	}
	t.boot = found.BootBytes(disk.Size(), disk.SectorSize(), t.Shares...)
	return t, nil
}

// clear makes the disk not bootable: LBA 0 first, then what a firmware could
// repair it from. What it zeroed is read back.
func (t Twin) clear() error {
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
