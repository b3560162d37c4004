package disktest

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// NewLoop is Loop where there is no testing.TB. Without rights or loop devices the error
// is ErrNoLoops; detach may be called more than once.
func NewLoop(image string, o LoopOptions) (dev string, detach func(), err error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrNoLoops, err)
	}
	defer control.Close()
	how, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if o.ReadOnly {
		how, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	if o.Direct {
		flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if o.Partitions {
		flags |= unix.LO_FLAGS_PARTSCAN
	}
	backing, err := os.OpenFile(image, how, 0)
	if err != nil {
		return "", nil, err
	}
	defer backing.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: o.Sector, Info: unix.LoopInfo64{Flags: flags}}
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		f, err := attach(control, o.Device, how, config)
		if err == nil {
			return f.Name(), func() { f.Close() }, nil
		}
		// Another took it since it was free, or it has no name yet: there are more.
		taken := errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EAGAIN)
		switch {
		case taken && time.Since(began) < 10*time.Second:
			continue
		case taken:
			err = fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
		case errors.Is(err, os.ErrPermission):
			err = fmt.Errorf("%w: %w", ErrNoLoops, err)
		}
		return "", nil, fmt.Errorf("loop device for %s: %w", image, err)
	}
}

func attach(control *os.File, dev string, how int, c unix.LoopConfig) (*os.File, error) {
	if dev == "" {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		dev = fmt.Sprintf("/dev/loop%d", n)
	}
	f, err := os.OpenFile(dev, how, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &c); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
