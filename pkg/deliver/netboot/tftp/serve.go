package tftp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/udp"
)

// server is what the sessions share.
type server struct {
	Options
	files Files
	conn  *udp.Conn

	mu       sync.Mutex
	sessions map[peer]struct{}
}

// peer names a session: a client repeats its request from the same port.
type peer struct {
	client netip.AddrPort
	local  netip.Addr
}

// Conn is the socket on which requests come in.
type Conn struct{ c *udp.Conn }

// Listen binds an IPv4 address and UDP port: ":69" is RFC 1350's port on all addresses.
func Listen(ctx context.Context, address string) (*Conn, error) {
	c, err := udp.Listen(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("tftp: %w", err)
	}
	return &Conn{c}, nil
}

// Port is the port that was bound.
func (c *Conn) Port() int { return c.c.LocalAddr().(*net.UDPAddr).Port }

// Close is for a Conn that is not served.
func (c *Conn) Close() error { return c.c.Close() }

// Serve answers on conn until ctx ends, then waits for its sessions, which end
// with ctx as well, and returns nil. conn is closed. An error means that conn
// broke: nothing is served any more.
func Serve(ctx context.Context, conn *Conn, files Files, o Options) error {
	c := conn.c
	s := &server{Options: o.withDefaults(), files: files, conn: c, sessions: map[peer]struct{}{}}
	_ = c.SetReadBuffer(1 << 20) // requests of many at once; a smaller one loses some, which are repeated
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	b := make([]byte, maxRequest+1)
	for {
		n, at, err := c.Receive(b)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("tftp: %w", err)
		}
		if err == nil { // else a client's ICMP error: nothing of ours
			s.receive(ctx, &wg, b[:n], at)
		}
	}
}

func (o Options) withDefaults() Options {
	def := func(p *int, n int) {
		if *p == 0 {
			*p = n
		}
	}
	def(&o.Sessions, 4096)
	def(&o.MaxBlock, 1468)
	def(&o.Window, 16)
	def(&o.Retries, 6)
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Stats == nil {
		o.Stats = new(Stats)
	}
	return o
}

// receive starts a session for a good request.
func (s *server) receive(ctx context.Context, wg *sync.WaitGroup, b []byte, at udp.Arrival) {
	if len(b) < 2 || at.From.Port() == 0 {
		s.Stats.Malformed.Add(1)
		return
	}
	switch binary.BigEndian.Uint16(b) {
	case opRead:
	case opWrite:
		s.refuse(at, errAccess, "read only")
		return
	case opError:
		return // never answered
	default:
		s.Stats.Malformed.Add(1)
		return
	}
	r, err := parseRequest(b)
	if err != nil {
		s.Stats.Malformed.Add(1)
		s.refuse(at, errIllegal, "malformed request")
		return
	}
	if !r.octet {
		s.refuse(at, errIllegal, "only mode octet is served")
		return
	}
	p := peer{at.From, at.Local}
	if !s.enter(p) {
		return
	}
	wg.Go(func() {
		defer s.leave(p)
		s.session(ctx, r, at)
	})
}

// enter takes a place. A request of a session that runs is the client's
// repetition: the session repeats its answer by itself.
func (s *server) enter(p peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.sessions[p]; ok {
		s.Stats.Repeated.Add(1)
		return false
	}
	if len(s.sessions) >= s.Options.Sessions {
		s.Stats.Late.Add(1)
		return false
	}
	s.Stats.Requests.Add(1)
	s.Stats.Sessions.Add(1)
	s.sessions[p] = struct{}{}
	return true
}

func (s *server) leave(p peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, p)
	s.Stats.Sessions.Add(-1)
}

func (s *server) refuse(at udp.Arrival, code uint16, text string) {
	s.Stats.Refused.Add(1)
	_ = s.conn.Answer(errorPacket(code, text), at) // the client asks again if it is lost
	s.Log.Debug("tftp: refused", "client", at.From.String(), "why", text)
}

// session serves one request from a socket of its own: the server's transfer
// identifier (RFC 1350 section 4).
func (s *server) session(ctx context.Context, r request, at udp.Arrival) {
	f, err := s.files.Open(ctx, r.name, at.From)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.refuse(at, errNotFound, "no such file")
		return
	case err != nil:
		s.Stats.Failed.Add(1)
		s.Log.Warn("tftp: a file cannot be opened", "client", at.From.String(), "file", r.name, "error", err)
		_ = s.conn.Answer(errorPacket(errOther, "cannot be read"), at)
		return
	}
	if c, ok := f.(io.Closer); ok {
		defer c.Close() // was only read
	}
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local(at), 0)), net.UDPAddrFromAddrPort(at.From))
	if err != nil {
		s.Stats.Failed.Add(1)
		s.Log.Warn("tftp: no socket", "client", at.From.String(), "error", err)
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	s.report(r, at, newTransfer(s.Options, r, f, conn).run(ctx))
}

func local(at udp.Arrival) netip.Addr {
	if at.Local.Is4() {
		return at.Local
	}
	return netip.IPv4Unspecified()
}

func (s *server) report(r request, at udp.Arrival, err error) {
	log := s.Log.With("client", at.From.String(), "file", r.name)
	var aborted abortedError
	switch {
	case err == nil:
		s.Stats.Done.Add(1)
		log.Debug("tftp: sent")
	case errors.As(err, &aborted):
		s.Stats.Aborted.Add(1)
		log.Debug("tftp: aborted by the client", "why", string(aborted))
	case errors.Is(err, errTimeout):
		s.Stats.TimedOut.Add(1)
		log.Info("tftp: the client answers no more")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	default:
		s.Stats.Failed.Add(1)
		log.Warn("tftp: transfer failed", "error", err)
	}
}
