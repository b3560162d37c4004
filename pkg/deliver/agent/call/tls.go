package call

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Conns is how many connections to the server are open at once.
const Conns = 32

// transport makes what every request goes through.
func (c *Client) transport() (*http.Transport, error) {
	own, err := c.certificate()
	if err != nil {
		return nil, fmt.Errorf("boot key: %w", err)
	}
	roots := x509.NewCertPool()
	for i, text := range c.o.CAs {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, fmt.Errorf("server CA %d: not PEM", i)
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("server CA %d: %w", i, err)
		}
		roots.AddCert(timeless(ca))
	}
	if len(c.o.CAs) == 0 && !c.o.Insecure {
		return nil, errors.New("the environment has no CA for its server: nobody would be believed")
	}
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		// Frames as large as what the server copies at once: each costs it a turn.
		HTTP2:               &http.HTTP2Config{MaxReadFrameSize: 64 << 10, SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		MaxConnsPerHost:     Conns,
		MaxIdleConnsPerHost: Conns,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			ServerName: wire.ServerName,
			// Verification is ours: that of crypto/tls would look at the clock.
			InsecureSkipVerify:   true,
			VerifyConnection:     func(s tls.ConnectionState) error { return c.verify(s, roots) },
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil },
		},
	}, nil
}

// certificate makes the self-signed certificate of the boot key. It is valid at
// any time.
func (c *Client) certificate() (*tls.Certificate, error) {
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: forever}
	der, err := x509.CreateCertificate(rand.Reader, t, t, c.o.Key.Public(), c.o.Key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c.key = keyName(leaf.RawSubjectPublicKeyInfo)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: c.o.Key, Leaf: leaf}, nil
}

var forever = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// timeless is a certificate that is always valid. Signatures are over its Raw
// bytes, which stay.
func timeless(c *x509.Certificate) *x509.Certificate {
	t := *c
	t.NotBefore, t.NotAfter = time.Unix(0, 0), forever
	return &t
}

// verify decides whether the other side is the server: its certificate chains to
// a CA of the environment and names the server. Nothing about time is evidence
// on a machine whose clock nobody set; what is over is warned about.
func (c *Client) verify(s tls.ConnectionState, roots *x509.CertPool) error {
	if c.o.Insecure {
		return nil
	}
	if len(s.PeerCertificates) == 0 || len(s.PeerCertificates) > 16 {
		return fmt.Errorf("the server shows %d certificates", len(s.PeerCertificates))
	}
	between := x509.NewCertPool()
	for _, p := range s.PeerCertificates[1:] {
		between.AddCert(timeless(p))
	}
	_, err := timeless(s.PeerCertificates[0]).Verify(x509.VerifyOptions{
		DNSName: wire.ServerName, Roots: roots, Intermediates: between,
		CurrentTime: time.Unix(1<<30, 0), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("the server at this address is not the one that this environment believes: %w", err)
	}
	if c.o.Now == nil {
		return nil
	}
	for _, p := range s.PeerCertificates {
		if now := c.o.Now(); now.After(p.NotAfter) {
			c.tell(fmt.Sprintf("warning: the server's certificate was valid until %s, and it is %s here", p.NotAfter.Format(time.DateTime), now.UTC().Format(time.DateTime)))
		}
	}
	return nil
}
