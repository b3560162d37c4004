//go:build linux

// Package install puts the image of a job onto a disk of this machine, under the
// guards of `imgpush write`. It is the agent's Installer.
//
//	i := &install.Installer{Open: open, Architecture: runtime.GOARCH}
//	prepared, err := i.Prepare(ctx, job, progress, tell)
//	report, err := prepared.Apply(ctx)
//
// It guarantees that Prepare writes nothing, and settles before Apply that the
// disk is the one that the job means and may be lost, that the image is the one
// that the job pins, is trusted, is for this machine, and is no step back.
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/firstboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/guard"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Image is an image that is open, and believed.
type Image struct {
	Source       deliver.Source
	Digest       diskimage.Digest // of its manifest
	Name         string
	Version      string
	Architecture string
	Epoch        time.Time
	SectorSize   int64
	Table        *diskimage.Table
	MBR          *diskimage.MBR
	Filesystem   *diskimage.Filesystem
	Trusted      string // by whose word, for people
	Close        func() error
}

// Installer prepares jobs.
type Installer struct {
	// Open opens an image once it is settled that it is to be trusted. An error
	// that may pass is an *agent.Temporary.
	Open         func(ctx context.Context, image wire.Image) (*Image, error)
	Architecture string // of this machine, as GOARCH
	// List returns the disks of this machine; nil: blockdev.System{}.List.
	List func(ctx context.Context) ([]blockdev.Device, error)
	// Memory returns how many bytes may still be used; nil: not looked at.
	Memory func() int64
	// Entries makes boot entries for a disk that was committed, now or by a boot
	// that was cut off before it came to them: then image is nil. nil: none.
	Entries func(disk deliver.Target, table *diskimage.Table, image *Image, order wire.BootOrder) []string
	// Kexec holds the kernel of a disk that was committed ready, for jobs that ask
	// for it; nil: it cannot be done here.
	Kexec  func(disk io.ReaderAt, esp diskimage.Extent) error
	Appear time.Duration // how long a disk is waited for that is not there yet; 0: 10 s
}

var _ agent.Installer = (*Installer)(nil)

// refused is a job that this machine will not do.
func refused(problem deliver.Problem, format string, args ...any) error {
	return &deliver.Error{Problem: problem, State: deliver.StateUntouched, Err: fmt.Errorf(format, args...)}
}

// leastMemory is what has to be free for a job, in bytes, and leastLeft what of it
// for the writing alone: workers, buffers, TLS. Measured: the whole program, 38 MiB
// at most, most of it there before (docs/environment.md).
const (
	leastMemory = 64 << 20
	leastLeft   = 40 << 20
)

// Prepare implements agent.Installer.
func (i *Installer) Prepare(ctx context.Context, job *wire.Job, progress *deliver.Progress, tell agent.Teller) (_ agent.Prepared, err error) {
	p := &prepared{i: i, job: job, options: deliver.Options{Progress: progress, Now: time.Now}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	tell("memory", "started", "whether there is enough to write a disk")
	if err := i.enough(&p.options); err != nil {
		return nil, err
	}
	tell("disk", "started", "looking for %s", job.Disk)
	if err := p.find(ctx); err != nil {
		return nil, err
	}
	tell("disk", "done", "%s", describe(p.device))
	before := readBefore(p.disk)
	if p.already = before.bootable && before.instance == job.ID; p.already {
		p.table = before.table
		return p, nil
	}
	tell("verify", "started", "%s", job.Image.Digest)
	if err := p.open(ctx, before); err != nil {
		return nil, err
	}
	tell("verify", "done", "%s %s for %s, %s", p.image.Name, p.image.Version, p.image.Architecture, p.image.Trusted)
	tell("look", "started", "what %s holds already", p.device.Path)
	if err := p.lookAndPlan(ctx); err != nil {
		return nil, err
	}
	if err := p.twins(ctx, tell); err != nil {
		return nil, err
	}
	if err := i.enoughLeft(); err != nil {
		return nil, err
	}
	tell("plan", "done", "%v", p.Plan())
	return p, nil
}

// enough refuses a machine that would run out of memory in the middle of a write,
// and does with less where there is little.
func (i *Installer) enough(o *deliver.Options) error {
	if i.Memory == nil {
		return nil
	}
	free := i.Memory()
	if free < leastMemory {
		return tooLittle(free, leastMemory)
	}
	if free < 2*leastMemory {
		o.Workers = 4
	}
	if free < 4*leastMemory { // what is copied from another place is also to be had by the network
		if o.CopyMemory = (free - leastMemory) / 4; o.CopyMemory < 4<<20 {
			o.CopyMemory = -1
		}
	}
	return nil
}

// enoughLeft is enough once the image's index and the plan are in memory: those
// grow with the image.
func (i *Installer) enoughLeft() error {
	if i.Memory == nil {
		return nil
	}
	debug.FreeOSMemory() // else what is garbage counts as used
	if free := i.Memory(); free < leastLeft {
		return tooLittle(free, leastLeft)
	}
	return nil
}

func tooLittle(free, least int64) error {
	return refused(deliver.ProblemTarget, "%d MiB of memory are free, and writing takes %d: the machine needs more for this environment", free>>20, least>>20)
}

// prepared is a job on its disk.
type prepared struct {
	i       *Installer
	job     *wire.Job
	device  *blockdev.Device
	disk    *blockdev.Disk
	image   *Image
	table   *diskimage.Table // of the disk, as it is or shall be; nil: none
	want    *deliver.Want
	plan    *deliver.Plan
	beyond  guard.Beyond
	retired guard.Retirees
	options deliver.Options
	already bool
}

// find waits for the disk that the job means, and locks it.
func (p *prepared) find(ctx context.Context) error {
	q, err := blockdev.ParseQuery(p.job.Disk)
	if err != nil {
		return refused(deliver.ProblemTarget, "the job's disk: %w", err)
	}
	if p.beyond, err = guard.NewBeyond(p.job.Destroy, p.job.Wipe); err != nil {
		return refused(deliver.ProblemTarget, "the job: %w", err)
	}
	end := time.Now().Add(wait(p.i.Appear))
	for {
		devices, err := p.i.list(ctx)
		if err != nil {
			return refused(deliver.ProblemTarget, "%w", err)
		}
		if p.device, err = blockdev.Choose(q, devices); err == nil {
			break
		}
		if !time.Now().Before(end) {
			return refused(deliver.ProblemTarget, "%w", err)
		}
		select { // a controller may still be looking for its disks
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
	p.disk, err = blockdev.Open(ctx, p.device.Path, blockdev.Options{SectorSize: p.device.SectorSize, Expect: p.device})
	return err
}

func wait(d time.Duration) time.Duration {
	if d == 0 {
		return 10 * time.Second
	}
	return d
}

func (i *Installer) list(ctx context.Context) ([]blockdev.Device, error) {
	if i.List != nil {
		return i.List(ctx)
	}
	return blockdev.System{}.List(ctx, blockdev.ListOptions{})
}

// open opens the image, and settles that it is what this machine shall have.
func (p *prepared) open(ctx context.Context, b before) (err error) {
	if p.image, err = p.i.Open(ctx, p.job.Image); err != nil {
		return err
	}
	im := p.image
	switch {
	case im.Digest.String() != p.job.Image.Digest:
		return refused(deliver.ProblemTrust, "the server gave the image %v, the job pins %s", im.Digest, p.job.Image.Digest)
	case im.Architecture != p.i.Architecture:
		return refused(deliver.ProblemTarget, "the image is for %s, this machine is %s", im.Architecture, p.i.Architecture)
	case im.SectorSize != p.disk.SectorSize():
		return refused(deliver.ProblemTarget, "%s has sectors of %d bytes, the image is made for %d", p.device.Path, p.disk.SectorSize(), im.SectorSize)
	case !p.job.AllowRollback && b.newer(im):
		return refused(deliver.ProblemTrust, "%s %s is of %s, the disk holds one of the same name of %s: going back has to be allowed by the job",
			im.Name, im.Version, im.Epoch.UTC().Format(time.DateTime), b.epoch.Format(time.DateTime))
	}
	return nil
}

// lookAndPlan decides what to do with the disk.
func (p *prepared) lookAndPlan(ctx context.Context) (err error) {
	im, disk := p.image, p.disk
	if p.want, err = guard.LayOut(ctx, im.Source, im.Table, im.Epoch, deliver.InfoOf(disk), p.config(), p.options); err != nil {
		if _, ok := errors.AsType[*guard.ConfigError](err); ok {
			err = refused(deliver.ProblemTarget, "%w", err)
		}
		return err
	}
	p.table = p.want.Table()
	if err := p.beyond.Prepare(disk, p.want); err != nil {
		return err
	}
	have, err := deliver.Look(ctx, p.want, disk, p.options)
	if err == nil {
		err = deliver.LookElsewhere(ctx, p.want, have, im.Source, disk, p.options)
	}
	if err != nil {
		return err
	}
	found, err := p.beyond.Judge(disk, p.want, have)
	if err != nil {
		return refused(deliver.ProblemTarget, "%w", err)
	}
	if p.plan, err = deliver.NewPlan(p.want, have); err != nil || p.plan.Empty() {
		return err
	}
	return guard.RefuseProtected(found)
}

// config is the machine's config. Its instance-id is the job: by that a disk
// tells whose commit it holds.
func (p *prepared) config() firstboot.Config {
	c := p.job.Config
	return firstboot.Config{UserData: c.UserData, MetaData: c.MetaData, NetworkConfig: c.NetworkConfig, VendorData: c.VendorData,
		InstanceID: p.job.ID, Hostname: c.Hostname, SSHKeys: c.SSHKeys}
}

// twins opens the copies that the job retires, and refuses the others.
func (p *prepared) twins(ctx context.Context, tell agent.Teller) error {
	devices, err := p.i.list(ctx)
	if err != nil {
		return refused(deliver.ProblemTarget, "%w", err)
	}
	ids := signature.IdentitiesOf(p.want.Table(), p.image.MBR, p.image.Filesystem)
	known := []blockdev.Info{p.disk.Info()}
	for _, text := range p.job.Retire {
		q, err := blockdev.ParseQuery(text)
		if err != nil {
			return refused(deliver.ProblemTarget, "the job retires %q: %w", text, err)
		}
		d, err := blockdev.Choose(q, devices)
		if err != nil { // a disk that was taken out is as good as retired
			tell("disk", "warning", "to be retired: %v", err)
			continue
		}
		t, err := p.beyond.Retire(ctx, d.Path, blockdev.Options{SectorSize: d.SectorSize, Expect: d}, ids)
		if err != nil {
			return err
		}
		p.retired, known = append(p.retired, t), append(known, t.Info())
	}
	p.options.BeforeCommit = p.retired.Clear
	say := func(format string, args ...any) { tell("disk", "warning", format, args...) }
	return guard.RefuseTwins(guard.Twins(ctx, say, devices, guard.OpenDevice(ctx), ids, known...))
}

// Disk implements agent.Prepared.
func (p *prepared) Disk() wire.Disk { return WireDisk(p.device) }

// Already implements agent.Prepared.
func (p *prepared) Already() bool { return p.already }

// Plan implements agent.Prepared.
func (p *prepared) Plan() deliver.Summary { return p.plan.Summary() }

// Apply implements agent.Prepared.
func (p *prepared) Apply(ctx context.Context) (*deliver.Report, error) {
	if p.plan.Empty() {
		if err := p.retired.Clear(ctx); err != nil {
			return nil, refused(deliver.ProblemWrite, "%w", err)
		}
	}
	return deliver.Apply(ctx, p.plan, p.image.Source, p.disk, p.options)
}

// Settle implements agent.Prepared.
func (p *prepared) Settle(context.Context) (warnings []string) {
	if err := p.disk.RereadTable(); err != nil {
		warnings = append(warnings, err.Error())
	}
	if p.i.Entries != nil {
		warnings = append(warnings, p.i.Entries(p.disk, p.table, p.image, p.job.BootOrder)...)
	}
	if p.job.After == wire.Kexec {
		if err := p.kexec(); err != nil {
			warnings = append(warnings, fmt.Sprintf("kexec: %v; the machine restarts instead", err))
		}
	}
	return warnings
}

func (p *prepared) kexec() error {
	if p.i.Kexec == nil || p.table == nil {
		return errors.New("it cannot be done here")
	}
	esp := p.table.Find(diskimage.RoleESP)
	if esp == nil {
		return errors.New("the image has no EFI system partition")
	}
	return p.i.Kexec(p.disk, esp.Extent)
}

// Close implements agent.Prepared.
func (p *prepared) Close() error {
	err := p.retired.Close()
	for _, c := range []io.Closer{closer(p.disk), imageCloser{p.image}} {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	p.retired, p.disk, p.image = nil, nil, nil
	return err
}

func closer(d *blockdev.Disk) io.Closer {
	if d == nil {
		return nil
	}
	return d
}

type imageCloser struct{ *Image }

func (c imageCloser) Close() error {
	if c.Image == nil || c.Image.Close == nil {
		return nil
	}
	return c.Image.Close()
}
