package disktest

import (
	"errors"
	"os"
	"testing"
)

// LoopOptions says what a loop device is like. The zero value is one to write to.
type LoopOptions struct {
	ReadOnly   bool
	Direct     bool   // past the page cache of the image's filesystem
	Partitions bool   // the kernel looks for them
	Sector     uint32 // bytes; 0 is 512
	Device     string // /dev/loopN, which is waited for; "" is a free one
}

// Loop makes an image a loop device until the test, or detach, ends it. That goes as
// soon as nobody has it open or mounted, also where the test is killed.
func Loop(t testing.TB, image string, o LoopOptions) (dev string, detach func()) {
	t.Helper()
	dev, detach, err := NewLoop(image, o)
	if errors.Is(err, ErrNoLoops) || o.Device != "" && errors.Is(err, os.ErrDeadlineExceeded) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(detach)
	return dev, detach
}

// ErrNoLoops says that this machine, or this user, has no loop devices.
var ErrNoLoops = errors.New("no loop devices")
