// Package clock chooses what time it is on a machine whose own clock may say
// anything: for logs, for the files that are written, and for what reads
// certificates' dates for a hint. No trust decision passes because of it.
//
//	sntp, _ := clock.SNTP(ctx, "10.0.0.1")
//	t, why := clock.Choose(floor, clock.RTC(), sntp, time.Time{})
//	err := clock.Set(t)
//	set, err := clock.KeepRTC(t)            // for the system that starts next
//
// It guarantees a time that is not before the floor and not absurdly after it,
// whoever lies. docs/agent.md has the rules.
package clock

import (
	"fmt"
	"time"
)

// Horizon is how far after the floor, the environment's build, a time is
// plausible. An environment that is older than this is to be built anew.
const Horizon = 20 * 365 * 24 * time.Hour

// Choose picks the time: what the server says, that is authenticated, over
// SNTP, over the machine's clock, over the floor; of them the first that is not
// before the floor and not more than Horizon after it. Zero times say nothing. why is for
// people. Choose asks no clock: the caller adds what has passed since.
func Choose(floor, rtc, sntp, serverTime time.Time) (t time.Time, why string) {
	rejected := ""
	for _, c := range []struct {
		name string
		t    time.Time
	}{{"the server's time", serverTime}, {"SNTP", sntp}, {"the machine's clock", rtc}} {
		switch {
		case c.t.IsZero():
		case c.t.Before(floor):
			rejected += fmt.Sprintf("; %s says %s, before the environment was built", c.name, short(c.t))
		case c.t.Sub(floor) > Horizon:
			rejected += fmt.Sprintf("; %s says %s, too far after the environment was built", c.name, short(c.t))
		default:
			return c.t, c.name + rejected
		}
	}
	return floor, "the environment's floor" + rejected
}

func short(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }
