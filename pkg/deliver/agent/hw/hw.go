//go:build linux

// Package hw is what the agent needs of the machine that it is PID 1 of: file
// systems, consoles, modules, who the machine is and what is in it, and the ways
// to end.
//
//	err := hw.Mount()
//	out := hw.Consoles()                            // an io.Writer that never blocks
//	err = hw.LoadModules(ctx, log)                  // until quiet
//	claim.Identity, claim.Inventory = hw.Identity(), hw.Inventory(ctx)
//	err = hw.Restart()
//
// It guarantees that nothing that /proc, /sys, firmware or a command line says makes
// it fail, block, or hold more than a bounded amount: what cannot be read is
// empty. Values of SMBIOS are passed on as they are; the server says what is junk.
// Restart, PowerOff, Kexec and Reap do nothing but in PID 1: a program that is
// tried on a desk does not end it.
//
// docs/agent.md has the rules. The functions act on this machine; System has
// those that only read, on a tree that a test made.
package hw

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// System is a machine's proc, sys, dev and lib below a directory.
type System struct{ Root string } // "" is this machine

// maxText bounds what is read of a file in proc or sys, in bytes.
const maxText = 1 << 20

func (s System) at(path string) string { return filepath.Join("/", s.Root, path) }

// text is a small file's contents without the white space around; "" if there is none.
func (s System) text(path string) string {
	f, err := os.Open(s.at(path))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxText))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ToValidUTF8(strings.Trim(string(b), "\x00"), "?"))
}

func (s System) exists(path string) bool { _, err := os.Lstat(s.at(path)); return err == nil }

// Memory says how much there is and how much could still be had, in bytes; 0
// where the kernel does not say.
func Memory() (total, available int64) { return System{}.Memory() }

// Memory is as the function of that name.
func (s System) Memory() (total, available int64) {
	for line := range strings.Lines(s.text("/proc/meminfo")) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n < 0 || n > 1<<52 {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	return total, available
}

// Uptime is the time since the kernel started.
func Uptime() time.Duration { return System{}.Uptime() }

// Uptime is as the function of that name.
func (s System) Uptime() time.Duration {
	first, _, _ := strings.Cut(s.text("/proc/uptime"), " ")
	n, err := strconv.ParseFloat(first, 64)
	if err != nil || !(n >= 0 && n < 1e9) {
		return 0
	}
	return time.Duration(n * float64(time.Second))
}
