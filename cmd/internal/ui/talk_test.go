package ui

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

func TestCutCountsColumnsNotBytes(t *testing.T) {
	for _, c := range []struct {
		line    string
		columns int
		want    string
	}{
		{"write", 5, "write"}, {"write", 4, "wri…"}, {"größer", 6, "größer"}, {"größer", 5, "größ…"}, {"write", 1, "…"}, {"", 0, ""},
	} {
		if got := cut(c.line, c.columns); got != c.want {
			t.Errorf("cut(%q, %d) = %q, want %q", c.line, c.columns, got, c.want)
		}
	}
}

func TestStepSaysWhatItsBytesAre(t *testing.T) {
	var out bytes.Buffer
	talk := &Talk{out: &out}
	step := talk.Step("look").Counts("read")
	step.Set(1024, 4096)
	step.Note("2 of them new")
	if got, want := step.moved(time.Second)+step.eta(time.Second)+step.noted(), ", 1.00 KiB of 4.00 KiB read (1.00 KiB/s), 25 %, 3.0 s left, 2 of them new"; got != want {
		t.Errorf("running: got %q, want %q", got, want)
	}
	step.End(nil)
	talk.close()
	if got := out.String(); !strings.HasPrefix(got, "look       done in ") || !strings.HasSuffix(got, " of 4.00 KiB read, 2 of them new\n") {
		t.Errorf("ended: got %q", got)
	}
}

func TestCompletionRunsNothing(t *testing.T) {
	for _, c := range []struct{ words, want string }{
		{"", "carry\nclean\n"},
		{"c", "carry\nclean\n"},
		{"cl", "clean\n"},
		{"x", ""},
		{"carry ", ""},
		{"carry a.yaml --", "--number\n--json\n--quiet\n--help\n"},
		{"carry --n", "--number\n"},
		{"carry -- --", "--number\n--json\n--quiet\n--help\n"},
		{"nothing --", ""},
	} {
		var out bytes.Buffer
		ran := func(*cli.Context) error { t.Errorf("%q ran a command", c.words); return nil }
		app := &cli.App{Name: "tool", Writer: &out, ErrWriter: &out, Commands: []*cli.Command{
			{Name: "carry", Flags: []cli.Flag{&cli.IntFlag{Name: "number", Aliases: []string{"n"}}}, Action: ran},
			{Name: "clean", Action: ran},
		}}
		args := append([]string{"tool"}, strings.Split(c.words, " ")...)
		if err := Run(t.Context(), app, append(args, completeFlag)); err != nil || out.String() != c.want {
			t.Errorf("%q: got %q, %v, want %q", c.words, out.String(), err, c.want)
		}
	}
}
