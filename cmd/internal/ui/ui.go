// Package ui is what imgbuild and imgpush share in talking to people and to
// programs: exit codes, errors with a hint, signals, progress, --json.
//
//	func main() { os.Exit(ui.Main(app(), os.Args)) }
//
//	func write(c *cli.Context) error {
//		talk := ui.From(c)
//		step := talk.Step("write")
//		err := apply(c.Context, step.Set)
//		if step.End(err); err != nil {
//			return ui.Fail(ui.ExitWrite, err, "run the same command again: it resumes")
//		}
//		return talk.Result(report, report.Text)
//	}
//
// stdout is the result, stderr is talk. The package knows nothing of images: it
// imports nothing from pkg/.
package ui

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// The exit codes of both commands. docs/cli.md is the normative list.
const (
	ExitOther       = 1
	ExitUsage       = 2
	ExitRecipe      = 3   // a mistake in a recipe
	ExitSource      = 4   // the source cannot be reached or read
	ExitTrust       = 5   // not trusted
	ExitTarget      = 6   // the target is unsuitable; nothing was written
	ExitWrite       = 7   // a write failed; the disk is left not bootable
	ExitMismatch    = 8   // what was read back is not what was written
	ExitInterrupted = 130 // SIGINT or SIGTERM
)

// Error is an error with an exit code and what to try next.
type Error struct {
	Code int
	Err  error
	Hint string // one line; may be empty
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Fail wraps err for the given exit code; nil stays nil.
func Fail(code int, err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err, Hint: hint}
}

// Usagef reports a mistake on the command line.
func Usagef(c *cli.Context, format string, args ...any) error {
	return Fail(ExitUsage, fmt.Errorf(format, args...), fmt.Sprintf("see '%s --help'", c.Command.HelpName))
}

// Code returns the exit code that err asks for.
func Code(err error) int {
	switch e, ok := errors.AsType[*Error](err); {
	case err == nil:
		return 0
	case ok:
		return e.Code
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	}
	return ExitOther
}

// Main runs app and returns its exit code. SIGINT and SIGTERM cancel the
// context of the running command, which then cleans up and returns; a second
// one ends the process at once.
func Main(app *cli.App, args []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		s := <-signals
		signal.Reset(os.Interrupt, syscall.SIGTERM) // the next one kills
		cancel(interruption{s})
	}()
	err := Run(ctx, app, args)
	if ctx.Err() != nil && err != nil && Code(err) == ExitOther {
		err = Fail(ExitInterrupted, fmt.Errorf("interrupted: %w", err), "") // what broke, broke because of that
	}
	return Report(app.ErrWriter, app.Writer, err, jsonWanted(args))
}

// interruption is why a context was cancelled: a signal.
type interruption struct{ signal os.Signal }

func (i interruption) Error() string {
	if s, ok := i.signal.(syscall.Signal); ok {
		return "by " + unix.SignalName(s)
	}
	return "by " + i.signal.String()
}

// Run runs app with the settings that both commands share: errors come back
// as values, never as an exit in the middle.
func Run(ctx context.Context, app *cli.App, args []string) error {
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = usageError
	if app.Version == "" {
		app.Version = version()
	}
	app.HideHelpCommand = true
	app.CustomAppHelpTemplate = cli.AppHelpTemplate
	app.CommandNotFound = nil
	app.DisableSliceFlagSeparator = true // a comma is part of the text: --set console=ttyS0,115200
	app.Action = func(c *cli.Context) error {
		if !c.Args().Present() {
			return cli.ShowAppHelp(c)
		}
		if args := c.Args().Slice(); args[0] == "help" {
			if len(args) > 1 && app.Command(args[1]) != nil {
				return cli.ShowCommandHelp(c, args[1])
			}
			return cli.ShowAppHelp(c)
		}
		return Fail(ExitUsage, fmt.Errorf("no command %q", c.Args().First()), suggestion(app, c.Args().First()))
	}
	for _, cmd := range app.Commands {
		cmd.OnUsageError = usageError
		cmd.HideHelpCommand = true
		if !cmd.HideHelp {
			cmd.Flags = append(cmd.Flags, JSONFlag, QuietFlag)
		}
		for _, f := range cmd.Flags {
			switch f := f.(type) {
			case *cli.BoolFlag:
				f.DisableDefaultText = true
			case *cli.StringSliceFlag:
				f.KeepSpace = true
			}
		}
	}
	if app.Writer == nil {
		app.Writer = os.Stdout
	}
	if app.ErrWriter == nil {
		app.ErrWriter = os.Stderr
	}
	if n := len(args) - 1; n > 0 && args[n] == completeFlag {
		complete(app.Writer, app, args[1:n])
		return nil
	}
	return app.RunContext(ctx, flagsFirst(app, args))
}

// version is what the Go command recorded: the release, or the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// JSONFlag and QuietFlag are on every command.
var (
	JSONFlag  = &cli.BoolFlag{Name: "json", Usage: "print the result as JSON on stdout, an error as JSON on stderr"}
	QuietFlag = &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress on stderr"}
)

func jsonWanted(args []string) bool {
	for _, a := range args {
		switch a {
		case "--json", "-json", "--json=true":
			return true
		case "--":
			return false
		}
	}
	return false
}

// Displayer is an error with a longer form for people: one that shows the text
// it speaks of.
type Displayer interface {
	error
	Display() string
}

// Detailed is an error with parts that programs may want: a value for JSON.
type Detailed interface {
	error
	Details() any
}

// Report prints err, if any, and returns the exit code.
func Report(stderr, stdout io.Writer, err error, asJSON bool) int {
	code := Code(err)
	if err == nil {
		return 0
	}
	hint := ""
	if e, ok := errors.AsType[*Error](err); ok {
		hint = e.Hint
	}
	message := func(text string) string {
		return strings.ReplaceAll(text, context.Canceled.Error(), "interrupted") // people cancel no contexts
	}
	if asJSON {
		report := map[string]any{"error": message(err.Error()), "exitCode": code, "hint": hint}
		if d, ok := errors.AsType[Detailed](err); ok {
			report["details"] = d.Details()
		}
		b, _ := json.Marshal(report)
		fmt.Fprintln(stderr, string(b))
		return code
	}
	text := err.Error()
	if d, ok := errors.AsType[Displayer](err); ok {
		text = d.Display()
	}
	fmt.Fprintf(stderr, "error: %s\n", message(text))
	if hint != "" {
		fmt.Fprintf(stderr, "try: %s\n", hint)
	}
	return code
}
