//go:build linux

package hw

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a console: writes that wait, and how long one may take.
const (
	consoleQueue = 256
	consoleWrite = 5 * time.Second
)

// Console writes to consoles. What one does not take in time is lost there.
type Console struct{ lines []*line }

// line is one console, with a goroutine of its own for the life of the program.
type line struct {
	path  string
	queue chan []byte
	flush chan chan struct{}
}

// Consoles writes to every console that the kernel's command line names, or else to
// /dev/console. Write never blocks and never fails: what a console does not take,
// or one that is missing, is left out, and a later write tries again.
func Consoles() *Console { return System{}.consoles() }

func (s System) consoles() *Console {
	c := &Console{}
	for _, path := range s.consolePaths() {
		l := &line{s.at(path), make(chan []byte, consoleQueue), make(chan chan struct{})}
		c.lines = append(c.lines, l)
		go l.run()
	}
	return c
}

// consolePaths are the devices of console=ttyS0,115200n8 and the like, each once.
func (s System) consolePaths() (paths []string) {
	for _, v := range s.Cmdline().All("console") {
		name, _, _ := strings.Cut(v, ",")
		name = strings.TrimPrefix(name, "/dev/")
		if name == "" || name == "null" || name == "tty" || filepath.Base(name) != name || name[0] == '.' || len(paths) == 8 {
			continue
		}
		path := "/dev/" + name
		dup := false
		for _, p := range paths {
			dup = dup || p == path
		}
		if !dup {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		paths = []string{"/dev/console"}
	}
	return paths
}

// Write implements io.Writer. It copies p.
func (c *Console) Write(p []byte) (int, error) {
	b := bytes.Clone(p)
	for _, l := range c.lines {
		select {
		case l.queue <- b:
		default: // it is stuck
		}
	}
	return len(p), nil
}

// Flush waits until what was written is out, at most for d: before a restart.
func (c *Console) Flush(d time.Duration) {
	end := time.NewTimer(d)
	defer end.Stop()
	for _, l := range c.lines {
		done := make(chan struct{})
		select {
		case l.flush <- done:
			<-done
		case <-end.C:
			return
		}
	}
}

func (l *line) run() {
	var f *os.File
	var tried time.Time
	put := func(b []byte) {
		if f == nil && (tried.IsZero() || time.Since(tried) > time.Second) {
			tried = time.Now()
			// Without O_NONBLOCK a serial line without carrier blocks in open; and the
			// controlling terminal of PID 1 is not wanted.
			f, _ = os.OpenFile(l.path, os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		}
		if f == nil {
			return
		}
		_ = f.SetWriteDeadline(time.Now().Add(consoleWrite))
		if _, err := f.Write(b); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			f.Close()
			f = nil
		}
	}
	for {
		select {
		case b := <-l.queue:
			put(b)
		case done := <-l.flush:
			for len(l.queue) > 0 {
				put(<-l.queue)
			}
			close(done)
		}
	}
}

// KernelLog calls f with each line of the kernel's log, from the oldest that is
// kept, until ctx ends. Lines that were overwritten before they were read
// are left out.
func KernelLog(ctx context.Context, f func(line string)) error {
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("kernel log: %w", err)
	}
	defer kmsg.Close()
	stop := context.AfterFunc(ctx, func() { kmsg.Close() })
	defer stop()
	b := make([]byte, 16<<10) // a record is at most 8 KiB
	for {
		n, err := kmsg.Read(b)
		switch {
		case ctx.Err() != nil || errors.Is(err, fs.ErrClosed):
			return nil
		case errors.Is(err, unix.EPIPE): // overwritten meanwhile; the next one is there
			continue
		case err != nil:
			return fmt.Errorf("kernel log: %w", err)
		}
		if line, ok := kernelLine(b[:n]); ok {
			f(line)
		}
	}
}

// kernelLine is a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg) as
// dmesg prints it: "6,1234,5678901,-;text" and lines of keys below.
func kernelLine(record []byte) (string, bool) {
	head, rest, ok := bytes.Cut(record, []byte(";"))
	if !ok {
		return "", false
	}
	fields := strings.Split(string(head), ",")
	if len(fields) < 3 {
		return "", false
	}
	us, err := strconv.ParseUint(fields[2], 10, 63)
	if err != nil {
		return "", false
	}
	text, _, _ := bytes.Cut(rest, []byte("\n"))
	return fmt.Sprintf("[%5d.%06d] %s", us/1e6, us%1e6, printable(string(text))), true
}

// printable replaces what could steer a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
