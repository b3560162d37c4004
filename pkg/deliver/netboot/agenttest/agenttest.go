// Package agenttest has an agent that speaks the protocol of docs/netboot.md and
// writes no disk: for tests of the server, and of five hundred machines at once.
//
//	a, err := agenttest.New("https://127.0.0.1:8443", roots, agenttest.Machine(7))
//	answer, err := a.Claim(ctx)
//	err = a.Install(ctx, answer.Job, agenttest.Steps{Events: 3})
package agenttest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Agent is one boot of an agent: it has a boot key of its own.
type Agent struct {
	Claimed wire.Claim // what it says of its machine
	Key     string     // its boot key, as the server names it
	url     string
	http    *http.Client
}

// Machine returns what the nth simulated machine says of itself.
func Machine(n int) wire.Claim {
	mac := fmt.Sprintf("52:54:00:%02x:%02x:%02x", n>>16&255, n>>8&255, n&255)
	return wire.Claim{
		Version:     wire.Version,
		Environment: wire.Environment{Name: "test", Version: "1", Kernel: "6.1.0", Agent: "test"},
		Identity:    wire.Identity{UUID: fmt.Sprintf("5a5a0000-0000-4000-8000-%012x", n), Serial: fmt.Sprintf("SIM%06d", n), MACs: []string{mac}},
		Inventory: wire.Inventory{Vendor: "Simulated", Model: "Machine", Architecture: "amd64", Firmware: "uefi", Memory: 1 << 30,
			NICs:  []wire.NIC{{Name: "eth0", MAC: mac, Link: true}},
			Disks: []wire.Disk{{Name: "vda", Size: 20e9, SectorSize: 512, Transport: "virtio", Serial: fmt.Sprintf("DISK%06d", n)}}},
	}
}

// New starts an agent: it draws a boot key. roots are the CAs of the environment.
func New(url string, roots *x509.CertPool, c wire.Claim) (*Agent, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, public, private)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}
	return &Agent{Claimed: c, Key: hex.EncodeToString(sum[:]), url: url, http: &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: time.Minute, TLSClientConfig: &tls.Config{
			RootCAs: roots, ServerName: wire.ServerName, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}},
	}}, nil
}

// HTTP is the agent's client: its connections present the boot key.
func (a *Agent) HTTP() *http.Client { return a.http }

// Close closes idle connections.
func (a *Agent) Close() { a.http.CloseIdleConnections() }

// Refused is an answer with a status of 400 or more.
type Refused struct {
	Status  int
	Code    wire.Code
	Message string
}

func (e *Refused) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message) }

// Post sends one message.
func (a *Agent) Post(ctx context.Context, path string, body, answer any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(io.LimitReader(resp.Body, wire.MaxAnswer))
	if resp.StatusCode >= 400 {
		var e wire.Error
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("status %d: %w", resp.StatusCode, err)
		}
		return &Refused{resp.StatusCode, e.Code, e.Error}
	}
	return d.Decode(answer)
}

// Claim asks for the machine's job.
func (a *Agent) Claim(ctx context.Context) (*wire.Answer, error) {
	out := new(wire.Answer)
	return out, a.Post(ctx, "/v1/claim", a.Claimed, out)
}

// Begin asks for leave to write.
func (a *Agent) Begin(ctx context.Context, j *wire.Job) error {
	return a.Post(ctx, "/v1/jobs/"+j.ID+"/begin", wire.Begin{Attempt: j.Attempt, Disk: a.Claimed.Inventory.Disks[0]}, &wire.Ack{})
}

// Tell sends events.
func (a *Agent) Tell(ctx context.Context, j *wire.Job, e wire.Events) error {
	e.Attempt = j.Attempt
	return a.Post(ctx, "/v1/jobs/"+j.ID+"/events", e, &wire.Ack{})
}

// Result ends the attempt.
func (a *Agent) Result(ctx context.Context, j *wire.Job, r wire.Result) error {
	r.Attempt = j.Attempt
	return a.Post(ctx, "/v1/jobs/"+j.ID+"/result", r, &wire.Ack{})
}

// Steps say how Install goes.
type Steps struct {
	Events int // messages with counters between begin and the commit
	Bytes  int64
	Each   func(step int) error // between them; nil: nothing
}

// Install goes through a job to its commit.
func (a *Agent) Install(ctx context.Context, j *wire.Job, s Steps) error {
	if err := a.Begin(ctx, j); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	for i := range s.Events {
		if s.Each != nil {
			if err := s.Each(i); err != nil {
				return err
			}
		}
		done := s.Bytes * int64(i+1) / int64(s.Events)
		if err := a.Tell(ctx, j, wire.Events{
			Events:   []wire.Event{{Seq: int64(i + 1), Uptime: float64(i), Step: "write", State: "info"}},
			Counters: &wire.Counters{Phase: "write", Fetched: done, Written: done, ToFetch: s.Bytes, ToWrite: s.Bytes},
		}); err != nil {
			return fmt.Errorf("events: %w", err)
		}
	}
	if err := a.Result(ctx, j, wire.Result{Outcome: wire.Committed, State: "complete"}); err != nil {
		return fmt.Errorf("result: %w", err)
	}
	return nil
}

// At is the same boot of the agent, talking to the server at another URL.
func (a *Agent) At(url string) *Agent {
	b := *a
	b.url = url
	return &b
}
