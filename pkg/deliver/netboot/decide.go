package netboot

import (
	"cmp"
	"sort"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/identity"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Decision is what a boot request gets.
type Decision int

// The decisions. Ignore is no answer: the machine may be someone else's.
const (
	Ignore Decision = iota
	Local
	Boot // the environment
)

func (d Decision) String() string { return [...]string{"ignore", "local", "environment"}[d] }

// who finds the machine that is meant: its entry at the site, if it has one, and
// what the store calls it; one without an entry may have an open job all the same. An error says why it is served nothing.
func (s *Server) who(f site.Facts) (*site.Machine, string, error) {
	now := s.site.Load()
	m, err := now.Find(f)
	if err != nil {
		return nil, "", err
	}
	if m == nil && f.Inventory == nil { // what its agent told once
		for _, seen := range s.store.Machines() {
			if seen.Inventory == nil || !identity.Same(seen.Identity, f.Identity) {
				continue
			}
			if m, err = now.Find(site.Facts{Identity: seen.Identity, Inventory: seen.Inventory}); err != nil {
				return nil, "", err
			}
			f.Identity = seen.Identity
			if m != nil {
				break
			}
		}
	}
	// SITE.yaml may have changed while a job goes on: nobody boots a disk that is
	// half written because its machine is called otherwise, or nothing, now.
	for _, name := range s.store.Unfinished(f.Identity) {
		switch {
		case m == nil:
			return nil, name, nil
		case name != m.Name:
			return nil, "", &renamedError{m.Name, name}
		}
	}
	if m == nil {
		return nil, unknownName(f.Identity), nil
	}
	if m.Match.ByInventory() {
		if seen := s.store.Machine(m.Name); seen != nil && !site.Bound(seen.Identity, f.Identity) {
			return nil, "", &takenError{m.Name}
		}
	}
	return m, m.Name, nil
}

// renamedError says that a machine has unfinished business under another name.
type renamedError struct{ name, before string }

func (e *renamedError) Error() string {
	return "this is machine " + e.name + " of the site now, and machine " + e.before + " has an open job or a disk that may be half written: cancel the job, or release it"
}

// takenError says that the entry which matches is another machine's.
type takenError struct{ name string }

func (e *takenError) Error() string {
	return "the entry " + e.name + " matches, and another machine is that already"
}

// unknownMark begins the names of machines without an entry. No name of a site
// begins so.
const unknownMark = "?"

// unknownName is what a machine without an entry is called.
func unknownName(id wire.Identity) string {
	mac := ""
	if len(id.MACs) > 0 {
		mac = id.MACs[0]
	}
	return unknownMark + cmp.Or(id.UUID, mac, id.Serial, "nothing")
}

// Decide says what a machine that asks to boot gets. It changes nothing, and
// waits for no disk.
func (s *Server) Decide(id wire.Identity) (Decision, string) {
	id = identity.Normal(id)
	m, name, err := s.who(site.Facts{Identity: id})
	if err != nil {
		return Boot, "" // its agent is told why it holds
	}
	if m == nil && s.store.Boot(name) == jobs.BootDisk {
		s.facts.note(id, s.o.Now())
		switch s.site.Load().Unknown {
		case "ignore":
			return Ignore, ""
		case "discover":
			if seen := s.store.Machine(name); seen == nil || seen.Inventory == nil {
				return Boot, ""
			}
		}
		return Local, ""
	}
	if s.store.Boot(name) == jobs.BootDisk {
		return Local, name
	}
	s.store.Handed(name)
	return Boot, name
}

// recent remembers machines without a name that asked to boot, in memory only.
type recent struct {
	mu   sync.Mutex
	seen map[string]asked
}

type asked struct {
	Identity wire.Identity `json:"identity"`
	Seen     time.Time     `json:"seen"`
}

const maxRecent = 1024

func (r *recent) note(id wire.Identity, now time.Time) {
	if identity.IsZero(id) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[string]asked{}
	}
	r.seen[unknownName(id)] = asked{id, now}
	if len(r.seen) <= maxRecent {
		return
	}
	oldest, at := "", now
	for name, a := range r.seen {
		if !a.Seen.After(at) {
			oldest, at = name, a.Seen
		}
	}
	delete(r.seen, oldest)
}

func (r *recent) names() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.seen {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

func (r *recent) get(name string) asked {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[name]
}
