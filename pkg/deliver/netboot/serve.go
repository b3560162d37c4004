package netboot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Listeners are what a Server listens on; Run closes them. TLS is a TCP listener
// without TLS.
type Listeners struct {
	Plain, TLS, Admin net.Listener
}

// Bounds of what one port holds at a time. What comes on top waits.
const (
	maxConnections = 4096
	stopTime       = 10 * time.Second
	flushTime      = time.Second
	pingTime       = 10 * time.Second
	certifyTime    = time.Hour
	firstTime      = time.Minute
)

// Run serves until ctx ends; requests that run then have ten seconds. It closes
// the database.
func (s *Server) Run(ctx context.Context, l Listeners) error {
	servers := map[*http.Server]net.Listener{
		s.httpServer(s.Plain()): bounded(l.Plain),
		s.httpServer(s.TLS()):   tls.NewListener(bounded(l.TLS), s.TLSConfig()),
	}
	admin := s.httpServer(s.Admin())
	admin.ConnContext = peer
	servers[admin] = bounded(l.Admin)
	ended := make(chan error, len(servers))
	for server, listener := range servers {
		go func() { ended <- server.Serve(listener) }()
	}
	s.works.Go(func() { s.tick(s.working) })
	var err error
	running := len(servers)
	select {
	case err = <-ended:
		running--
	case <-ctx.Done():
	}
	s.o.Log.Info("stopping: what is running has ten seconds")
	s.stop()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	for server := range servers {
		if server.Shutdown(last) != nil {
			_ = server.Close() // who is still there has had its time
		}
	}
	for range running {
		if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	s.works.Wait()
	return errors.Join(err, s.store.Close())
}

// Close closes what New opened, where Run was not called.
func (s *Server) Close() error {
	s.stop()
	s.works.Wait()
	return s.store.Close()
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug), // handshakes that fail
	}
}

// peer names who is at the other end of a unix socket.
func peer(ctx context.Context, c net.Conn) context.Context {
	if b, ok := c.(*boundedConn); ok {
		c = b.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	name := ""
	_ = raw.Control(func(fd uintptr) { // without an answer, nobody is named
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			name = fmt.Sprintf("uid %d", cred.Uid)
		}
	})
	if name == "" {
		return ctx
	}
	return context.WithValue(ctx, caller{}, name)
}

// tick does what time asks for.
func (s *Server) tick(ctx context.Context) {
	s.first()
	flush, ping, certify, first := time.NewTicker(flushTime), time.NewTicker(pingTime), time.NewTicker(certifyTime), time.NewTicker(firstTime)
	defer flush.Stop()
	defer ping.Stop()
	defer certify.Stop()
	defer first.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-flush.C:
			if err := errors.Join(s.store.Tick(s.o.Now()), s.store.Flush()); err != nil {
				s.o.Log.Error("database", "error", err)
				s.sick.Store(&err)
			}
		case <-ping.C:
			if err := s.store.Ping(); err != nil {
				s.o.Log.Error("database", "error", err)
				s.sick.Store(&err)
			} else {
				s.sick.Store(nil)
			}
		case <-certify.C:
			if err := s.ca.certify(s.names(), s.o.Now(), s.o.Rand); err != nil {
				s.o.Log.Error("certificate", "error", err)
			}
		case <-first.C:
			s.first()
		}
	}
}

// bounded bounds the connections of a listener.
func bounded(l net.Listener) net.Listener {
	return &boundedListener{Listener: l, free: make(chan struct{}, maxConnections), closed: make(chan struct{})}
}

type boundedListener struct {
	net.Listener
	free   chan struct{}
	closed chan struct{}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &boundedConn{Conn: c, l: l}, nil
}

func (l *boundedListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return l.Listener.Close()
}

// boundedConn gives its place back once. Its ReadFrom is the connection's, by
// which files go out with sendfile(2).
type boundedConn struct {
	net.Conn
	l    *boundedListener
	once sync.Once
}

func (c *boundedConn) Close() error {
	c.once.Do(func() { <-c.l.free })
	return c.Conn.Close()
}

func (c *boundedConn) ReadFrom(r io.Reader) (int64, error) {
	if f, ok := c.Conn.(io.ReaderFrom); ok {
		return f.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}
