//go:build linux

package install

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

var october = november.AddDate(0, -1, 0)

// TestRefusals holds that what is not right is refused with its reason, and no
// disk changed.
func TestRefusals(t *testing.T) {
	trust, target := deliver.ProblemTrust, deliver.ProblemTarget
	for _, c := range []struct {
		name    string
		disks   []string
		prepare func(r *rig) *wire.Job
		problem deliver.Problem
		says    string
	}{
		{"another architecture", []string{""}, func(r *rig) *wire.Job {
			im := imageOf(r.t, "os", november)
			im.Architecture = "arm64"
			return r.job("j1", im)
		}, target, "the image is for arm64, this machine is amd64"},
		{"another image than the job pins", []string{""}, func(r *rig) *wire.Job {
			job := r.job("j1", imageOf(r.t, "os", november))
			r.images[job.Image.Digest] = imageOf(r.t, "other", november)
			return job
		}, trust, "the job pins"},
		{"other sectors", []string{""}, func(r *rig) *wire.Job {
			im := imageOf(r.t, "os", november)
			im.SectorSize = 4096
			return r.job("j1", im)
		}, target, "has sectors of 512 bytes, the image is made for 4096"},
		{"an older image of the same name", []string{""}, func(r *rig) *wire.Job {
			r.write(r.job("j1", imageOf(r.t, "os", november)))
			return r.job("j2", imageOf(r.t, "os", october))
		}, trust, "os 2026.10 is of 2026-10-01 00:00:00, the disk holds one of the same name of 2026-11-01 00:00:00"},
		{"no disk", []string{""}, func(r *rig) *wire.Job {
			job := r.job("j1", imageOf(r.t, "os", november))
			job.Disk = "size>=1T"
			return job
		}, target, "matches no disk"},
		{"two disks", []string{"", ""}, func(r *rig) *wire.Job {
			job := r.job("j1", imageOf(r.t, "os", november))
			job.Disk = "transport=virtio"
			return job
		}, target, "matches 2 disks"},
		{"a disk that is in use", []string{""}, func(r *rig) *wire.Job {
			r.devices[0].Fit, r.devices[0].Why = "no", []string{"mounted on /data"}
			return r.job("j1", imageOf(r.t, "os", november))
		}, target, "mounted on /data"},
		{"no query", []string{""}, func(r *rig) *wire.Job {
			job := r.job("j1", imageOf(r.t, "os", november))
			job.Disk = "size>>1"
			return job
		}, target, "the job's disk"},
		{"an image that does not fit", []string{""}, func(r *rig) *wire.Job {
			if err := truncate(r.devices[0].Path, 4*mib); err != nil {
				r.t.Fatal(err)
			}
			return r.job("j1", imageOf(r.t, "os", november))
		}, target, "4194304"},
		{"something protected", []string{"zfs"}, func(r *rig) *wire.Job { return r.job("j1", imageOf(r.t, "os", november)) }, target, "zfs"},
		{"a copy on another disk", []string{"", ""}, func(r *rig) *wire.Job {
			job := r.job("j1", imageOf(r.t, "os", november))
			r.write(job)
			r.change(1, 0, r.content(0))
			r.change(0, 0, make([]byte, 16*mib))
			return job
		}, target, "another disk in its place"},
		{"a config that does not fit", []string{""}, func(r *rig) *wire.Job {
			job := r.job("j1", imageOf(r.t, "os", november))
			job.Config.UserData = bytes.Repeat([]byte("x"), 3*mib)
			return job
		}, target, "config"},
		{"too little memory", []string{""}, func(r *rig) *wire.Job {
			r.i.Memory = func() int64 { return leastMemory - 1 }
			return r.job("j1", imageOf(r.t, "os", november))
		}, target, "63 MiB of memory are free, and writing takes 64"},
		{"too little memory once the index is there", []string{""}, func(r *rig) *wire.Job {
			free := []int64{2*leastMemory - 1, leastLeft - 1}
			r.i.Memory = func() (n int64) { n, free = free[0], free[1:]; return n }
			return r.job("j1", imageOf(r.t, "os", november))
		}, target, "39 MiB of memory are free, and writing takes 40"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, c.disks...)
			job := c.prepare(r)
			before := r.sums()
			p, err := r.prepare(job)
			e, ok := errors.AsType[*deliver.Error](err)
			if p != nil || !ok || e.Problem != c.problem || e.State != deliver.StateUntouched || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %T, problem %v: %v\nwant problem %v, untouched: %s", err, e, err, c.problem, c.says)
			}
			if !slices.Equal(r.sums(), before) {
				t.Error("a disk was changed")
			}
		})
	}
}

// TestGoingBack holds that a job may allow what the guard refuses, and that the
// guard is for images of one name: another one is no step back.
func TestGoingBack(t *testing.T) {
	for name, change := range map[string]func(*wire.Job, *Image){
		"allowed":                    func(j *wire.Job, _ *Image) { j.AllowRollback = true },
		"the same image again":       func(_ *wire.Job, im *Image) { im.Epoch = november },
		"as young, to FAT's seconds": func(_ *wire.Job, im *Image) { im.Epoch = november.Add(-2 * time.Second) },
		"another name":               func(_ *wire.Job, im *Image) { im.Table.DiskGUID[0] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "")
			r.write(r.job("j1", imageOf(t, "os", november)))
			im := imageOf(t, "os", october)
			job := r.job("j2", im)
			change(job, im)
			r.write(job)
			if b := readBefore(r.open(0)); b.instance != "j2" || !b.bootable {
				t.Errorf("got %+v", b)
			}
		})
	}
}

// TestAlready holds that an agent which finds the disk with its job's commit
// writes nothing and reads no image: its report was lost, or the job is played
// to it again. Whose disk does not boot, or has another job's config, is written.
func TestAlready(t *testing.T) {
	r := newRig(t, "")
	job := r.job("j1", imageOf(t, "os", november))
	r.write(job)
	before, opened := r.sums(), r.opened

	again := *job
	again.Attempt = 2
	p, err := r.prepare(&again)
	if err != nil || !p.Already() || p.Disk().Serial != "DISK0" {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := p.Close(); err != nil || !slices.Equal(r.sums(), before) || r.opened != opened {
		t.Errorf("%v; the image was opened %d times", err, r.opened-opened)
	}

	other := r.job("j2", imageOf(t, "os", november))
	p, err = r.prepare(other)
	if err != nil || p.Already() {
		t.Fatalf("another job: %v", err)
	}
	if s := p.Plan(); s.Fetch != 0 || s.Overlay == 0 {
		t.Errorf("another job of the same image moves more than its config: %v", s)
	}
	if err := p.Close(); err != nil || !slices.Equal(r.sums(), before) {
		t.Errorf("planning changed the disk: %v", err)
	}

	r.change(0, 0, make([]byte, 512)) // as a cut off write leaves it
	p, err = r.prepare(job)
	if err != nil || p.Already() || p.Plan().Empty {
		t.Fatalf("a disk without its boot sector: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	r.write(job)
	if !slices.Equal(r.sums(), before) {
		t.Error("written again, the disk is another one")
	}
}

// TestNamed holds that a job which names what may be lost has it lost: protected
// signatures, and the copy on another disk.
func TestNamed(t *testing.T) {
	r := newRig(t, "zfs", "")
	job := r.job("j1", imageOf(t, "os", november))
	job.Destroy = []string{"zfs"}
	r.write(job)
	r.change(1, 0, r.content(0))
	r.devices[1].Number = "" // by which it is known as the one that is retired
	job = r.job("j2", imageOf(t, "os", november))
	job.Retire = []string{"serial=DISK1", "serial=GONE"}
	r.write(job)
	if !delivertest.Boots(r.content(0), 512) || delivertest.Boots(r.content(1), 512) {
		t.Errorf("boots: %v, and the retired one %v", delivertest.Boots(r.content(0), 512), delivertest.Boots(r.content(1), 512))
	}
	if !strings.Contains(r.said.String(), "to be retired: ") {
		t.Errorf("that one of them is not there was not said:\n%s", r.said.String())
	}
}

// TestSettle holds that boot entries are asked for with what was written, and
// that their warnings, and kexec's, are passed on.
func TestSettle(t *testing.T) {
	r := newRig(t, "")
	im := imageOf(t, "os", november)
	job := r.job("j1", im)
	job.BootOrder = wire.DiskFirst
	job.After = wire.Kexec
	r.i.Entries = entriesOf(t, im, wire.DiskFirst)
	r.i.Kexec = func(disk io.ReaderAt, esp diskimage.Extent) error {
		b := make([]byte, 512)
		if _, err := disk.ReadAt(b, esp.Off); err != nil || string(b[43:46]) != "ESP" { // the label of a FAT12
			t.Errorf("at %v: %v, %q", esp, err, b)
		}
		return errors.New("locked down")
	}
	p, err := r.prepare(job)
	if err == nil {
		_, err = p.Apply(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"no room", "kexec: locked down; the machine restarts instead"}
	if got := p.Settle(t.Context()); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	// The power failed before that: the next boot does it, without the image.
	r.i.Entries = entriesOf(t, nil, wire.DiskFirst)
	p, err = r.prepare(job)
	if err != nil || !p.Already() {
		t.Fatalf("again: %v", err)
	}
	if got := p.Settle(t.Context()); !slices.Equal(got, want) {
		t.Errorf("again: got %v", got)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
