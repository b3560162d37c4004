package agent

import "time"

// plausible is how far behind the floor a clock may be believed: environments
// are not used for so long.
const plausible = 20 * 365 * 24 * time.Hour

// Clock decides what time it is: the latest of the environment's floor, the
// machine's own clock, and the server's, but for those that cannot be. A server
// that was asked, and is plausible, is believed over a machine's own clock, which
// may be ahead. Zero times say nothing.
func Clock(own, floor, server time.Time) time.Time {
	may := func(t time.Time) bool { return !t.IsZero() && !t.Before(floor) && t.Sub(floor) < plausible }
	switch {
	case may(server):
		return server
	case may(own):
		return own
	}
	return floor
}
