package tftp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// transfer is one file on its way to one client. Blocks are numbered from 1 in
// 64 bits here; 16 of them are on the wire, and roll over to 0.
type transfer struct {
	o       Options
	file    io.ReaderAt
	size    int64
	conn    net.Conn
	block   int64
	window  int64
	timeout time.Duration
	oack    []byte // nil: no options were agreed
	packet  []byte // one DATA packet
	last    int64  // number of the last block, which is shorter than the others
	high    int64  // the last block that was ever sent
}

type abortedError string

func (e abortedError) Error() string { return "aborted by the client: " + string(e) }

var errTimeout = errors.New("the client answers no more")

func newTransfer(o Options, r request, f File, conn net.Conn) *transfer {
	t := &transfer{o: o, file: f, size: f.Size(), conn: conn, block: defaultBlock, window: 1, timeout: o.Timeout}
	if r.block != 0 {
		t.block = int64(min(r.block, o.MaxBlock))
	}
	if r.window != 0 {
		t.window = int64(min(r.window, o.Window))
	}
	if r.timeout != 0 {
		t.timeout = r.timeout
	}
	t.oack = r.oack(int(t.block), int(t.window), t.size)
	t.packet = make([]byte, 4+t.block)
	t.last = t.size/t.block + 1
	return t
}

// run sends the file: window by window, each until it is acknowledged.
func (t *transfer) run(ctx context.Context) error {
	var acked int64 // all blocks up to here
	if t.oack != nil {
		if err := t.agree(ctx); err != nil {
			return err
		}
	}
	for acked < t.last {
		n, err := t.sendWindow(ctx, acked)
		if err != nil {
			return err
		}
		t.o.Stats.Bytes.Add(min(n*t.block, t.size) - min(acked*t.block, t.size))
		acked = n
	}
	return nil
}

// agree sends the OACK until the client acknowledges it as block 0.
func (t *transfer) agree(ctx context.Context) error {
	_, err := t.exchange(ctx, 0, 0, func() error { _, err := t.conn.Write(t.oack); return err })
	return err
}

// sendWindow sends the blocks behind acked and returns the last one that the
// client has now, which is behind acked.
func (t *transfer) sendWindow(ctx context.Context, acked int64) (int64, error) {
	end := min(acked+t.window, t.last)
	return t.exchange(ctx, acked, end, func() error {
		for n := acked + 1; n <= end; n++ {
			if err := t.send(n); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *transfer) send(n int64) error {
	binary.BigEndian.PutUint16(t.packet, opData)
	binary.BigEndian.PutUint16(t.packet[2:], uint16(n))
	off := (n - 1) * t.block
	b := t.packet[4 : 4+min(t.block, t.size-off)]
	if k, err := t.file.ReadAt(b, off); k < len(b) {
		_, _ = t.conn.Write(errorPacket(errOther, "cannot be read"))
		return fmt.Errorf("bytes %d-%d: %w", off, off+int64(len(b)), err)
	}
	if n <= t.high {
		t.o.Stats.Resent.Add(1)
	}
	t.high = max(t.high, n)
	_, err := t.conn.Write(t.packet[:4+len(b)])
	return err
}

// exchange sends, and again after each timeout at doubled distance, until a
// block in (acked, end] is acknowledged; for an OACK, with end 0, until block 0 is.
//
// A repeated acknowledgement of what is acked already is never a reason to send
// again with a window of 1: that would double every block to the end of the file
// (Sorcerer's Apprentice, RFC 1123 section 4.2.3.1). With a larger window it says
// that the window's first block was lost (RFC 7440 section 4), once for each time it was sent.
func (t *transfer) exchange(ctx context.Context, acked, end int64, send func() error) (int64, error) {
	wait := t.timeout
	for try := 0; try <= t.o.Retries; try++ {
		if err := send(); unreachable(err) {
			return 0, abortedError("its port is closed")
		} else if err != nil && !transient(err) {
			return 0, err
		}
		again := t.window > 1
		deadline := time.Now().Add(wait)
		for {
			n, err := t.receive(ctx, deadline, acked, end)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return 0, err
			}
			if n > acked || end == 0 && n == 0 {
				return n, nil
			}
			if n == acked && again {
				again = false
				if err := send(); err != nil && !transient(err) {
					return 0, err
				}
			}
		}
		wait = min(2*wait, 8*time.Second+t.timeout)
	}
	return 0, errTimeout
}

// receive waits for an acknowledgement and returns its block; -1 is one that
// says nothing.
func (t *transfer) receive(ctx context.Context, deadline time.Time, acked, end int64) (int64, error) {
	_ = t.conn.SetReadDeadline(deadline)
	if err := ctx.Err(); err != nil { // after the deadline was set, which ctx's end overrides
		return 0, err
	}
	var b [516]byte
	n, err := t.conn.Read(b[:])
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if unreachable(err) {
		return 0, abortedError("its port is closed")
	}
	if err != nil {
		return 0, err
	}
	if n < 4 {
		return -1, nil
	}
	switch binary.BigEndian.Uint16(b[:]) {
	case opError:
		text, _, _ := strings.Cut(string(b[4:n]), "\x00")
		return 0, abortedError(fmt.Sprintf("error %d: %q", binary.BigEndian.Uint16(b[2:]), text))
	case opAck:
		ahead := int64(binary.BigEndian.Uint16(b[2:]) - uint16(acked)) // modulo 65536
		if ahead <= end-acked {
			return acked + ahead, nil
		}
	}
	return -1, nil
}

// unreachable: an ICMP error says that the client has gone.
func unreachable(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// transient: the packet is as good as lost on the way.
func transient(err error) bool {
	return errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EPERM) ||
		errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
