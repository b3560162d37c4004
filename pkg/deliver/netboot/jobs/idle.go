package jobs

import "time"

// idler is a machine that came into the environment without having a job: how
// often in a row, and when its last boot first asked. Memory only: a server that
// starts again has forgotten, and begins with short pauses.
type idler struct {
	key   string // of the last boot
	boots int
	at    time.Time
}

// Pauses before a machine without a job is sent to its disk once more. It may come
// for a good reason, an inventory say; one that comes again and again boots the
// environment from elsewhere than this server's decision, or has a disk that does
// not boot, and would go round for ever.
const (
	idleFree   = 2 // boots that are sent on at once
	idleFirst  = 30 * time.Second
	idleLast   = 10 * time.Minute
	idleWithin = time.Hour // between boots in a row
	maxIdlers  = 4096
)

// idle notes a boot without a job, and returns how long it waits before it
// restarts: doubling from boot to boot. The same boot that asks again has waited.
func (s *Store) idle(machine, key string, now time.Time) time.Duration {
	i := s.idlers[machine]
	if i.key == key {
		return max(0, i.at.Add(idlePause(i.boots)).Sub(now))
	}
	if i.boots > 0 && now.Sub(i.at) > idleWithin {
		i.boots = 0
	}
	if len(s.idlers) >= maxIdlers {
		clear(s.idlers)
	}
	i = idler{key, i.boots + 1, now}
	s.idlers[machine] = i
	return idlePause(i.boots)
}

func idlePause(boots int) time.Duration {
	if boots <= idleFree {
		return 0
	}
	d := idleFirst
	for n := idleFree + 1; n < boots && d < idleLast; n++ {
		d *= 2
	}
	return min(d, idleLast)
}
