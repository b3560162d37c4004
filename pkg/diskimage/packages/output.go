package packages

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// output reads what mmdebstrap, apt and dpkg write for people: it finds the
// steps in it, and the reason of a failure.
type output struct {
	progress func(Event)
	log      io.Writer
	now      func() time.Time

	mu      sync.Mutex
	partial []byte
	tail    []string // the last lines
	notable []string // lines that look like errors, the first ones
	event   Event
	total   int // packages planned
	missing int // of them to be downloaded
	setUp   int
	steps   []StepTime
	since   time.Time
}

const (
	tailLines    = 25
	notableLines = 200
)

var (
	reGet    = regexp.MustCompile(`^Get:\d+ \S+ \S+ \S+ (\S+) \S+ \S+ \[`)
	reUnpack = regexp.MustCompile(`^Unpacking (\S+)`)
	reSetUp  = regexp.MustCompile(`^Setting up (\S+)`)
	reInitrd = regexp.MustCompile(`^update-initramfs: Generating (\S+)`)
)

// Write takes the tools' output in any pieces.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log != nil {
		o.log.Write(p)
	}
	o.partial = append(o.partial, p...)
	for {
		i := bytes.IndexByte(o.partial, '\n')
		if i < 0 {
			break
		}
		o.line(strings.TrimRight(string(o.partial[:i]), "\r"))
		o.partial = o.partial[i+1:]
	}
	if len(o.partial) > maxLine { // not a line: keep the memory bounded
		o.partial = nil
	}
	return len(p), nil
}

func (o *output) line(s string) {
	if len(o.tail) == tailLines {
		o.tail = append(o.tail[:0], o.tail[1:]...)
	}
	o.tail = append(o.tail, s)
	if len(o.notable) < notableLines && reNotable.MatchString(s) {
		o.notable = append(o.notable, s)
	}
	o.follow(s)
}

// follow turns a line into progress.
func (o *output) follow(s string) {
	if m := reGet.FindStringSubmatch(s); m != nil && o.total > 0 {
		o.step(Download, o.missing, m[1])
		o.event.Done = min(o.event.Done+1, o.missing)
	} else if s == "I: extracting archives..." {
		o.step(Unpack, o.total, "")
	} else if s == "I: installing essential packages..." {
		o.step(Configure, o.total, "")
	} else if m := reUnpack.FindStringSubmatch(s); m != nil {
		o.step(Configure, o.total, m[1])
	} else if m := reSetUp.FindStringSubmatch(s); m != nil {
		o.step(Configure, o.total, m[1])
		o.setUp++
		o.event.Done = o.setUp
	} else if m := reInitrd.FindStringSubmatch(s); m != nil {
		o.step(Initramfs, 0, m[1])
	} else if s == "I: creating tarball..." {
		o.step(Tar, 0, "")
	} else {
		return
	}
	if o.progress != nil {
		o.progress(o.event)
	}
}

// step makes s the current step. A step that comes back, as downloads do, adds
// to its time.
func (o *output) step(s Step, total int, item string) {
	if o.event.Step != s {
		o.stamp()
		o.event = Event{Step: s}
		if s == Configure {
			o.event.Done = o.setUp
		}
	}
	o.event.Total, o.event.Item = total, item
}

func (o *output) stamp() {
	if o.now == nil {
		return
	}
	t := o.now()
	if o.event.Step != "" {
		d := t.Sub(o.since)
		for i := range o.steps {
			if o.steps[i].Step == o.event.Step {
				o.steps[i].Time += d
				d = -1
			}
		}
		if d >= 0 {
			o.steps = append(o.steps, StepTime{o.event.Step, d})
		}
	}
	o.since = t
}

// begin starts the first step.
func (o *output) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.step(Update, 0, "")
	if o.progress != nil {
		o.progress(o.event)
	}
}

// plan says how much there will be to do.
func (o *output) plan(total, missing int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.total, o.missing = total, missing
}

// times ends the last step and returns how long each took.
func (o *output) times() []StepTime {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stamp()
	return o.steps
}
