package call

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// authority is a CA of a site.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err == nil {
		ca, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &authority{ca, key}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// server starts one with a certificate of the authority, changed by change.
func (a *authority) server(t *testing.T, h http.HandlerFunc, change func(*x509.Certificate, *tls.Config)) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{wire.ServerName}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	config := &tls.Config{ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2", "http/1.1"}}
	if change != nil {
		change(c, config)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	s := httptest.NewUnstartedServer(h)
	s.TLS = config
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func client(t *testing.T, o Options, urls ...string) *Client {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o.URLs, o.Key, o.Backoff = func() []string { return urls }, key, time.Millisecond
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func local(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"action":"local"}`)) }

// TestWhomItBelieves holds that a server is believed for its CA and its name, and
// for nothing that a clock says.
func TestWhomItBelieves(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	for _, c := range []struct {
		name     string
		ca       *authority
		change   func(*x509.Certificate, *tls.Config)
		insecure bool
		refused  string // "": believed
		warned   string
	}{
		{name: "ours", ca: ours},
		{name: "of another CA", ca: theirs, refused: "unknown authority"},
		{name: "of another CA, in an environment that believes any", ca: theirs, insecure: true},
		{name: "of another name", ca: ours, refused: "not " + wire.ServerName, change: func(c *x509.Certificate, _ *tls.Config) { c.DNSNames = []string{"db1.example"} }},
		{name: "a client's", ca: ours, refused: "incompatible key usage", change: func(c *x509.Certificate, _ *tls.Config) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}},
		{name: "over since long", ca: ours, warned: "valid until 1999", change: func(c *x509.Certificate, _ *tls.Config) {
			c.NotBefore, c.NotAfter = time.Unix(0, 0), time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
		}},
		{name: "not valid yet", ca: ours, change: func(c *x509.Certificate, _ *tls.Config) {
			c.NotBefore, c.NotAfter = time.Now().Add(1000*time.Hour), time.Now().Add(2000*time.Hour)
		}},
		{name: "by TLS 1.2", ca: ours, refused: "protocol version", change: func(_ *x509.Certificate, s *tls.Config) { s.MaxVersion = tls.VersionTLS12 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int32
			url := c.ca.server(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); local(w, r) }, c.change)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			said := ""
			cl := client(t, Options{CAs: []string{ours.pem()}, Insecure: c.insecure, Now: time.Now, Notify: func(s string) {
				said = s
				if c.refused != "" { // it would try for ever
					cancel()
				}
			}}, url)
			a, err := cl.Claim(ctx, &wire.Claim{})
			switch {
			case c.refused != "":
				if err == nil || !strings.Contains(said, c.refused) || asked.Load() > 0 {
					t.Errorf("%v, %q, asked %d times, want it refused for %q", err, said, asked.Load(), c.refused)
				}
			case err != nil || a.Action != wire.Local:
				t.Errorf("%+v, %v", a, err)
			case !strings.Contains(said, c.warned):
				t.Errorf("%q, want a warning of %q", said, c.warned)
			}
		})
	}
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	if _, err := New(Options{Key: key}); err == nil {
		t.Error("without a CA somebody would be believed")
	}
}

// TestTheBootKey holds that each connection proves the key by which the server
// knows this boot.
func TestTheBootKey(t *testing.T) {
	ca := newAuthority(t)
	seen := ""
	url := ca.server(t, func(w http.ResponseWriter, r *http.Request) {
		seen = keyName(r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo)
		local(w, r)
	}, nil)
	c := client(t, Options{CAs: []string{ca.pem()}}, url)
	if _, err := c.Claim(t.Context(), &wire.Claim{}); err != nil || seen != c.Key() || len(seen) != 64 {
		t.Errorf("%v: the server saw %q, the key is %q", err, seen, c.Key())
	}
	if d := client(t, Options{CAs: []string{ca.pem()}}, url); d.Key() == c.Key() {
		t.Error("two boots have one key")
	}
}

// TestWhatIsRepeated holds that trouble is sat out, and refusals are not.
func TestWhatIsRepeated(t *testing.T) {
	ca := newAuthority(t)
	var asked atomic.Int32
	serve := func(answers ...func(w http.ResponseWriter)) *Client {
		asked.Store(0)
		url := ca.server(t, func(w http.ResponseWriter, r *http.Request) {
			n := int(asked.Add(1)) - 1
			answers[min(n, len(answers)-1)](w)
		}, nil)
		return client(t, Options{CAs: []string{ca.pem()}}, "https://127.0.0.1:1", url) // nobody listens at the first
	}
	status := func(code int, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.WriteHeader(code); _, _ = w.Write([]byte(body)) }
	}
	ok := status(200, `{"lease":30,"cancel":true}`)
	cut := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(`{"lease`))
	}

	for name, bad := range map[string]func(http.ResponseWriter){
		"busy": status(503, ""), "too many": status(429, "{}"), "too late": status(408, "{}"), "an answer that is cut": cut, "nonsense": status(200, "<html>"), "a redirect": func(w http.ResponseWriter) {
			w.Header().Set("Location", "https://evil.example/")
			w.WriteHeader(302)
		},
	} {
		c := serve(bad, bad, ok)
		ack, err := c.Begin(t.Context(), "j", &wire.Begin{Attempt: 1})
		if err != nil || !ack.Cancel || asked.Load() != 3 {
			t.Errorf("%s: %+v, %v after %d requests, want the third's answer", name, ack, err, asked.Load())
		}
	}
	c := serve(status(409, `{"error":"a newer attempt","code":"superseded"}`))
	_, err := c.Result(t.Context(), "j", &wire.Result{})
	if r, ok := errors.AsType[*Refused](err); !ok || r.Status != 409 || r.Code != wire.Superseded || asked.Load() != 1 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
	c = serve(status(503, ""))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Events(ctx, "j", &wire.Events{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
