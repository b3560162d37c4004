package sandbox

import (
	"bytes"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
)

// output takes what a step prints, line by line, and lets no secret through.
type output struct {
	o      Options
	hide   *strings.Replacer
	rest   []byte // the beginning of a line
	last   []string
	failed error
}

// Bounds of a line, and of what an error quotes.
const (
	maxLine   = 64 << 10
	tailLines = 20
	tailLine  = 400
)

func newOutput(o Options, secrets []Secret) *output {
	var pairs []string
	for _, s := range secrets {
		for line := range strings.Lines(string(trimmed(s.Value))) {
			if line = strings.TrimSpace(line); len(line) >= minSecret && !strings.HasPrefix(line, "-----") {
				pairs = append(pairs, line, "***")
			}
		}
	}
	return &output{o: o, hide: strings.NewReplacer(pairs...)}
}

func (w *output) write(p []byte) error {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		switch {
		case i >= 0:
			w.line(w.rest[:i+1])
			w.rest = w.rest[i+1:]
		case len(w.rest) > maxLine:
			w.line(w.rest[:maxLine])
			w.rest = w.rest[maxLine:]
		default:
			return w.failed
		}
	}
}

func (w *output) line(b []byte) {
	text := w.hide.Replace(string(b))
	if w.o.Log != nil && w.failed == nil {
		_, w.failed = w.o.Log.Write([]byte(text))
	}
	text = strings.TrimRight(text, "\r\n")
	if text == "" {
		return
	}
	if len(text) > tailLine {
		text = strings.ToValidUTF8(text[:tailLine], "") + "…"
	}
	if w.o.Line != nil {
		w.o.Line(text)
	}
	w.last = append(w.last, text)
	if len(w.last) > tailLines {
		w.last = w.last[1:]
	}
}

// end takes a last line that has no end.
func (w *output) end() error {
	if len(w.rest) > 0 {
		w.line(append(w.rest, '\n'))
		w.rest = nil
	}
	return w.failed
}

func (w *output) tail() string { return strings.Join(w.last, "\n") }

// foreground remembers which processes a terminal listens to; a shell in the
// sandbox makes it listen to itself.
func foreground(terminal *os.File) (restore func()) {
	fd := int(terminal.Fd())
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil {
		return func() {}
	}
	return func() {
		signal.Ignore(unix.SIGTTOU) // this process is in the background now
		defer signal.Reset(unix.SIGTTOU)
		_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, group) // the terminal may be gone
	}
}
