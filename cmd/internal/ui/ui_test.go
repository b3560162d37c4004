package ui

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// run executes a small app as Main does, and returns its exit code and streams.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	app := &cli.App{Name: "tool", Writer: &out, ErrWriter: &errs, Commands: []*cli.Command{{
		Name:  "work",
		Flags: []cli.Flag{&cli.IntFlag{Name: "n"}},
		Action: func(c *cli.Context) error {
			talk := From(c)
			step := talk.Step("carry")
			step.Set(512, 2048)
			switch c.Int("n") {
			case 1:
				err := Fail(ExitTarget, errors.New("disk: too small"), "use a larger one")
				step.End(err)
				return err
			case 2:
				return fmt.Errorf("outer: %w", Fail(ExitTrust, errors.New("not signed"), ""))
			case 3:
				return Usagef(c, "n is %d", 3)
			case 4:
				return fmt.Errorf("stopped: %w", context.Canceled)
			}
			step.Note("all of it")
			step.End(nil)
			return talk.Result(map[string]int{"carried": 512}, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "carried 512")
				return err
			})
		},
	}}}
	args = append([]string{"tool"}, args...)
	err := Run(t.Context(), app, args)
	code = Report(&errs, &out, err, jsonWanted(args))
	return code, out.String(), errs.String()
}

func TestExitCodesAndStreams(t *testing.T) {
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // what each must contain
	}{
		{"work", 0, "carried 512\n", "carry      done in "},
		{"work --quiet", 0, "carried 512\n", ""},
		{"work --n 1", ExitTarget, "", "error: disk: too small\ntry: use a larger one\n"},
		{"work --n 2", ExitTrust, "", "error: outer: not signed\n"},
		{"work --n 3", ExitUsage, "", "error: n is 3\ntry: see 'tool work --help'\n"},
		{"work --n 4", ExitInterrupted, "", "error: stopped: interrupted\n"},
		{"work --n x", ExitUsage, "", `invalid value "x" for flag -n`},
		{"work --m 1", ExitUsage, "", "tool work has no flag --m\ntry: see 'tool work --help'"},
		{"work --qiuet", ExitUsage, "", "tool work has no flag --qiuet\ntry: --quiet, or see 'tool work --help'"},
		{"walk", ExitUsage, "", "try: tool work, or"},
		{"frobnicate", ExitUsage, "", "no command \"frobnicate\"\ntry: 'tool --help' lists the commands"},
		{"work arg --n 1", ExitTarget, "", "error: disk: too small"},
		{"work arg -n=1", ExitTarget, "", "error: disk: too small"},
		{"work --quiet arg --n 2 more", ExitTrust, "", "not signed"},
		{"work -- --n 1", 0, "carried", ""},
		{"wrok", ExitUsage, "", "error: no command \"wrok\"\ntry: tool work, or 'tool --help' lists the commands"},
	} {
		code, stdout, stderr := run(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%s: got %d\nstdout %q\nstderr %q\nwant %d, %q, %q", c.args, code, stdout, stderr, c.code, c.stdout, c.stderr)
		}
		if c.args == "work --quiet" && stderr != "" {
			t.Errorf("%s: said %q", c.args, stderr)
		}
	}
}

func TestJSON(t *testing.T) {
	_, stdout, _ := run(t, "work", "--json", "--quiet")
	var got map[string]int
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || got["carried"] != 512 {
		t.Errorf("result %q: %v", stdout, err)
	}
	code, _, stderr := run(t, "work", "--json", "--quiet", "--n", "1")
	var e struct {
		Error, Hint string
		ExitCode    int
	}
	if err := json.Unmarshal([]byte(stderr), &e); err != nil {
		t.Fatalf("%q: %v", stderr, err)
	}
	if e.Error != "disk: too small" || e.Hint != "use a larger one" || e.ExitCode != ExitTarget || code != ExitTarget {
		t.Errorf("got %+v, exit %d", e, code)
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 10 << 20: "10.0 MiB", 400 << 20: "400 MiB", 1 << 40: "1.00 TiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		5 * time.Millisecond: "5 ms", 1500 * time.Millisecond: "1.5 s", 125 * time.Second: "2m05s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestWhatBreaksInAnInterruptionIsAnInterruption(t *testing.T) {
	var errs bytes.Buffer
	app := &cli.App{Name: "tool", Writer: io.Discard, ErrWriter: &errs, Commands: []*cli.Command{{Name: "work", Action: func(c *cli.Context) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			return err
		}
		<-c.Context.Done()
		return errors.New("child: signal: killed")
	}}}}
	code := Main(app, []string{"tool", "work"})
	if want := "error: interrupted: child: signal: killed\n"; code != ExitInterrupted || errs.String() != want {
		t.Errorf("exit code %d, %q; want %d, %q", code, errs.String(), ExitInterrupted, want)
	}
}

func TestRepeatedFlagsKeepTheirText(t *testing.T) {
	var got []string
	app := &cli.App{Name: "tool", Writer: io.Discard, ErrWriter: io.Discard, Commands: []*cli.Command{{
		Name:  "work",
		Flags: []cli.Flag{&cli.StringSliceFlag{Name: "set"}},
		Action: func(c *cli.Context) error {
			got = c.StringSlice("set")
			return nil
		},
	}}}
	if err := Run(t.Context(), app, []string{"tool", "work", "--set", "console=ttyS0,115200", "--set=login: "}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"console=ttyS0,115200", "login: "}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
