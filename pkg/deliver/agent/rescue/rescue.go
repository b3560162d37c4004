// Package rescue lets a person look at a machine that the agent holds: ssh with
// commands of its own, and no shell.
//
//	err := rescue.Serve(ctx, listener, answer.Rescue, rescue.Machine{Say: log, Restart: hw.Restart, …})
//
// Who may come in is in the answer of an authenticated server, and only where
// the environment was built to allow it: the caller sees to both. It guarantees that
// nobody else comes in, that what comes in cannot change the disk, start a program, or reach
// another machine through this one, and that it costs a bounded amount. The host's
// key is made anew for each boot, its fingerprint is said.
package rescue

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// Bounds of what visitors cost.
const (
	maxConns    = 8 // at once, with those that are not let in yet
	maxSessions = 4 // of one connection
	maxKeys     = 64
	loginTime   = 20 * time.Second
	idleTime    = 15 * time.Minute // without a byte in either direction
)

// ErrNoKeys: nobody could come in.
var ErrNoKeys = errors.New("rescue: no key")

// Machine is what the commands show and do. Functions that are nil are commands
// that are not there.
type Machine struct {
	Root     string                                      // proc and sys are below it; "" is /
	Say      func(string)                                // the console: fingerprint, who came, who was refused
	Console  func() string                               // the console's tail
	Disks    func(ctx context.Context) string            // a table for people
	Network  func() string                               // what the agent knows of its network
	Kernel   func(ctx context.Context) ([]string, error) // the kernel's log; nil: read from /dev/kmsg
	Restart  func() error
	PowerOff func() error
}

// Serve answers on l until ctx ends, closes it, and waits for all sessions. Keys are lines
// of authorized_keys (sshd(8)); their options are not known here, and a line with
// any is refused rather than taken for more than it says. It fails where no key is left.
func Serve(ctx context.Context, l net.Listener, authorizedKeys []string, m Machine) error {
	defer l.Close()
	if m.Say == nil {
		m.Say = func(string) {}
	}
	keys := parseKeys(authorizedKeys, m.Say)
	if len(keys) == 0 {
		return ErrNoKeys
	}
	config, fingerprint, err := serverConfig(keys)
	if err != nil {
		return err
	}
	m.Say(fmt.Sprintf("rescue: ssh on %s, host key %s, %d keys may come in", l.Addr(), fingerprint, len(keys)))
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("rescue: %w", err)
			}
			m.Say("rescue: " + err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // out of file descriptors, say
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-slots }()
				serveConn(ctx, conn, config, m)
			})
		default:
			conn.Close()
		}
	}
}

func parseKeys(lines []string, say func(string)) (keys []ssh.PublicKey) {
	for i, line := range lines {
		if len(keys) == maxKeys {
			say("rescue: too many keys; the rest is left out")
			break
		}
		key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		switch {
		case err != nil:
			say(fmt.Sprintf("rescue: key %d: %v", i+1, err))
		case len(options) > 0 || len(rest) > 0:
			say(fmt.Sprintf("rescue: key %d: a line of one key without options is wanted", i+1))
		default:
			keys = append(keys, key)
		}
	}
	return keys
}

func serverConfig(keys []ssh.PublicKey) (*ssh.ServerConfig, string, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("rescue: host key: %w", err)
	}
	host, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, "", fmt.Errorf("rescue: host key: %w", err)
	}
	c := &ssh.ServerConfig{MaxAuthTries: 6, ServerVersion: "SSH-2.0-imgpush", PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		for _, k := range keys {
			if subtle.ConstantTimeCompare(k.Marshal(), key.Marshal()) == 1 {
				return &ssh.Permissions{Extensions: map[string]string{"key": ssh.FingerprintSHA256(key)}}, nil
			}
		}
		return nil, errors.New("this key may not come in")
	}}
	c.AddHostKey(host)
	return c, ssh.FingerprintSHA256(host.PublicKey()), nil
}

// serveConn is one visitor. The deadline is that of logging in, then that of silence.
func serveConn(ctx context.Context, conn net.Conn, config *ssh.ServerConfig, m Machine) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	from := conn.RemoteAddr().String()
	quiet := &idle{Conn: conn}
	_ = conn.SetDeadline(time.Now().Add(loginTime))
	c, channels, requests, err := ssh.NewServerConn(quiet, config)
	if err != nil {
		m.Say(fmt.Sprintf("rescue: %s was refused: %.200q", from, err.Error()))
		return
	}
	defer c.Close()
	quiet.begin()
	m.Say(fmt.Sprintf("rescue: %s came in with %s", from, c.Permissions.Extensions["key"]))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go ssh.DiscardRequests(requests) // ends with the connection: forwarding, keep-alives
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxSessions)
	for ch := range channels {
		if ch.ChannelType() != "session" {
			_ = ch.Reject(ssh.Prohibited, "there are sessions only")
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = ch.Reject(ssh.ResourceShortage, "too many sessions")
			continue
		}
		session, in, err := ch.Accept()
		if err != nil {
			<-slots
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			m.serveSession(ctx, session, in)
		})
	}
	cancel()
	wg.Wait()
	m.Say(fmt.Sprintf("rescue: %s left", from))
}

// idle moves the deadline on with each byte, once someone is in.
type idle struct {
	net.Conn
	mu sync.Mutex
	in bool
}

func (i *idle) begin() { i.mu.Lock(); i.in = true; i.mu.Unlock(); i.moved() }

func (i *idle) moved() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.in {
		_ = i.Conn.SetDeadline(time.Now().Add(idleTime))
	}
}

func (i *idle) Read(p []byte) (int, error) {
	n, err := i.Conn.Read(p)
	if n > 0 {
		i.moved()
	}
	return n, err
}

func (i *idle) Write(p []byte) (int, error) {
	n, err := i.Conn.Write(p)
	if n > 0 {
		i.moved()
	}
	return n, err
}

var _ io.ReadWriter = (*idle)(nil)
