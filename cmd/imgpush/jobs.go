package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
)

var watchFlag = &cli.BoolFlag{Name: "watch", Usage: "show it again as it changes, until interrupted"}

func machinesCommand() *cli.Command {
	return &cli.Command{
		Name:  "machines",
		Usage: "list the machines of a site, and what they boot",
		Description: `BOOTS says what a machine gets that starts from the network: its disk, the environment
(there is a job), or hold: its disk may be half written, and a job or a person's word,
imgpush release, is needed. Machines whose name begins with ? are not in SITE.yaml.

  imgpush machines --watch`,
		Flags: adminFlags(watchFlag),
		Action: func(c *cli.Context) error {
			return show(c, "/admin/machines", new(netboot.MachinesAnswer), func(w io.Writer, v *netboot.MachinesAnswer) error { return writeMachines(w, v.Machines, time.Now()) })
		},
	}
}

func jobsCommand() *cli.Command {
	return &cli.Command{
		Name:  "jobs",
		Usage: "list jobs, the newest first",
		Description: `  imgpush jobs --watch
  imgpush jobs --json`,
		Flags: adminFlags(watchFlag, &cli.IntFlag{Name: "limit", Usage: "show at most `N`", Value: 50}),
		Action: func(c *cli.Context) error {
			return show(c, fmt.Sprintf("/admin/jobs?limit=%d", c.Int("limit")), new(netboot.JobsAnswer), func(w io.Writer, v *netboot.JobsAnswer) error { return writeJobs(w, v.Jobs, time.Now()) })
		},
	}
}

func jobCommand() *cli.Command {
	return &cli.Command{
		Name:      "job",
		Usage:     "show one job, and what its agents told",
		ArgsUsage: "JOB",
		Description: `JOB is its ID, or the beginning of it. With --log, the end of the agent's console.

  imgpush job q7xk2 --log`,
		Flags: adminFlags(watchFlag, &cli.BoolFlag{Name: "log", Usage: "print the end of the console instead"}),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return ui.Usagef(c, "job needs one JOB, got %d arguments", c.NArg())
			}
			return show(c, "/admin/jobs/"+url.PathEscape(c.Args().First()), new(netboot.JobAnswer), func(w io.Writer, v *netboot.JobAnswer) error {
				if c.Bool("log") {
					_, err := io.WriteString(w, printable(v.Log))
					return err
				}
				return writeJob(w, v)
			})
		},
	}
}

func cancelCommand() *cli.Command {
	return &cli.Command{
		Name:      "cancel",
		Usage:     "end a job",
		ArgsUsage: "JOB",
		Description: `Ends a job that has not begun to write. With --force also one that has: its agent stops
before the commit, and the machine holds, since its disk may be half written.

  imgpush cancel q7xk2`,
		Flags: adminFlags(&cli.BoolFlag{Name: "force", Usage: "also while it writes, or until the image calls home"}),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return ui.Usagef(c, "cancel needs one JOB, got %d arguments", c.NArg())
			}
			return order(c, "/admin/jobs/"+url.PathEscape(c.Args().First())+"/cancel", map[string]bool{"force": c.Bool("force")})
		},
	}
}

func releaseCommand() *cli.Command {
	return &cli.Command{
		Name:      "release",
		Usage:     "let a machine go on that was frozen or holds",
		ArgsUsage: "MACHINE",
		Description: `Your word that a frozen job may be claimed again (find out first who else claims to be
this machine), or that a disk which may be half written may be booted.

  imgpush release db1`,
		Flags: adminFlags(),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return ui.Usagef(c, "release needs one MACHINE, got %d arguments", c.NArg())
			}
			return order(c, "/admin/machines/"+url.PathEscape(c.Args().First())+"/release", struct{}{})
		},
	}
}

// order gives an order about a job, and shows what became of it.
func order(c *cli.Context, path string, body any) error {
	a, err := adminOf(c)
	if err != nil {
		return err
	}
	var v netboot.JobAnswer
	if err := a.call(c.Context, path, body, &v); err != nil {
		return err
	}
	return ui.From(c).Result(v, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: job %s is %s\n", v.Job.Machine, v.Job.ID, outcomeOf(&v.Job))
		return err
	})
}

// show asks once and prints the answer, or, with --watch, again and again what
// changed: on a terminal in place, else below each other.
func show[T any](c *cli.Context, path string, v *T, text func(io.Writer, *T) error) error {
	a, err := adminOf(c)
	if err != nil {
		return err
	}
	if !c.Bool("watch") {
		if err := a.call(c.Context, path, nil, v); err != nil {
			return err
		}
		return ui.From(c).Result(v, func(w io.Writer) error { return text(w, v) })
	}
	last := ""
	for {
		*v = *new(T)
		if err := a.call(c.Context, path, nil, v); err != nil {
			return err
		}
		var b strings.Builder
		if c.Bool("json") {
			err = json.NewEncoder(&b).Encode(v)
		} else {
			err = text(&b, v)
		}
		if err != nil {
			return err
		}
		if b.String() != last {
			last = b.String()
			if ui.IsTerminal(c.App.Writer) && !c.Bool("json") {
				fmt.Fprint(c.App.Writer, "\x1b[H\x1b[2J")
			}
			if _, err := io.WriteString(c.App.Writer, last); err != nil {
				return err
			}
		}
		if pause(c.Context) != nil {
			return nil // being told to stop is how it ends
		}
	}
}

func writeMachines(out io.Writer, all []netboot.Machine, now time.Time) error {
	rows, below := [][]string{{"MACHINE", "BOOTS", "LEVEL", "JOB", "STATE", "SEEN", "MODEL", "MAC"}}, [][]string{nil}
	for _, m := range all {
		model, mac := "", ""
		if m.Inventory != nil {
			model = printable(m.Inventory.Model)
		}
		if len(m.Identity.MACs) > 0 {
			mac = m.Identity.MACs[0]
		}
		row, lines := []string{m.Name, m.Boots, m.Level, "", "", ago(m.Seen, now), model, mac}, []string(nil)
		if v := m.Last; v != nil {
			row[3], row[4] = v.ID, stateText(v)
			if v.Reason != "" && v.State != jobs.Booted {
				lines = append(lines, printable(v.Reason))
			}
		}
		if m.Half && m.Boots == "hold" {
			lines = append(lines, "! its disk may be half written: imgpush deploy, or imgpush release")
		}
		if m.Known && !m.InSite {
			lines = append(lines, "! SITE.yaml does not name it any more")
		}
		rows, below = append(rows, row), append(below, lines)
	}
	return writeRows(out, rows, below)
}

func writeJobs(out io.Writer, all []jobs.View, now time.Time) error {
	rows, below := [][]string{{"JOB", "MACHINE", "STATE", "ATTEMPT", "DONE", "RATE", "SINCE", "IMAGE"}}, [][]string{nil}
	for i := range all {
		v := &all[i]
		done, rate := progressText(v)
		rows = append(rows, []string{v.ID, v.Machine, stateText(v), fmt.Sprint(v.Attempt), done, rate, ago(v.Changed, now), v.Spec.Image.Reference})
		var lines []string
		if v.Reason != "" {
			lines = append(lines, printable(v.Reason))
		}
		below = append(below, lines)
	}
	return writeRows(out, rows, below)
}

func stateText(v *jobs.View) string {
	switch {
	case v.Frozen:
		return "FROZEN"
	case (v.State == jobs.Claimed || v.State == jobs.Writing) && v.LeaseLeft == 0:
		return string(v.State) + ", silent"
	}
	return string(v.State)
}

// progressText gives percent and rate of an attempt that runs.
func progressText(v *jobs.View) (done, rate string) {
	p := v.Progress
	if p == nil || v.State != jobs.Writing {
		return "", ""
	}
	if p.ToWrite > 0 {
		done = fmt.Sprintf("%d %%", min(100, (p.Written+p.Zeroed)*100/p.ToWrite))
	} else {
		done = ui.Bytes(p.Written)
	}
	return done, ui.Bytes(int64(p.Rate)) + "/s"
}

func writeJob(out io.Writer, a *netboot.JobAnswer) error {
	v := &a.Job
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(out, "%-10s %s\n", name, printable(text))
		}
	}
	line("job", v.ID)
	line("machine", v.Machine)
	line("state", jobNote(v))
	line("image", v.Spec.Image.Reference+"@"+v.Spec.Image.Digest)
	line("asked", v.Created.Format(time.RFC3339)+" by "+v.By)
	line("disk", v.Spec.Disk)
	if d := v.Disk; d != nil {
		line("", fmt.Sprintf("%s, %s, %s %s", d.Name, ui.Bytes(d.Size), d.Model, d.Serial))
	}
	for _, name := range slices.Sorted(maps.Keys(v.Spec.Config)) {
		line(name, v.Spec.Config[name])
	}
	if done, rate := progressText(v); done != "" {
		line("written", done+" at "+rate)
	}
	for _, w := range v.Warnings {
		line("warning", w)
	}
	for _, e := range a.Events {
		if _, err := fmt.Fprintf(out, "%s  %d  %8.1f s  %-10s %-8s %s\n", e.At.Format("15:04:05"), e.Attempt, e.Uptime, printable(e.Step), printable(e.Event.State), printable(e.Message)); err != nil {
			return err
		}
	}
	return nil
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := max(0, now.Sub(t))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// printable takes out what a terminal would obey: agents are not believed.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' && c != '\n' && c != '\t' || c >= 0x7f && c < 0xa0 {
			return -1
		}
		return c
	}, s)
}
