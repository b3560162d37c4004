package netboot

import "time"

// SetBodyTime is for tests that cannot wait for it.
func SetBodyTime(d time.Duration) (restore func()) {
	was := bodyTime
	bodyTime = d
	return func() { bodyTime = was }
}
