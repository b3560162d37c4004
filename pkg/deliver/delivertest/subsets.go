package delivertest

import "fmt"

// states looks at what may have persisted of what is pending.
func (m *model) states() {
	m.none()
	m.look("nothing pending persisted")
	n := len(m.changes)
	if n == 0 {
		return
	}
	sectors := 0
	for _, c := range m.changes {
		sectors += len(c.slots)
	}
	if sectors <= m.cuts.Subsets {
		m.allSectors(sectors)
		return
	}
	if n <= m.cuts.Subsets {
		for bits := 1; bits < 1<<n; bits++ {
			m.choose(fmt.Sprintf("changes %0*b of the %d pending", n, bits, n), func(i, _ int) bool { return bits>>i&1 == 1 })
		}
	}
	m.nasty(n)
	for range m.cuts.Samples {
		m.sample(n)
	}
}

func (m *model) none() { clear(m.choice) }

// choose looks at the state in which those sectors of changes persisted for
// which keep says so. Of two that did, the later is there.
func (m *model) choose(what string, keep func(change, sector int) bool) {
	m.none()
	for i, c := range m.changes {
		for j, s := range c.slots {
			if keep(i, j) {
				m.choice[s] = c.versions[j]
			}
		}
	}
	m.look(what)
}

func (m *model) allSectors(n int) {
	for bits := 1; bits < 1<<n; bits++ {
		k := -1
		m.choose(fmt.Sprintf("sectors %0*b of the %d pending", n, bits, n), func(int, int) bool { k++; return bits>>k&1 == 1 })
	}
}

// nasty are the subsets that a wrong order does not survive.
func (m *model) nasty(n int) {
	offset := func(i, j int) int64 { return m.slots[m.changes[i].slots[j]].off }
	m.choose("everything", func(int, int) bool { return true })
	m.choose("only LBA 0", func(i, j int) bool { return offset(i, j) == 0 })
	m.choose("everything but LBA 0", func(i, j int) bool { return offset(i, j) != 0 })
	m.choose("only the first MiB", func(i, j int) bool { return offset(i, j) < 1<<20 })
	m.choose("everything but the first MiB", func(i, j int) bool { return offset(i, j) >= 1<<20 })
	m.choose("only the last change", func(i, _ int) bool { return i == n-1 })
	m.choose("all but the last change", func(i, _ int) bool { return i != n-1 })
	one := m.rng.IntN(n)
	m.choose(fmt.Sprintf("only change %d of %d", one, n), func(i, _ int) bool { return i == one })
	m.choose(fmt.Sprintf("all but change %d of %d", one, n), func(i, _ int) bool { return i != one })
	sector := m.rng.IntN(len(m.changes[one].slots))
	m.choose(fmt.Sprintf("all but sector %d of change %d of %d", sector, one, n), func(i, j int) bool { return i != one || j != sector })
	m.choose(fmt.Sprintf("all, change %d of %d up to sector %d", one, n, sector), func(i, j int) bool { return i != one || j < sector })
}

// sample takes any subset, of which every fourth change is torn.
func (m *model) sample(n int) {
	kept, torn := m.rng.Uint64(), m.rng.Uint64()&m.rng.Uint64()
	tear := m.rng.Uint64()
	m.choose(fmt.Sprintf("changes %x, torn %x by %x, of the %d pending", kept, torn, tear, n), func(i, j int) bool {
		switch {
		case torn>>(i%64)&1 == 1:
			return (tear*uint64(2*j+1)+uint64(i))>>40&1 == 1
		default:
			return kept>>(i%64)&1 == 1
		}
	})
}
