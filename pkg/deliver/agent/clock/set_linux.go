package clock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Set sets the kernel's clock.
func Set(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the clock to %s: %w", short(t), err)
	}
	return nil
}

// RTC is the time of the machine's clock, taken to be UTC; zero if it has none, or
// one that says nonsense.
func RTC() time.Time {
	for _, name := range []string{"/dev/rtc0", "/dev/rtc"} {
		if f, err := os.Open(name); err == nil {
			t, err := unix.IoctlGetRTCTime(int(f.Fd()))
			f.Close()
			if err == nil {
				return fromRTC(t)
			}
		}
	}
	return time.Time{}
}

// KeepRTC sets the machine's clock where it is more than a minute from t, so that
// the next system starts with the time, and reports whether it did. A machine
// may have none.
func KeepRTC(t time.Time) (set bool, err error) {
	if was := RTC(); !was.IsZero() && t.Sub(was).Abs() <= time.Minute {
		return false, nil
	}
	if err := setRTC(t); !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	return false, nil
}

func setRTC(t time.Time) error {
	f, err := os.OpenFile("/dev/rtc0", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("set the machine's clock: %w", err)
	}
	defer f.Close()
	t = t.UTC()
	v := unix.RTCTime{Sec: int32(t.Second()), Min: int32(t.Minute()), Hour: int32(t.Hour()), Mday: int32(t.Day()), Mon: int32(t.Month()) - 1, Year: int32(t.Year()) - 1900}
	if err := unix.IoctlSetRTCTime(int(f.Fd()), &v); err != nil {
		return fmt.Errorf("set the machine's clock to %s: %w", short(t), err)
	}
	return nil
}

func fromRTC(v *unix.RTCTime) time.Time {
	t := time.Date(int(v.Year)+1900, time.Month(v.Mon)+1, int(v.Mday), int(v.Hour), int(v.Min), int(v.Sec), 0, time.UTC)
	if t.Month() != time.Month(v.Mon)+1 || t.Day() != int(v.Mday) || t.Hour() != int(v.Hour) || t.Minute() != int(v.Min) {
		return time.Time{} // February 31
	}
	return t
}
