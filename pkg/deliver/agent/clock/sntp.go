package clock

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// ErrNoTime: the server answered, and has no time to give.
var ErrNoTime = errors.New("the server has no time")

const (
	tries   = 3
	timeout = 2 * time.Second // of one
)

// SNTP asks server, HOST or HOST:PORT, for the time (RFC 4330, as a client of RFC 5905's
// packet): three times, two seconds each. The answer must carry the random number that was asked
// with and come from the address that was asked; it is plain text all the same, and
// half of the way is guessed. On an error the time is zero.
func SNTP(ctx context.Context, server string) (time.Time, error) {
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(server, "123")
	}
	var last error
	for range tries {
		t, err := ask(ctx, server)
		if err == nil {
			return t, nil
		}
		last = err
		if ctx.Err() != nil || errors.Is(err, ErrNoTime) {
			break
		}
	}
	return time.Time{}, fmt.Errorf("SNTP %s: %w", server, last)
}

func ask(ctx context.Context, server string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", server)
	if err != nil {
		return time.Time{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	q := make([]byte, 48)
	q[0] = 4<<3 | 3                                // version 4, client
	if _, err := rand.Read(q[40:48]); err != nil { // in place of our time, which is nobody's business
		return time.Time{}, err
	}
	start := time.Now()
	if _, err := conn.Write(q); err != nil {
		return time.Time{}, err
	}
	b := make([]byte, 1024)
	for {
		n, err := conn.Read(b)
		if ctx.Err() != nil {
			return time.Time{}, errors.Join(errors.New("no answer"), ctx.Err())
		}
		if err != nil {
			return time.Time{}, err
		}
		t, ok, err := answer(b[:n], [8]byte(q[40:48]))
		if err != nil {
			return time.Time{}, err
		}
		if ok {
			return t.Add(time.Since(start) / 2), nil
		}
	}
}

// answer reads a server's packet; ok is false where it answers another question.
func answer(b []byte, asked [8]byte) (t time.Time, ok bool, err error) {
	if len(b) < 48 || b[0]&7 != 4 || [8]byte(b[24:32]) != asked {
		return t, false, nil
	}
	leap, version, stratum := b[0]>>6, b[0]>>3&7, b[1]
	if version < 3 || version > 4 {
		return t, false, nil
	}
	seconds, fraction := binary.BigEndian.Uint32(b[40:]), binary.BigEndian.Uint32(b[44:])
	if leap == 3 || stratum == 0 || stratum > 15 || seconds == 0 {
		return t, false, ErrNoTime // not synchronised, or a kiss of death
	}
	// RFC 4330 section 3: with the first bit clear it is an era that began in 2036.
	s := int64(seconds) - 2208988800
	if seconds < 1<<31 {
		s += 1 << 32
	}
	return time.Unix(s, int64(uint64(fraction)*1e9>>32)), true, nil
}
