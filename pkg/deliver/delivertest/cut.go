package delivertest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Invariant is what must hold of a disk at every moment: it is what it was
// before, or it does not boot, or it is the image.
//
// Firmware that starts a GPT although there is no protective MBR is thought of,
// too: where a table is valid, everything outside Last must be what it was
// before, for the table from before, or the image, for the image's.
type Invariant struct {
	Before, Want []byte
	Last         []diskimage.Extent // what is written last: the first MiB, the backup GPT
	// Severe takes anything but zeros in LBA 0 for bootable.
	Severe bool
}

// Cuts says after which operations the power is cut, and how thoroughly the
// states that this may leave are looked at. The zero value is all operations.
type Cuts struct {
	Seed    uint64
	From    int // the first cut is after so many changes and flushes
	Subsets int // every subset where at most so many changes are pending; 0: 8
	Samples int // random subsets besides; 0: 12
	// Visit, if not nil, is called for each state that was looked at, and may
	// ask for the disk, as it is then.
	Visit func(what string, disk func() []byte)
}

// Survives looks at what power cuts may leave, during what the disk has seen:
// any subset of the changes since the last flush, each of them whole or torn
// between any of its sectors. Nothing, everything, only LBA 0, everything but
// that, all but one and only one are among them. It returns how many states
// there were, and the first that breaks the invariant. AfterFlush has no part in it.
func (d *Disk) Survives(inv Invariant, c Cuts) (states int, err error) {
	m := newModel(d, inv, c)
	for k := 0; ; k++ {
		if k >= c.From {
			m.cut = k
			if m.states(); m.err != nil {
				return m.seen, m.err
			}
		}
		if k == len(d.ops) {
			return m.seen, nil
		}
		if d.ops[k].Kind == Flush {
			m.flush()
		} else {
			m.add(d.ops[k])
		}
	}
}

// Now is Cuts for the moment after the last operation alone.
func (d *Disk) Now(seed uint64) Cuts { return Cuts{Seed: seed, From: len(d.ops)} }

// model is a disk whose cache holds changes.
type model struct {
	inv     Invariant
	cuts    Cuts
	sector  int64
	rng     *rand.Rand
	durable []byte
	base    counts // of durable
	changes []change
	slots   []slot
	at      map[int64]int // slot by offset
	choice  []int         // of each slot: the version that persisted, 0 is durable
	seen    int
	cut     int
	err     error
	tables  [2][]byte // the entries of the GPT before and wanted
	cd      bool      // the image has a boot catalogue
	known   map[string]boots
	key     []byte
}

// change is one write or zeroing: which version of which slots it makes.
type change struct{ slots, versions []int }

// slot is a sector with changes pending.
type slot struct {
	off      int64
	versions [][]byte // nil is zeros; [0] is the durable one
	differs  []counts
	boot     bool // firmware looks at it
}

// counts are numbers of sectors that differ from: before, want; and outside of
// what is written last, again.
type counts [4]int

func (c *counts) add(o counts, n int) {
	for i := range c {
		c[i] += n * o[i]
	}
}

func newModel(d *Disk, inv Invariant, c Cuts) *model {
	if c.Subsets == 0 {
		c.Subsets = 8
	}
	if c.Samples == 0 {
		c.Samples = 12
	}
	m := &model{inv: inv, cuts: c, sector: d.sector, rng: rand.New(rand.NewPCG(c.Seed, 0)), durable: slices.Clone(d.before), at: map[int64]int{}, known: map[string]boots{}}
	for off := int64(0); off < int64(len(m.durable)); off += m.sector {
		m.base.add(m.count(off, m.durable[off:m.end(off)]), 1)
	}
	for i, b := range [][]byte{inv.Before, inv.Want} {
		boots := bootModel(func(off, n int64) []byte { return b[off : off+n] }, int64(len(b)), m.sector)
		if len(boots.tables) > 0 {
			m.tables[i] = boots.tables[0]
		}
		m.cd = boots.cd // the last: the image's
	}
	return m
}

func (m *model) end(off int64) int64 { return min(off+m.sector, int64(len(m.durable))) }

// count tells how the content of one sector differs. nil is zeros.
func (m *model) count(off int64, b []byte) (c counts) {
	if b == nil {
		b = make([]byte, m.end(off)-off)
	}
	body := 1
	for _, e := range m.inv.Last {
		if e.Overlaps(diskimage.Extent{Off: off, Len: 1}) {
			body = 0
		}
	}
	if !bytes.Equal(b, m.inv.Before[off:][:len(b)]) {
		c[0], c[2] = 1, body
	}
	if !bytes.Equal(b, m.inv.Want[off:][:len(b)]) {
		c[1], c[3] = 1, body
	}
	return c
}

func (m *model) add(op Op) {
	var ch change
	for off := op.Off; off < op.End(); off = m.end(off) {
		i, ok := m.at[off]
		if !ok {
			i = len(m.slots)
			m.at[off] = i
			was := m.durable[off:m.end(off)]
			m.slots = append(m.slots, slot{off: off, versions: [][]byte{was}, differs: []counts{m.count(off, was)}, boot: off < bootRegion || off >= int64(len(m.durable))-bootRegion})
		}
		var b []byte
		if op.Kind == Write {
			b = op.data[off-op.Off : m.end(off)-op.Off]
		}
		s := &m.slots[i]
		ch.slots, ch.versions = append(ch.slots, i), append(ch.versions, len(s.versions))
		s.versions, s.differs = append(s.versions, b), append(s.differs, m.count(off, b))
	}
	m.changes = append(m.changes, ch)
	m.choice = make([]int, len(m.slots))
}

func (m *model) flush() {
	for i := range m.slots {
		s := &m.slots[i]
		last := len(s.versions) - 1
		m.base.add(s.differs[0], -1)
		m.base.add(s.differs[last], 1)
		m.put(m.durable, s, last)
	}
	m.slots, m.changes, m.choice = nil, nil, nil
	clear(m.at)
	clear(m.known)
}

func (m *model) put(disk []byte, s *slot, version int) {
	to := disk[s.off:m.end(s.off)]
	if b := s.versions[version]; b != nil {
		copy(to, b)
	} else {
		clear(to)
	}
}

// disk is the whole of the state that was chosen.
func (m *model) disk() []byte {
	b := slices.Clone(m.durable)
	for i := range m.slots {
		m.put(b, &m.slots[i], m.choice[i])
	}
	return b
}

// read gives a range of the state that was chosen.
func (m *model) read(off, n int64) []byte {
	b := slices.Clone(m.durable[off : off+n])
	for at := off / m.sector * m.sector; at < off+n; at += m.sector {
		if i, ok := m.at[at]; ok && m.choice[i] > 0 {
			part := make([]byte, m.sector)
			copy(part, m.slots[i].versions[m.choice[i]])
			if at >= off {
				copy(b[at-off:], part)
			} else {
				copy(b, part[off-at:])
			}
		}
	}
	return b
}

// look judges the state that was chosen.
func (m *model) look(what string) {
	if m.err != nil {
		return
	}
	m.seen++
	if m.cuts.Visit != nil {
		m.cuts.Visit(what, m.disk)
	}
	c := m.base
	m.key = m.key[:0]
	for i, v := range m.choice {
		s := &m.slots[i]
		if v > 0 {
			c.add(s.differs[0], -1)
			c.add(s.differs[v], 1)
		}
		if s.boot {
			m.key = append(m.key, byte(v))
		}
	}
	if c[0] == 0 || c[1] == 0 {
		return
	}
	b, ok := m.known[string(m.key)]
	if !ok {
		b = bootModel(m.read, int64(len(m.durable)), m.sector)
		b.lba0 = bytes.Equal(m.read(0, m.sector), m.inv.Want[:m.sector])
		if m.inv.Severe {
			b.starts = anyByte(m.read(0, m.sector))
		}
		m.known[string(m.key)] = b
	}
	why := ""
	if b.starts {
		why = "it boots"
	}
	for _, t := range b.tables {
		old, image := bytes.Equal(t, m.tables[0]), bytes.Equal(t, m.tables[1])
		if !(old && c[2] == 0 || image && c[3] == 0) {
			why = "a GPT is valid"
		}
	}
	// A boot catalogue may lead to what was before, while all of that is there;
	// or to the image, when all of it is but for LBA 0.
	if b.cd && c[2] != 0 && !(m.cd && (c[1] == 0 || c[1] == 1 && !b.lba0)) {
		why = "a boot catalogue is valid"
	}
	if why != "" {
		m.err = fmt.Errorf("power cut after operation %d, %s: %s, and the disk differs in %d sectors from what was before, in %d from the image (%d and %d but for what is written last)",
			m.cut, what, why, c[0], c[1], c[2], c[3])
	}
}
