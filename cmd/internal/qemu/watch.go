package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Expectation is what the console of a guest must and must not say.
type Expectation struct {
	Expect  []string // each must appear, in any order
	Reject  []string // none may appear before that
	Timeout time.Duration
}

// Outcome is how a watched boot went.
type Outcome struct {
	Passed  bool
	Reason  string                   // of a failure
	Seen    map[string]time.Duration // expected text to the time it appeared
	Console string                   // the last 64 KiB, control sequences removed
	Took    time.Duration
}

// tailSize is how much of a console is kept.
const tailSize = 64 << 10

// Watch boots the guest and reads its serial console until every expected text
// appeared, a rejected one did, the guest ended, or the time is up; then it
// stops the guest. Everything the guest says goes to log as it comes. An error
// means that the guest could not be run, not that it failed the expectation.
func (m Machine) Watch(ctx context.Context, want Expectation, log io.Writer) (*Outcome, error) {
	begun := time.Now()
	run, cancel := context.WithTimeout(ctx, want.Timeout)
	defer cancel()
	cmd, cleanup, err := m.command(run, "-serial", "stdio")
	if err != nil {
		return nil, err
	}
	defer cleanup()
	w := newWatcher(want, log)
	var complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &complaints
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case <-w.decided:
		cancel()
		<-exited
	case err = <-exited:
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	out := w.outcome()
	out.Took = time.Since(begun)
	if out.Passed || out.Reason != "" {
		return out, nil
	}
	missing := strings.Join(quote(w.missing()), ", ")
	switch {
	case run.Err() != nil:
		out.Reason = fmt.Sprintf("%s did not appear within %s", missing, want.Timeout)
	case err != nil && len(out.Console) == 0:
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(m.Emulator), err, strings.TrimSpace(complaints.String()))
	default:
		out.Reason = fmt.Sprintf("the machine ended before %s appeared", missing)
	}
	return out, nil
}

func quote(texts []string) []string {
	for i, s := range texts {
		texts[i] = fmt.Sprintf("%q", s)
	}
	return texts
}

// watcher is the io.Writer that a console goes through. decided is closed when
// nothing further can change the outcome.
type watcher struct {
	want    Expectation
	log     io.Writer
	begun   time.Time
	decided chan struct{}

	mu       sync.Mutex
	filter   ansi
	tail     []byte // plain text
	seen     map[string]time.Duration
	rejected string
	over     bool
}

func newWatcher(want Expectation, log io.Writer) *watcher {
	return &watcher{want: want, log: log, begun: time.Now(), decided: make(chan struct{}), seen: map[string]time.Duration{}}
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.log.Write(p); err != nil {
		return 0, err
	}
	longest := 1
	for _, s := range slices.Concat(w.want.Expect, w.want.Reject) {
		longest = max(longest, len(s))
	}
	from := max(0, len(w.tail)-longest+1)
	w.tail = w.filter.strip(w.tail, p)
	if w.over {
		return len(p), nil
	}
	fresh := w.tail[min(from, len(w.tail)):]
	for _, s := range w.want.Expect {
		if _, ok := w.seen[s]; !ok && bytes.Contains(fresh, []byte(s)) {
			w.seen[s] = time.Since(w.begun)
		}
	}
	for _, s := range w.want.Reject {
		if w.rejected == "" && bytes.Contains(fresh, []byte(s)) {
			w.rejected = s
		}
	}
	if w.rejected != "" || len(w.seen) == len(uniq(w.want.Expect)) {
		w.over = true
		close(w.decided)
	}
	if len(w.tail) > 2*tailSize {
		w.tail = append(w.tail[:0], w.tail[len(w.tail)-tailSize:]...)
	}
	return len(p), nil
}

func uniq(texts []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(texts)))
}

func (w *watcher) met() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.over && w.rejected == ""
}

func (w *watcher) missing() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.want.Expect {
		if _, ok := w.seen[s]; !ok {
			out = append(out, s)
		}
	}
	return out
}

func (w *watcher) outcome() *Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := &Outcome{Seen: w.seen, Console: string(w.tail[max(0, len(w.tail)-tailSize):])}
	switch {
	case w.rejected != "":
		out.Reason = fmt.Sprintf("%q appeared on the console", w.rejected)
	case w.over:
		out.Passed = true
	}
	return out
}

// ansi removes the control sequences of ECMA-48 (firmware and systemd colour
// their output, which would tear words apart) and carriage returns.
type ansi struct{ state byte }

// strip appends the plain text of p to out.
func (a *ansi) strip(out, p []byte) []byte {
	for _, c := range p {
		switch {
		case a.state == 'E' && c == '[':
			a.state = '['
		case a.state == 'E' && c == ']':
			a.state = ']'
		case a.state == 'E' && c >= 0x20 && c <= 0x2f: // an intermediate byte: the final one follows
		case a.state == 'E':
			a.state = 0
		case a.state == '[' && c >= 0x40 && c <= 0x7e:
			a.state = 0
		case a.state == ']' && (c == 7 || c == 0x1b): // BEL, or ESC of ESC \
			a.state = 0
			if c == 0x1b {
				a.state = 'E'
			}
		case a.state != 0:
		case c == 0x1b:
			a.state = 'E'
		case c == '\n' || c == '\t' || c >= 0x20:
			out = append(out, c)
		}
	}
	return out
}
