//go:build linux

// Command rootinit is the init of a root in tests: it says what it finds, and ends.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

func main() {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		os.Exit(1)
	}
	say := func(format string, args ...any) { fmt.Fprintf(console, "rootinit: "+format+"\n", args...) }
	say("process %d, arguments %q", os.Getpid(), os.Args[1:])
	var env []string
	for _, e := range os.Environ() {
		env = append(env, strings.SplitN(e, "=", 2)[0])
	}
	say("environment %q", env)
	mounts, err := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 {
			say("mounted %s %s %s", f[0], f[1], f[2])
			if f[1] == "/" {
				say("root is %s", f[3][:2])
			}
		}
	}
	if err != nil {
		say("mounts: %v", err)
	}
	for _, p := range []string{"/etc/changed", "/changed"} {
		if _, err := os.Stat(p); err == nil {
			say("%s is of another boot", p)
		}
		say("writing %s: %v", p, os.WriteFile(p, []byte("x"), 0o600))
	}
	if _, err := os.Stat("/sysroot"); err == nil {
		say("the initramfs is still there")
	}
	say("done")
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}
