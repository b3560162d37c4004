package clock

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestChoose(t *testing.T) {
	floor := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	none, later, evenLater := time.Time{}, floor.Add(48*time.Hour), floor.Add(72*time.Hour)
	before, never := floor.Add(-time.Hour), floor.Add(Horizon+time.Hour)
	for _, c := range []struct {
		name              string
		rtc, sntp, server time.Time
		want              time.Time
		why               string
	}{
		{"nobody says anything", none, none, none, floor, "the environment's floor"},
		{"a clock that works", later, none, none, later, "the machine's clock"},
		{"a flat battery", time.Unix(0, 0), none, none, floor, "1970-01-01 00:00:00, before the environment was built"},
		{"a flat battery and SNTP", time.Unix(0, 0), later, none, later, "SNTP"},
		{"SNTP is better than the clock", evenLater, later, none, later, "SNTP"},
		{"the server is better than both", later, later, evenLater, evenLater, "the server's time"},
		{"a forged answer from the past", later, before, none, later, "the machine's clock; SNTP says"},
		{"a forged answer from far away", none, never, none, floor, "too far after"},
		{"all lie", never, before, before, floor, "the environment's floor; the server's time says"},
		{"exactly the floor", floor, none, none, floor, "the machine's clock"},
	} {
		got, why := Choose(floor, c.rtc, c.sntp, c.server)
		if !got.Equal(c.want) || !strings.Contains(why, c.why) {
			t.Errorf("%s: got %v, %q, want %v, %q", c.name, got, why, c.want, c.why)
		}
	}
}

// sntpServer answers each packet with what f makes of it; nil is silence.
func sntpServer(t *testing.T, f func(q []byte) [][]byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			for _, a := range f(b[:n]) {
				_, _ = conn.WriteTo(a, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

// reply is a good answer, which tests then spoil.
func reply(q []byte, at time.Time) []byte {
	a := make([]byte, 48)
	a[0], a[1] = 4<<3|4, 2
	copy(a[24:], q[40:48])
	binary.BigEndian.PutUint32(a[40:], uint32(at.Unix()+2208988800))
	binary.BigEndian.PutUint32(a[44:], uint32(uint64(at.Nanosecond())<<32/1e9))
	return a
}

func TestSNTP(t *testing.T) {
	for _, want := range []time.Time{time.Date(2026, 11, 25, 1, 2, 3, 500_000_000, time.UTC), time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)} {
		server := sntpServer(t, func(q []byte) [][]byte {
			if len(q) != 48 || q[0] != 4<<3|3 {
				t.Errorf("it asked %x", q)
			}
			other := reply(q, want.Add(time.Hour))
			other[24] ^= 1 // someone who did not see the question
			broadcast := reply(q, want.Add(time.Hour))
			broadcast[0] = 4<<3 | 5
			return [][]byte{{1, 2, 3}, other, broadcast, reply(q, want)}
		})
		got, err := SNTP(t.Context(), server)
		if d := got.Sub(want); err != nil || d < -time.Millisecond || d > time.Second {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
}

// A server without a time gives none, rather than 1970.
func TestSNTPWithoutATime(t *testing.T) {
	for name, spoil := range map[string]func(a []byte){
		"not synchronised": func(a []byte) { a[0] |= 3 << 6 }, "kiss of death": func(a []byte) { a[1] = 0 },
		"stratum 16": func(a []byte) { a[1] = 16 }, "zero": func(a []byte) { clear(a[40:48]) },
	} {
		server := sntpServer(t, func(q []byte) [][]byte { a := reply(q, time.Now()); spoil(a); return [][]byte{a} })
		if got, err := SNTP(t.Context(), server); !errors.Is(err, ErrNoTime) || !got.IsZero() {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

// A server that lost the first question is asked again; one that is silent ends with ctx.
func TestSNTPSilence(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := sntpServer(t, func([]byte) [][]byte { cancel(); return nil })
	start := time.Now()
	if got, err := SNTP(ctx, server); err == nil || !got.IsZero() || time.Since(start) > time.Second {
		t.Errorf("got %v, %v after %v", got, err, time.Since(start))
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(reply(make([]byte, 48), time.Unix(1e9, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		at, ok, err := answer(b, [8]byte{})
		if ok == at.IsZero() || ok && err != nil {
			t.Errorf("%x: %v, %v, %v", b, at, ok, err)
		}
	})
}

func TestFromRTC(t *testing.T) {
	if got := fromRTC(&unix.RTCTime{Year: 126, Mon: 10, Mday: 25, Hour: 23}); !got.Equal(time.Date(2026, 11, 25, 23, 0, 0, 0, time.UTC)) {
		t.Error(got)
	}
	for _, bad := range []unix.RTCTime{{Year: 126, Mon: 1, Mday: 31}, {Year: 126, Mon: 13, Mday: 1}, {}, {Year: 126, Mon: 10, Mday: 25, Hour: 99}} {
		if got := fromRTC(&bad); !got.IsZero() {
			t.Errorf("%+v is %v", bad, got)
		}
	}
}
