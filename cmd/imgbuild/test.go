package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func testCommand() *cli.Command {
	return &cli.Command{
		Name:      "test",
		Usage:     "boot an image headless, check its console, exit",
		ArgsUsage: "REF | --disk FILE",
		Description: `Boots through UEFI firmware, or a BIOS, and watches the serial console for what the
recipe's test section expects and rejects; the flags replace that section's entries. The
guest's network reaches nothing outside. On failure the console's tail is printed.

  imgbuild test oci:images:debian-server --junit results.xml
  imgbuild test oci:images:hybrid --firmware bios
  imgbuild test --disk target.raw --expect "login:" --reject "Kernel panic"`,
		Flags: append(vmFlags(),
			&cli.StringSliceFlag{Name: "expect", Usage: "`TEXT` that must appear; may be repeated"},
			&cli.StringSliceFlag{Name: "reject", Usage: "`TEXT` that must not appear before that; may be repeated"},
			&cli.DurationFlag{Name: "timeout", Usage: "give up after this `TIME`, such as 90s or 10m", DefaultText: "the recipe's, else 5m"},
			&cli.StringFlag{Name: "junit", Usage: "write the result as JUnit XML to `FILE`"},
			&cli.StringFlag{Name: "log", Usage: "write the whole console to `FILE`"}),
		Action: runTest,
	}
}

// testResult is what `imgbuild test --json` prints.
type testResult struct {
	Subject string           `json:"subject"`
	Passed  bool             `json:"passed"`
	Reason  string           `json:"reason,omitempty"`
	Accel   string           `json:"accel"`
	Seconds float64          `json:"seconds"`
	Seen    map[string]int64 `json:"seenAfterMilliseconds"`
}

func runTest(c *cli.Context) (err error) {
	talk := ui.From(c)
	var want qemu.Expectation
	g, err := newGuest(c, talk, func(image *oci.Config) (err error) {
		for _, flag := range []string{"junit", "log"} {
			if path := c.String(flag); path != "" {
				if _, err := os.Stat(filepath.Dir(path)); err != nil {
					return ui.Fail(ui.ExitUsage, fmt.Errorf("--%s: %w", flag, err), "")
				}
			}
		}
		want, err = expectation(c, image)
		return err
	})
	if err != nil {
		return err
	}
	defer g.close()
	g.Isolated = true
	log := io.Discard
	if path := c.String("log"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		log = f
	}
	step := talk.Step("boot")
	step.Note(fmt.Sprintf("with %s, at most %s", g.Accel, want.Timeout))
	outcome, err := g.Watch(c.Context, want, log)
	if err != nil {
		step.End(err)
		return err
	}
	failure := fmt.Errorf("%s: %s", subject(c), outcome.Reason)
	if outcome.Passed {
		step.Note("as expected")
		failure = nil
	}
	step.End(failure)
	result := testResult{Subject: subject(c), Passed: outcome.Passed, Reason: outcome.Reason, Accel: g.Accel,
		Seconds: outcome.Took.Seconds(), Seen: map[string]int64{}}
	for text, after := range outcome.Seen {
		result.Seen[text] = after.Milliseconds()
	}
	if path := c.String("junit"); path != "" {
		if err := writeJUnit(path, result, outcome); err != nil {
			return err
		}
	}
	if !outcome.Passed && !c.Bool("json") {
		console := "--- the console's last lines\n" + lastLines(outcome.Console, 40) + "\n---"
		if strings.TrimSpace(outcome.Console) == "" {
			console = "the console showed nothing"
		}
		fmt.Fprintln(c.App.ErrWriter, console)
	}
	if err := talk.Result(result, func(w io.Writer) error {
		if !outcome.Passed {
			return nil
		}
		_, err := fmt.Fprintf(w, "%s: passed in %s\n", result.Subject, ui.Duration(outcome.Took))
		return err
	}); err != nil {
		return err
	}
	if !outcome.Passed {
		return ui.Fail(ui.ExitOther, failure, "imgbuild boot shows the same machine with its console on this terminal")
	}
	return nil
}

func subject(c *cli.Context) string {
	if d := c.String("disk"); d != "" {
		return d
	}
	return c.Args().First()
}

// expectation is the image's own test section under the command line's flags;
// image is nil for a raw disk.
func expectation(c *cli.Context, image *oci.Config) (qemu.Expectation, error) {
	want := qemu.Expectation{Timeout: 5 * time.Minute}
	if image != nil && image.Test != nil {
		t := image.Test
		want = qemu.Expectation{Expect: t.Expect, Reject: t.Reject, Timeout: time.Duration(t.TimeoutSeconds) * time.Second}
	}
	if c.IsSet("expect") {
		want.Expect = c.StringSlice("expect")
	}
	if c.IsSet("reject") {
		want.Reject = c.StringSlice("reject")
	}
	if c.IsSet("timeout") {
		want.Timeout = c.Duration("timeout")
	}
	if want.Timeout <= 0 {
		return want, ui.Usagef(c, "--timeout %s: want a time above 0", want.Timeout)
	}
	if len(want.Expect) == 0 {
		why := "the image has no test section"
		if image == nil {
			why = "a raw disk says nothing"
		}
		return want, ui.Usagef(c, "nothing to expect: %s, and there is no --expect", why)
	}
	return want, nil
}

// JUnit's XML, as CI systems read it: one test case, the boot.
type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Time     string      `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
	Output   string      `xml:"system-out"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitFailure `xml:"failure,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
}

func writeJUnit(path string, r testResult, o *qemu.Outcome) error {
	s := junitSuite{Name: "imgbuild test " + r.Subject, Tests: 1, Time: fmt.Sprintf("%.3f", r.Seconds), Output: printable(o.Console)}
	boot := junitCase{Class: r.Subject, Name: "boots as expected", Time: s.Time}
	if !r.Passed {
		s.Failures = 1
		boot.Failure = &junitFailure{Message: r.Reason}
	}
	s.Cases = []junitCase{boot}
	b, err := xml.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("junit: %w", err)
	}
	return os.WriteFile(path, append([]byte(xml.Header), append(b, '\n')...), 0o644)
}

// printable drops what XML 1.0 cannot hold.
func printable(s string) string {
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r == '\n' || r == '\t' || r >= 0x20 && r != 0xfffd {
			out = append(out, r)
		}
	}
	return string(out)
}
