//go:build !linux

package disktest

// NewLoop returns ErrNoLoops.
func NewLoop(string, LoopOptions) (dev string, detach func(), err error) {
	return "", nil, ErrNoLoops
}
