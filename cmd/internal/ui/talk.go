package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// Talk is where a command tells what it does. On a terminal the running steps
// are redrawn ten times a second; elsewhere a step is a line when it ends, and
// one every ten seconds while it runs.
type Talk struct {
	out    io.Writer
	result io.Writer
	json   bool
	quiet  bool
	term   *os.File // where out is a terminal that can redraw, else nil
	asks   bool

	mu    sync.Mutex // guards what follows and the writes to out
	live  []*Step
	drawn int // lines of the last redraw
	stop  chan struct{}
	done  chan struct{}
}

// From makes the Talk of a command from its --json and --quiet flags.
func From(c *cli.Context) *Talk {
	t := &Talk{out: c.App.ErrWriter, result: c.App.Writer, json: c.Bool("json"), quiet: c.Bool("quiet")}
	if f, ok := t.out.(*os.File); ok && isTerminal(f) {
		t.term = f
	}
	if f, ok := c.App.Reader.(*os.File); ok && t.term != nil {
		t.asks = isTerminal(f)
	}
	if os.Getenv("TERM") == "dumb" {
		t.term = nil // it cannot redraw
	}
	return t
}

// IsTerminal reports whether what is written to w is seen by somebody.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isTerminal(f)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// width returns how many columns the terminal has now; it may be resized.
func (t *Talk) width() int {
	size, err := unix.IoctlGetWinsize(int(t.term.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80
	}
	return int(size.Col)
}

// cut shortens a line to so many columns, so that it is one line on the
// terminal: redraws count lines.
func cut(line string, columns int) string {
	if utf8.RuneCountInString(line) <= columns {
		return line
	}
	return string([]rune(line)[:max(columns-1, 0)]) + "…"
}

// CanAsk reports whether somebody is there to be asked: both what is said and
// what is answered are a terminal's.
func (t *Talk) CanAsk() bool { return t.asks }

// Sayf prints one line of talk.
func (t *Talk) Sayf(format string, args ...any) {
	if t.quiet {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erase()
	fmt.Fprintf(t.out, format+"\n", args...)
	t.draw(time.Now())
}

// Result prints what the command was asked for: v as indented JSON with
// --json, else whatever text writes.
func (t *Talk) Result(v any, text func(io.Writer) error) error {
	t.close()
	if !t.json {
		if text == nil {
			return nil
		}
		return text(t.result)
	}
	e := json.NewEncoder(t.result)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Step is one thing that a command does. Its counters may be set from any
// goroutine; nobody waits for the terminal.
type Step struct {
	talk        *Talk
	name, verb  string
	begun       time.Time
	done, total atomic.Int64
	note        atomic.Pointer[string]
	said        time.Time // when the last plain line was printed
}

// Step begins a step.
func (t *Talk) Step(name string) *Step {
	s := &Step{talk: t, name: name, begun: time.Now()}
	s.said = s.begun
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live = append(t.live, s)
	if t.stop == nil && !t.quiet {
		t.stop, t.done = make(chan struct{}), make(chan struct{})
		go t.tick(t.stop, t.done)
	}
	return s
}

// Set says how many bytes of how many are done; a total of 0 is unknown.
func (s *Step) Set(done, total int64) {
	s.done.Store(done)
	s.total.Store(total)
}

// Counts says what happens to the bytes that Set counts: "read". It belongs
// right behind Talk.Step.
func (s *Step) Counts(verb string) *Step {
	s.talk.mu.Lock()
	defer s.talk.mu.Unlock()
	s.verb = " " + verb
	return s
}

// Note says what is being done right now, in a few words.
func (s *Step) Note(text string) { s.note.Store(&text) }

// End finishes the step and prints its closing line: how long it took, how
// much it moved, and the last note. It returns the time since Step.
func (s *Step) End(err error) time.Duration {
	took := time.Since(s.begun)
	t := s.talk
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erase()
	for i, l := range t.live {
		if l == s {
			t.live = append(t.live[:i], t.live[i+1:]...)
			break
		}
	}
	if !t.quiet {
		mark := "done"
		if err != nil {
			mark = "stopped"
		}
		fmt.Fprintf(t.out, "%-10s %s in %s%s\n", s.name, mark, Duration(took), s.moved(took)+s.noted())
	}
	t.draw(time.Now())
	return took
}

func (s *Step) moved(took time.Duration) (out string) {
	if done, total := s.done.Load(), s.total.Load(); done > 0 {
		out = ", " + Bytes(done)
		if total > done {
			out += " of " + Bytes(total)
		}
		out += s.verb
		if took > 100*time.Millisecond {
			out += fmt.Sprintf(" (%s/s)", Bytes(int64(float64(done)/took.Seconds())))
		}
	}
	return out
}

func (s *Step) noted() string {
	if n := s.note.Load(); n != nil && *n != "" {
		return ", " + *n
	}
	return ""
}

func (t *Talk) tick(stop, done chan struct{}) {
	defer close(done)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case now := <-ticker.C:
			t.mu.Lock()
			t.erase()
			t.draw(now)
			t.mu.Unlock()
		}
	}
}

// close ends the redraws and waits for the goroutine that makes them.
func (t *Talk) close() {
	t.mu.Lock()
	t.erase()
	stop, done := t.stop, t.done
	t.stop = nil
	t.mu.Unlock()
	if stop != nil {
		close(stop)
		<-done
	}
}

// erase takes the drawn lines away; the caller holds mu.
func (t *Talk) erase() {
	if t.term != nil && t.drawn > 0 {
		fmt.Fprintf(t.out, "\x1b[%dA\x1b[J", t.drawn)
	}
	t.drawn = 0
}

// draw shows the running steps; the caller holds mu.
func (t *Talk) draw(now time.Time) {
	if t.quiet {
		return
	}
	for _, s := range t.live {
		took := now.Sub(s.begun)
		line := fmt.Sprintf("%-10s %s%s%s%s", s.name, Duration(took), s.moved(took), s.eta(took), s.noted())
		switch {
		case t.term != nil:
			fmt.Fprintln(t.out, cut(line, t.width()))
			t.drawn++
		case now.Sub(s.said) >= 10*time.Second:
			s.said = now
			fmt.Fprintln(t.out, line)
		}
	}
}

func (s *Step) eta(took time.Duration) string {
	done, total := s.done.Load(), s.total.Load()
	if done <= 0 || total <= done || took < time.Second {
		return ""
	}
	left := time.Duration(float64(took) * float64(total-done) / float64(done))
	return fmt.Sprintf(", %d %%, %s left", done*100/total, Duration(left))
}

// Bytes gives a size in binary units with three significant digits.
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n)
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	i := -1
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f %s", f, units[i])
	case f >= 10:
		return fmt.Sprintf("%.1f %s", f, units[i])
	}
	return fmt.Sprintf("%.2f %s", f, units[i])
}

// ParseBytes reads what Bytes writes, and 20G (1000) or 20GiB (1024) without a blank.
func ParseBytes(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMGTiB ")
	unit := strings.TrimSuffix(strings.TrimSpace(s[len(digits):]), "B")
	factor, ok := map[string]float64{"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}[unit]
	f, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || !(f >= 0) || f > (1<<62)/factor {
		return 0, fmt.Errorf("%q is not a size such as 5GiB", s)
	}
	return int64(f * factor), nil
}

// Duration gives a time with no more digits than matter.
func Duration(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
}
