package cmdtest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// errMissed is a program that was through before it could be stopped.
var errMissed = errors.New("the program ended, or went on, before it was stopped")

// interrupt stops a program where it was asked to, before the signal: so what
// it was doing does not depend on how fast this process is. Where it was too
// fast to be stopped, all is done again.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 3, "interrupt writing FILE SIZE OFFSET PROGRAM [ARG…] | interrupt begun GLOB PROGRAM [ARG…]")
	var prepare func()
	var reached func() bool
	switch args[0] {
	case "writing":
		name, size, off := args[1], args[2], number(ts, args[3])
		prepare = func() { filled(ts, false, []string{name, size, "0xA5"}) }
		reached = func() bool {
			cleared := len(bytes.Trim(section(ts, name, 0, 512), "\x00")) == 0
			return cleared && !bytes.Equal(section(ts, name, off, 512), bytes.Repeat([]byte{0xA5}, 512))
		}
		args = args[4:]
	case "begun":
		glob := ts.MkAbs(args[1])
		prepare = func() {}
		reached = func() bool {
			found, _ := filepath.Glob(glob) // the pattern is the script's
			return len(found) > 0
		}
		args = args[2:]
	default:
		ts.Fatalf("interrupt: %q: want writing or begun", args[0])
	}
	var err error
	for range 20 {
		prepare()
		if err = stopAt(ts, reached, args); err != errMissed {
			break
		}
		ts.Logf("interrupt: %v; once more", err)
	}
	if err == errMissed {
		ts.Fatalf("%v", err)
	}
	checkExit(ts, err, 130)
}

// stopAt runs a program until reached, and then sends it SIGINT.
func stopAt(ts *testscript.TestScript, reached func() bool, args []string) error {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for !reached() {
		select {
		case <-ended:
			return errMissed
		case <-time.After(100 * time.Microsecond):
		}
	}
	_ = cmd.Process.Signal(syscall.SIGSTOP) // it may have ended
	for !stopped(cmd.Process.Pid) {
		select {
		case <-ended:
			return errMissed
		case <-time.After(100 * time.Microsecond):
		}
	}
	missed := !reached()
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Process.Signal(syscall.SIGCONT)
	err := <-ended
	if missed || err == nil {
		return errMissed
	}
	ts.Logf("[stdout]\n%s[stderr]\n%s", stdout.String(), stderr.String())
	_, err1 := ts.Stdout().Write(stdout.Bytes())
	_, err2 := ts.Stderr().Write(stderr.Bytes())
	ts.Check(errors.Join(err1, err2))
	return err
}

// stopped reports whether all of a process stands still (proc_pid_stat(5): the
// state follows the name in parentheses).
func stopped(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "T")
}
