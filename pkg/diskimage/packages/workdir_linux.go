package packages

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// The room that a temporary root is first thought to need, when nothing is
// known about it yet: a small server with its packages and indices.
const (
	firstNeed  = 2 << 30
	workPrefix = "imgpipe-root-"
)

// removeWorkDir removes a work directory and what a killed run left in it.
// Mounts are no danger: they were made in a mount namespace that is gone. What
// subordinate ids own, only a process that has these ids can remove.
func removeWorkDir(dir, mode string) error {
	left, err := filepath.Glob(filepath.Join(dir, "mmdebstrap.*"))
	if err != nil {
		return err
	}
	if len(left) > 0 && mode == "unshare" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		args := append([]string{"--unshare-helper", "rm", "-rf", "--one-file-system", "--"}, left...)
		cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
		cmd.Env = baseEnv
		cmd.Dir = "/"
		cmd.Run() // it cannot remove the directories themselves; what is left shows below
	}
	// the kernel may still be ending the last processes of the namespace
	for range 20 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("work directory is left behind: %w", err)
}
