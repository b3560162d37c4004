package delivertest

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Cut is a state that a power cut may leave.
type Cut struct {
	After int    // how many changes and flushes had been issued
	What  string // which of the pending sectors persisted
	State []byte // the disk; valid until the visit returns
}

// String names the cut for a failure message.
func (c Cut) String() string { return fmt.Sprintf("power cut after operation %d, %s", c.After, c.What) }

// pendingSector is one sector of a change that was not flushed.
type pendingSector struct {
	off  int64
	data []byte // nil: zeros
}

// PowerCuts visits, for a power cut before the first operation and after each
// one that the disk has seen, states that the cut may leave: nothing that was
// pending persisted, all of it, every subset where at most 6 sectors are
// pending, else two random ones, only LBA 0, everything but LBA 0, and all but
// one sector. AfterFlush has no part in it. The seed makes it repeatable.
func (d *Disk) PowerCuts(seed uint64, visit func(Cut)) { d.cuts(seed, 0, visit) }

// PowerCutNow visits the same for a power cut after the last operation alone.
func (d *Disk) PowerCutNow(seed uint64, visit func(Cut)) { d.cuts(seed, len(d.ops), visit) }

func (d *Disk) cuts(seed uint64, from int, visit func(Cut)) {
	rng := rand.New(rand.NewPCG(seed, 0))
	durable := slices.Clone(d.before)
	var pending []pendingSector
	for k := 0; ; k++ {
		if k >= from {
			d.states(rng, durable, pending, func(what string, state []byte) { visit(Cut{k, what, state}) })
		}
		if k == len(d.ops) {
			return
		}
		op := d.ops[k]
		if op.Kind == Flush {
			for _, p := range pending {
				d.put(durable, p)
			}
			pending = nil
			continue
		}
		for off := int64(0); off < op.Len; off += d.sector {
			p := pendingSector{off: op.Off + off}
			if op.Kind == Write {
				p.data = op.data[off:min(off+d.sector, op.Len)]
			}
			pending = append(pending, p)
		}
	}
}

func (d *Disk) put(b []byte, p pendingSector) {
	if p.data != nil {
		copy(b[p.off:], p.data)
	} else {
		clear(b[p.off:min(p.off+d.sector, int64(len(b)))])
	}
}

func (d *Disk) states(rng *rand.Rand, durable []byte, pending []pendingSector, visit func(string, []byte)) {
	state := slices.Clone(durable)
	subset := func(what string, keep func(i int) bool) {
		var changed []int64
		for i, p := range pending {
			if keep(i) {
				d.put(state, p)
				changed = append(changed, p.off)
			}
		}
		visit(what, state)
		for _, off := range changed {
			end := min(off+d.sector, int64(len(state)))
			copy(state[off:end], durable[off:end])
		}
	}
	subset("nothing pending persisted", func(int) bool { return false })
	if len(pending) == 0 {
		return
	}
	if len(pending) <= 6 {
		for bits := 1; bits < 1<<len(pending); bits++ {
			subset(fmt.Sprintf("subset %b", bits), func(i int) bool { return bits>>i&1 == 1 })
		}
		return
	}
	subset("all persisted", func(int) bool { return true })
	subset("only LBA 0", func(i int) bool { return pending[i].off == 0 })
	subset("all but LBA 0", func(i int) bool { return pending[i].off != 0 })
	lost := rng.IntN(len(pending))
	subset(fmt.Sprintf("all but sector at %d", pending[lost].off), func(i int) bool { return i != lost })
	for range 2 {
		bits := make([]bool, len(pending))
		for i := range bits {
			bits[i] = rng.IntN(2) == 0
		}
		subset("a random subset", func(i int) bool { return bits[i] })
	}
}
