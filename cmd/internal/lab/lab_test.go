package lab

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestFirmwareAsks holds what the other tests take for granted of the firmware.
func TestFirmwareAsks(t *testing.T) {
	if os.Getenv("IMGPIPE_NETBOOT") != "1" {
		t.Skip("IMGPIPE_NETBOOT is not 1: no virtual machines")
	}
	for i, c := range []struct {
		name string
		spec Spec
		says string
		not  string // before
	}{
		{"HTTP", Spec{Firmware: HTTP}, "HTTP Boot over IPv4", "PXE over"},
		{"PXE", Spec{Firmware: PXE}, "PXE over IPv4", "HTTP Boot over"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := New(t, Options{})
			c.spec.Name, c.spec.Number = "one", i+1
			m := l.Machine(c.spec)
			m.PowerOn()
			m.Wait(2*time.Minute, c.says)
			if strings.Contains(m.Text(), c.not) {
				t.Errorf("the firmware says %q first:\n%s", c.not, m.Text())
			}
			m.PowerCut()
			m.PowerOn() // again, with the same disk and variables
			m.Wait(2*time.Minute, c.says)
		})
	}
}
