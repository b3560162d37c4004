package deliver

import (
	"sync/atomic"
	"time"
)

// Phase is what Apply, or a function around it, is doing.
type Phase int32

// The phases, in order.
const (
	PhaseLook   Phase = iota // hashing what the target holds
	PhaseFetch               // getting what the commit writes
	PhaseClear               // making it not bootable
	PhaseCopy                // copying what it holds elsewhere
	PhaseBody                // writing
	PhaseVerify              // reading back
	PhaseCommit              // making it bootable
	PhaseDone
)

var phaseNames = [...]string{"look", "fetch", "clear", "copy", "body", "verify", "commit", "done"}

// String returns one lower-case word.
func (p Phase) String() string { return phaseNames[p] }

// Progress is counters that someone may show while work goes on. All are
// bytes. Nobody waits for whoever shows them.
type Progress struct {
	phase    atomic.Int32
	Looked   atomic.Int64 // read by Look and Check
	Fetched  atomic.Int64 // from the source, compressed
	Copied   atomic.Int64 // from one place of the target to another, and written
	Written  atomic.Int64 // data, to the target
	Zeroed   atomic.Int64
	ReadBack atomic.Int64
}

// Phase returns what is being done.
func (p *Progress) Phase() Phase { return Phase(p.phase.Load()) }

// meter is one target's measurements: the counters and where time went. Several
// targets have the meter of what is fetched for all of them in common.
type meter struct {
	*Progress
	wire                *meter // of the fetches; of a single target it is this one
	now                 func() time.Time
	source, cores, disk atomic.Int64 // nanoseconds that workers spent, summed
	decoded, overlaid   atomic.Int64
	retries             atomic.Int64
	phases              []PhaseTime
	began               time.Time
	start               Moved // counters when the phase began
}

func newMeter(o Options) *meter {
	m := &meter{Progress: o.Progress, now: o.Now}
	if m.wire = m; m.Progress == nil {
		m.Progress = &Progress{}
	}
	if m.now == nil {
		m.now = func() time.Time { return time.Time{} }
	}
	return m
}

// moved reads the counters.
func (m *meter) moved() Moved {
	return Moved{m.Looked.Load(), m.wire.Fetched.Load(), m.Copied.Load(), m.Written.Load(), m.Zeroed.Load(), m.ReadBack.Load()}
}

// enter ends the running phase and starts the next.
func (m *meter) enter(p Phase) {
	now, moved := m.now(), m.moved()
	if n := len(m.phases); n > 0 {
		m.phases[n-1].Seconds = now.Sub(m.began).Seconds()
		m.phases[n-1].Moved = moved.since(m.start)
	}
	m.began, m.start = now, moved
	m.phase.Store(int32(p))
	if p != PhaseDone {
		m.phases = append(m.phases, PhaseTime{Phase: p.String()})
	}
}

// lap adds the time since start to where, and returns now.
func (m *meter) lap(where *atomic.Int64, start time.Time) time.Time {
	now := m.now()
	where.Add(int64(now.Sub(start)))
	return now
}
