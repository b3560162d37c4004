package ocitest

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Process is a test of this program that runs in a process of its own, to be killed.
type Process struct {
	*exec.Cmd
	Lines *bufio.Scanner // of what it prints
}

// Start starts the test of that name with more of an environment, NAME=VALUE. It is
// killed at the end of t if it still runs.
func Start(t testing.TB, test string, env ...string) *Process {
	t.Helper()
	p := &Process{Cmd: exec.Command(os.Args[0], "-test.run=^"+test+"$")}
	p.Env = append(os.Environ(), env...)
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill() }) // it runs forever
	p.Lines = bufio.NewScanner(out)
	return p
}

// After returns what follows prefix in the first line that begins with it.
func (p *Process) After(t testing.TB, prefix string) string {
	t.Helper()
	for p.Lines.Scan() {
		if rest, ok := strings.CutPrefix(p.Lines.Text(), prefix); ok {
			return rest
		}
	}
	t.Fatalf("the process of its own ends without saying %q", prefix)
	return ""
}

// Kill kills it as nobody can prepare for.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}
