// Package call makes the agent's calls to the server: docs/netboot.md, sections
// 3 and 4.
//
//	c, err := call.New(call.Options{URLs: urls, CAs: pem, Key: key})
//	answer, err := c.Claim(ctx, &wire.Claim{…})
//
// It guarantees that nothing is sent to whoever does not prove, by TLS 1.3, to be
// the server under one of the CAs, whatever the clock says; that every connection
// proves the boot key; and that a call is repeated, with pauses that grow, for as
// long as the network or the server's trouble is the reason. What a server refuses
// is a *Refused at once. Answers are bounded before they are decoded.
//
// A Client is safe for concurrent use.
package call

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Options say whom to call, and how.
type Options struct {
	// URLs returns where the server may be, best first: hints, of which the
	// first that proves itself is used. It is asked before every try.
	URLs     func() []string
	CAs      []string           // certificates that the server's may be under, PEM
	Insecure bool               // any server is believed
	Key      ed25519.PrivateKey // the boot key
	Now      func() time.Time   // to warn of certificates whose time is over; nil: no warnings
	Notify   func(string)       // told why a call is repeated, and of warnings; nil: nobody
	Timeout  time.Duration      // of one try; 0: 20 s
	Backoff  time.Duration      // the first pause; 0: 0.5 s; doubled up to 60 times as long
}

// Client calls a server.
type Client struct {
	o    Options
	http *http.Client
	key  string

	mu   sync.Mutex
	last string // the URL that answered last
	told string // what was told last
}

// Refused is the answer of a server that does not do what was asked.
type Refused struct {
	Status int
	Code   wire.Code
	Reason string
	after  time.Duration // Retry-After
}

func (e *Refused) Error() string {
	return fmt.Sprintf("the server refuses (%d %s): %s", e.Status, e.Code, e.Reason)
}

// New prepares a client; it calls nobody.
func New(o Options) (*Client, error) {
	if o.Timeout <= 0 {
		o.Timeout = 20 * time.Second
	}
	if o.Backoff <= 0 {
		o.Backoff = 500 * time.Millisecond
	}
	if o.Notify == nil {
		o.Notify = func(string) {}
	}
	c := &Client{o: o}
	t, err := c.transport()
	if err != nil {
		return nil, err
	}
	// A redirect would be obeyed by whoever it leads to.
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// Transport is for other requests to the same server, under the same proofs.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Key is the boot key's name: the SHA-256 of its SPKI, in hexadecimal digits.
func (c *Client) Key() string { return c.key }

// URL is where the server answered last; "" before it did.
func (c *Client) URL() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Claim asks for the machine's job.
func (c *Client) Claim(ctx context.Context, m *wire.Claim) (*wire.Answer, error) {
	a := new(wire.Answer)
	return a, c.call(ctx, "/v1/claim", m, a)
}

// Begin asks for leave to write.
func (c *Client) Begin(ctx context.Context, job string, m *wire.Begin) (*wire.Ack, error) {
	return c.job(ctx, job, "begin", m)
}

// Events tells what happened.
func (c *Client) Events(ctx context.Context, job string, m *wire.Events) (*wire.Ack, error) {
	return c.job(ctx, job, "events", m)
}

// Result ends an attempt.
func (c *Client) Result(ctx context.Context, job string, m *wire.Result) (*wire.Ack, error) {
	return c.job(ctx, job, "result", m)
}

func (c *Client) job(ctx context.Context, job, what string, m any) (*wire.Ack, error) {
	a := new(wire.Ack)
	return a, c.call(ctx, "/v1/jobs/"+url.PathEscape(job)+"/"+what, m, a)
}

// call repeats a call until it is answered, refused, or ctx ends.
func (c *Client) call(ctx context.Context, path string, body, answer any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	pause := c.o.Backoff
	for try := 0; ; try++ {
		err := c.try(ctx, try, path, b, answer)
		if err == nil || ctx.Err() != nil {
			c.tell("")
			return errors.Join(err, context.Cause(ctx))
		}
		wait := time.Duration((0.5 + rand.Float64()) * float64(pause)) // many agents wait for one server
		if r, ok := errors.AsType[*Refused](err); ok {
			if r.Status < 500 && r.Status != http.StatusTooManyRequests && r.Status != http.StatusRequestTimeout {
				return err
			}
			wait = max(wait, r.after)
		}
		c.tell(err.Error())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		pause = min(2*pause, 60*c.o.Backoff)
	}
}

// tell says something once.
func (c *Client) tell(what string) {
	c.mu.Lock()
	news := what != c.told
	c.told = what
	c.mu.Unlock()
	if news && what != "" {
		c.o.Notify(what)
	}
}

// try makes a call once: at the server that answered last, else at each in turn.
func (c *Client) try(ctx context.Context, n int, path string, body []byte, answer any) error {
	urls := c.o.URLs()
	if len(urls) == 0 {
		return errors.New("no server is known: neither the environment, nor DHCP, nor the command line names one")
	}
	base := urls[n%len(urls)]
	if last := c.URL(); n == 0 && last != "" {
		base = last
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s%s: the answer: %w", base, path, err)
	case len(b) > wire.MaxAnswer:
		return fmt.Errorf("%s%s: an answer of more than %d bytes", base, path, wire.MaxAnswer)
	case resp.StatusCode != http.StatusOK:
		return refused(resp, b)
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("%s%s: the answer: %w", base, path, err)
	}
	c.mu.Lock()
	c.last = base
	c.mu.Unlock()
	return nil
}

// refused reads an answer that is none.
func refused(resp *http.Response, b []byte) error {
	var e wire.Error
	r := &Refused{Status: resp.StatusCode, Reason: resp.Status}
	if json.Unmarshal(b, &e) == nil && e.Error != "" {
		r.Code, r.Reason = e.Code, e.Error[:min(len(e.Error), 1024)]
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		r.after = time.Duration(min(s, 300)) * time.Second
	}
	if r.Status < 400 { // a redirect, or an empty answer: it is not our server's
		return fmt.Errorf("%s: status %d", resp.Request.URL, r.Status)
	}
	return r
}

func keyName(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}
