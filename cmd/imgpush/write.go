package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/firstboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/guard"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// Where the two sides meet.
var (
	_ deliver.Source      = (*oci.Artifact)(nil)
	_ deliver.BlockMapper = (*oci.Artifact)(nil)
	_ deliver.Distruster  = (*remote.Reader)(nil)
)

func writeCommand() *cli.Command {
	return &cli.Command{
		Name:      "write",
		Usage:     "put an image onto a disk",
		ArgsUsage: "REF TARGET…",
		Description: `TARGET is a block device or a raw disk file, at least as large as the image: its
partition table is fitted to it, and the image's growing partition reaches to its end.
--disk describes the disk instead: unless exactly one is meant, nothing happens.

Several targets are written at once, and fetched for once; they may differ in size. If one
fails, it is left not bootable, and the others go on.

What the target already holds is not written again, so running the same command again
finishes an interrupted write, and redeploying moves only what changed. Ctrl-C leaves a
disk that does not boot, and says so.

The config flags become the NoCloud volume that cloud-init reads on the first boot; with
none of them that volume is blank.

A disk that is a member of a RAID or pool, or encrypted, is refused unless --destroy names
that; so is one while another disk of the machine is a copy of it, unless --retire names
the other, or --allow-twin where the two will not meet in one machine. What the disk was
beyond the image is made unrecognisable: see --wipe.

Whom to believe is said by --key or --policy, as for imgpush verify; without either,
nothing is written.

  imgpush write registry.example/os/server:1.0 /dev/sdX --key cosign.pub --dry-run
  imgpush write registry.example/os/server:1.0 /dev/sdX --key cosign.pub --hostname db1
  imgpush write registry.example/os/server:1.0 --disk 'transport=nvme' --key cosign.pub
  imgpush write registry.example/os/server:1.0 /dev/sdX /dev/sdY --key cosign.pub
  imgpush write oci:images:debian-server disk.raw --yes --insecure-no-signature`,
		Flags: append([]cli.Flag{
			diskFlag,
			&cli.BoolFlag{Name: "yes", Usage: "do not ask; needed where no terminal can be asked"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print what would be done; the target is read, not written"},
			&cli.StringFlag{Name: "verify", Usage: "`WHAT` is read back: written (what was written), full (every byte, zeros too)", Value: "written"},
			&cli.IntFlag{Name: "workers", Usage: "fetch, decode and write with `N` workers", DefaultText: "by processors"},
		}, append(imageFlags(), beyondFlags()...)...),
		Action: runWrite,
	}
}

// writeResult is what `imgpush write --json` prints.
type writeResult struct {
	Image      string            `json:"image"`
	Digest     diskimage.Digest  `json:"digest"`
	Signatures []vouched         `json:"signatures"` // that it is trusted for; none with --insecure-no-signature
	Target     blockdev.Info     `json:"target"`
	Config     *diskimage.Digest `json:"config,omitempty"` // of the machine's config, which is not shown
	DryRun     bool              `json:"dryRun,omitempty"`
	Twins      []guard.Twin      `json:"twins,omitempty"`  // other disks of the machine that are copies
	OnDisk     []guard.OnDisk    `json:"onDisk,omitempty"` // that made the target, or a part of it, what it was
	Plan       deliver.Summary   `json:"plan"`
	Steps      []deliver.Step    `json:"steps,omitempty"` // with --dry-run
	Estimate   *deliver.Estimate `json:"estimate,omitempty"`
	Report     *deliver.Report   `json:"report,omitempty"` // without
	Seconds    float64           `json:"seconds"`
	Error      string            `json:"error,omitempty"`
	ExitCode   int               `json:"exitCode,omitempty"`
}

// write is one run of the command.
type write struct {
	c        *cli.Context
	talk     *ui.Talk
	artifact *oci.Artifact
	disk     *blockdev.Disk
	options  deliver.Options
	beyond   guard.Beyond
	alone    bool                 // the only target: what is fetched serves no other
	ids      []signature.Identity // of the image, on this target
	result   writeResult
}

func runWrite(c *cli.Context) (err error) {
	if c.NArg()+len(c.StringSlice(diskFlag.Name)) < 2 || c.NArg() == 0 {
		return ui.Usagef(c, "write needs a REF and a TARGET, got %d arguments", c.NArg())
	}
	config, err := machineConfig(c)
	if err != nil {
		return err
	}
	w := &write{c: c, talk: ui.From(c)}
	w.options = deliver.Options{Workers: c.Int("workers"), Progress: new(deliver.Progress), Now: time.Now}
	if w.options.Verify, err = verifyMode(c); err != nil {
		return err
	}
	if w.beyond, err = beyondFrom(c); err != nil {
		return err
	}
	targets, err := aims(c, c.Args().Tail())
	if err != nil {
		return err
	}
	begun := time.Now()
	opener, ref, err := refs.Open(c, c.Args().First())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opener.Close()) }()
	if w.artifact, w.result.Signatures, err = believed(c, opener, ref); err != nil {
		return err
	}
	defer w.artifact.Close()
	w.result.Image, w.result.Digest, w.result.DryRun = ref.String(), w.artifact.Digest(), c.Bool("dry-run")
	if !config.IsZero() {
		d := config.Digest()
		w.result.Config = &d
	}
	ws, err := w.open(targets)
	defer func() { err = errors.Join(err, ws.close()) }()
	if err == nil {
		err = w.run(ws, config)
	}
	return ws.print(w.talk, err, begun, c.Bool("json"))
}

// run plans and applies.
func (w *write) run(ws writes, config firstboot.Config) error {
	plans, err := ws.plan(config)
	if err != nil {
		return err
	}
	retired, err := ws.twins(w.c.Context)
	defer func() { _ = retired.Close() }() // nothing is pending: what is cleared is flushed
	if err != nil || w.result.DryRun {
		return err
	}
	for i, w := range ws {
		if err := w.confirm(plans[i], ws.word(i)); err != nil {
			return err
		}
	}
	ws[0].options.BeforeCommit = retired.Clear
	return ws.apply(w.c.Context, w.talk, plans)
}

// plan looks at the target and decides what to do with it.
func (w *write) plan(config firstboot.Config) (*deliver.Plan, error) {
	ctx := w.c.Context
	want, err := layOut(ctx, w.artifact, deliver.InfoOf(w.disk), config, w.options)
	if err != nil {
		return nil, err
	}
	if err := w.beyond.Prepare(w.disk, want); err != nil {
		return nil, err
	}
	w.ids = identities(w.artifact, want)
	step := w.talk.Step("look").Counts("read")
	stop := follow(ctx, func() { step.Set(w.options.Progress.Looked.Load(), 0) })
	have, err := deliver.Look(ctx, want, w.disk, w.options)
	if err == nil && w.alone {
		err = deliver.LookElsewhere(ctx, want, have, w.artifact, w.disk, w.options)
	}
	stop()
	if err == nil {
		note := ui.Bytes(have.Equal(want)) + " already there"
		if n := have.Elsewhere(want); n > 0 {
			note += ", " + ui.Bytes(n) + " elsewhere"
		}
		step.Note(note)
	}
	if step.End(err); err != nil {
		return nil, err
	}
	if w.result.OnDisk, err = w.beyond.Judge(w.disk, want, have); err != nil {
		return nil, err
	}
	plan, err := deliver.NewPlan(want, have)
	if err == nil && !plan.Empty() && !w.result.DryRun {
		err = guard.RefuseProtected(w.result.OnDisk)
	}
	return plan, err
}

// follow calls show five times a second, and once more when it is stopped.
func follow(ctx context.Context, show func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				show()
			}
		}
	}()
	return func() { cancel(); <-done; show() }
}

// confirm asks the person at the terminal to name the disk that is to be erased,
// by a word that means no other.
func (w *write) confirm(plan *deliver.Plan, word string) error {
	if w.c.Bool("yes") || plan.Empty() {
		return nil
	}
	info := w.disk.Info()
	if !w.talk.CanAsk() {
		return ui.Fail(ui.ExitUsage, fmt.Errorf("%s would be erased, and nobody can be asked; it is untouched", info.Path), "add --yes")
	}
	_ = w.writePlan(w.c.App.ErrWriter)
	fmt.Fprintf(w.c.App.ErrWriter, "Everything on %s will be lost. Type %s to go on: ", info.Path, word)
	answer := make(chan string, 1)
	go func() { // a read of a terminal cannot be cancelled; it ends with the process
		line, _ := bufio.NewReader(w.c.App.Reader).ReadString('\n') // an end is an answer, too
		answer <- line
	}()
	select {
	case <-w.c.Context.Done():
		fmt.Fprintln(w.c.App.ErrWriter)
		return ui.Fail(ui.ExitInterrupted, fmt.Errorf("interrupted; %s is untouched", info.Path), "")
	case line := <-answer:
		if !strings.HasSuffix(line, "\n") {
			fmt.Fprintln(w.c.App.ErrWriter)
		}
		if strings.TrimSpace(line) != word {
			return ui.Fail(ui.ExitTarget, fmt.Errorf("not confirmed; %s is untouched", info.Path), "")
		}
	}
	return nil
}

func verifyMode(c *cli.Context) (deliver.Verify, error) {
	switch v := c.String("verify"); v {
	case "written":
		return deliver.VerifyWritten, nil
	case "full":
		return deliver.VerifyFull, nil
	default:
		return 0, ui.Usagef(c, "--verify %s: want written or full", v)
	}
}

// exitCodes are the exit codes of what goes wrong in delivering.
var exitCodes = map[deliver.Problem]int{
	deliver.ProblemOther: ui.ExitOther, deliver.ProblemTarget: ui.ExitTarget, deliver.ProblemSource: ui.ExitSource,
	deliver.ProblemTrust: ui.ExitTrust, deliver.ProblemWrite: ui.ExitWrite, deliver.ProblemMismatch: ui.ExitMismatch,
	deliver.ProblemInterrupted: ui.ExitInterrupted,
}

func (w *write) exitError(err error) error { return targetError(w.disk.Info().Path, err) }

// targetError says which target an error is about, and gives it its exit code.
func targetError(path string, err error) error {
	e, ok := errors.AsType[*deliver.Error](err)
	if !ok {
		return exitError(err)
	}
	code, try := exitCodes[e.Problem], e.Try
	if e.Problem == deliver.ProblemSource && errors.Is(err, oci.ErrCorrupt) { // a blob that was cut short
		code, try = ui.ExitTrust, refs.Damaged
	}
	return ui.Fail(code, fmt.Errorf("%s: %w", path, err), try)
}

// exitError gives an error of package deliver its exit code.
func exitError(err error) error {
	if _, ok := errors.AsType[*ui.Error](err); ok {
		return err
	}
	if e, ok := errors.AsType[*deliver.Error](err); ok {
		return ui.Fail(exitCodes[e.Problem], err, e.Try)
	}
	return err
}
