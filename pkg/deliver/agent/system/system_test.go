package system

import (
	"errors"
	"testing"
)

// TestOnlyProcess1Ends holds that a test, or a person at a shell, does not restart
// the machine.
func TestOnlyProcess1Ends(t *testing.T) {
	for name, end := range map[string]func() error{"restart": Restart, "power off": PowerOff, "kexec": Kexec} {
		if err := end(); !errors.Is(err, errNotInit) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
