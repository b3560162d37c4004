package qemu

import (
	"io"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, w *watcher, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if _, err := io.WriteString(w, s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatcherFindsTextTornApartByWritesAndColours(t *testing.T) {
	var log strings.Builder
	w := newWatcher(Expectation{Expect: []string{"golden login:", "Reached"}, Reject: []string{"panic"}}, &log)
	write(t, w, "\x1b[0;1;39mgol", "den log", "\x1b[0min:")
	if w.met() {
		t.Fatal("decided before every expected text appeared")
	}
	write(t, w, " \x1b]0;title\x07Rea\r", "ched")
	select {
	case <-w.decided:
	default:
		t.Fatalf("not decided; tail %q", w.tail)
	}
	out := w.outcome()
	if !out.Passed || out.Console != "golden login: Reached" {
		t.Errorf("got passed %v, console %q", out.Passed, out.Console)
	}
	if !strings.Contains(log.String(), "\x1b[0;1;39m") {
		t.Errorf("the log lost raw bytes: %q", log.String())
	}
}

func TestWatcherRejects(t *testing.T) {
	w := newWatcher(Expectation{Expect: []string{"login:"}, Reject: []string{"Kernel panic"}}, io.Discard)
	write(t, w, "x", "Kernel ", "panic - not syncing\nlogin:")
	if out := w.outcome(); out.Passed || out.Reason != `"Kernel panic" appeared on the console` {
		t.Errorf("got %+v", out)
	}
	if m := w.missing(); len(m) != 0 {
		t.Errorf("missing %q, want none", m)
	}
}

func TestWatcherKeepsABoundedTail(t *testing.T) {
	w := newWatcher(Expectation{Expect: []string{"never"}}, io.Discard)
	for range 100 {
		write(t, w, strings.Repeat("0123456789abcde\n", 1000))
	}
	if n := len(w.outcome().Console); n != tailSize {
		t.Errorf("console of %d bytes, want %d", n, tailSize)
	}
	if cap(w.tail) > 8*tailSize {
		t.Errorf("the tail holds %d bytes", cap(w.tail))
	}
}

func TestArgsEscapeCommasAndNameTheSector(t *testing.T) {
	m := Machine{Host: Host{Arch: "amd64"}, Accel: "tcg", Disk: "a,b.raw", SectorSize: 4096}
	all := strings.Join(m.args("v"), " ")
	for _, want := range []string{"file=a,,b.raw", "logical_block_size=4096", "-accel tcg", "snapshot=off"} {
		if !strings.Contains(all, want) {
			t.Errorf("arguments lack %q: %s", want, all)
		}
	}
}

func TestArgsOfArm64(t *testing.T) {
	for accel, cpu := range map[string]string{"tcg": "max", "kvm": "host"} {
		args := strings.Join(Machine{Host: Host{Arch: "arm64", Code: "c"}, Accel: accel, Disk: "d"}.args("v"), " ")
		if !strings.Contains(args, "-machine virt -accel "+accel+" -cpu "+cpu+" ") {
			t.Errorf("%s: %s", accel, args)
		}
	}
}

func TestWatchReportsAGuestThatCannotRun(t *testing.T) {
	m := Machine{Host: Host{Arch: "amd64", Emulator: "/bin/false", Vars: "/dev/null"}, Accel: "tcg"}
	if _, err := m.Watch(t.Context(), Expectation{Expect: []string{"x"}, Timeout: time.Minute}, io.Discard); err == nil {
		t.Error("want an error")
	}
}
