package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
)

// openPty opens a pseudo-terminal, pty(7).
func openPty(t *testing.T) (outer, inner *os.File) {
	t.Helper()
	outer, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { outer.Close() })
	conn, err := outer.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if controlErr := conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); controlErr != nil || err != nil {
		t.Fatal(controlErr, err)
	}
	inner, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { inner.Close() })
	return outer, inner
}

// shellRecipe writes a recipe whose step fails, on a base of busybox.
func shellRecipe(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	disktest.WriteTar(t, filepath.Join(dir, "base.tar"), disktest.Busybox(t, time.Unix(0, 0), "cat sleep stty", map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "/etc/group": "root:x:0:\n"}))
	for name, b := range map[string][]byte{"token": []byte("a secret value"), "recipe.yaml": []byte(`version: 1
kind: DiskImage
name: broken
release: "1"
arch: amd64
epoch: 2026-11-01T00:00:00Z
base: {tar: {file: base.tar}}
run:
  - name: breaks
    env: {PS1: "ready> "}
    secrets: [{name: token, path: /run/token}]
    script: |
      echo half >/etc/made
      exit 7
disk: {partitions: [{name: esp, type: esp, filesystem: fat32, size: 64MiB}, {name: root, type: root, filesystem: ext4, grow: true}]}
`)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "recipe.yaml")
}

// conversation is what a person at the terminal sees and types.
type conversation struct {
	*testing.T
	outer *os.File
	seen  string
	at    int // what was waited for ends there
}

// until reads until want appears behind what earlier calls waited for.
func (c *conversation) until(want string) {
	c.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(c.seen[c.at:], want) {
		n, err := c.outer.Read(buf)
		if bytes.Contains(buf[:n], []byte("\x1b[6n")) { // where is the cursor? A terminal answers
			c.types("\x1b[1;8R")
		}
		if c.seen += string(buf[:n]); err != nil {
			c.Fatalf("waiting for %q: %v; seen:\n%s", want, err, c.seen)
		}
	}
	c.at += strings.Index(c.seen[c.at:], want) + len(want)
}

func (c *conversation) types(text string) {
	c.Helper()
	if _, err := c.outer.WriteString(text); err != nil {
		c.Fatal(err)
	}
}

// A person looks at a failed step on a terminal: the shell has job control, Ctrl-C
// ends what runs in it and not the build, and afterwards the terminal is as before.
func TestDebugShellOnATerminal(t *testing.T) {
	if err := sandbox.Check(t.Context(), t.TempDir(), ""); err != nil {
		t.Skip(err)
	}
	program, err := exec.LookPath("imgbuild")
	if err != nil {
		t.Fatal(err)
	}
	recipe := shellRecipe(t)
	outer, inner := openPty(t)
	if err := outer.SetReadDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(inner.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := filepath.Dir(recipe)
	cache := filepath.Join(dir, "cache")
	cmd := exec.CommandContext(ctx, program, "build", recipe, "--debug-shell", "--secret", "token="+filepath.Join(dir, "token"), "--cache", cache, "-o", "oci:"+filepath.Join(dir, "images"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inner, inner, inner
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &conversation{T: t, outer: outer}
	c.until("A shell in the sandbox; 'exit' ends the build.")
	c.until("ready> ")
	c.types("echo $((6 * 7)) $(cat /etc/made) $(cat /run/token)\n")
	c.until("42 half a secret value\r\n")
	c.until("ready> ")
	c.types("sh -c \"echo 'going to''sleep'; sleep 1000\"\n") // one job, which is in front before it speaks
	c.until("going tosleep\r\n")
	c.types("\x03")
	c.until("ready> ")
	c.types("echo woken $?; echo x >/etc/from-the-shell\n")
	c.until("woken 130\r\n")
	c.until("ready> ")
	c.types("exit\n")
	c.until("step breaks: exit status 7")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("the build ended with %v", err)
	}
	if strings.Contains(c.seen, "job control") {
		t.Errorf("the shell complains:\n%s", c.seen)
	}
	after, err := unix.IoctlGetTermios(int(inner.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was %+v, is %+v, %v", before, after, err)
	}
	if kept, _ := filepath.Glob(filepath.Join(cache, "steps/*.tar")); len(kept) != 0 {
		t.Errorf("kept are %q", kept)
	}
}
