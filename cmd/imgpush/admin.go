package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

const defaultSocket = "/run/imgpipe/serve.sock"

// adminFlags say which server is asked.
func adminFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.StringFlag{Name: "server", Usage: "ask the server at `ADDRESS`: a path of its socket, or https://HOST:8443", EnvVars: []string{"IMGPUSH_SERVER"}, DefaultText: defaultSocket},
		&cli.StringFlag{Name: "token-file", Usage: "with https: the token of SITE.yaml is in `FILE`", EnvVars: []string{"IMGPUSH_TOKEN_FILE"}},
		&cli.StringFlag{Name: "ca", Usage: "with https: the site's CA is in `FILE` (PEM)", EnvVars: []string{"IMGPUSH_CA"}},
	)
}

// admin is a client of the admin API.
type admin struct {
	base, token, where string
	http               *http.Client
}

// maxAdmin bounds an answer.
const maxAdmin = 256 << 20

func adminOf(c *cli.Context) (*admin, error) {
	at := cmp.Or(c.String("server"), defaultSocket)
	if strings.HasPrefix(at, "http:") {
		return nil, ui.Usagef(c, "--server %s: a token never crosses a network in the clear; want https://", at)
	}
	if !strings.HasPrefix(at, "https://") {
		at = strings.TrimPrefix(at, "unix:")
		return &admin{base: "http://imgpipe", where: at, http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", at)
			}}}}, nil
	}
	u, err := url.Parse(at)
	if err != nil || u.Host == "" {
		return nil, ui.Usagef(c, "--server %s: want https://HOST:PORT", at)
	}
	if c.String("token-file") == "" || c.String("ca") == "" {
		return nil, ui.Usagef(c, "--server %s needs --token-file and --ca", at)
	}
	token, err := os.ReadFile(c.String("token-file"))
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--token-file: %w", err), "")
	}
	pem, err := os.ReadFile(c.String("ca"))
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--ca: %w", err), "")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--ca %s: holds no certificate in PEM form", c.String("ca")), "STATE/ca.crt on the server is it")
	}
	return &admin{base: "https://" + u.Host, where: at, token: strings.TrimSpace(string(token)), http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: wire.ServerName, MinVersion: tls.VersionTLS13}},
	}}, nil
}

// call sends an order or a question. Without a body it is a GET.
func (a *admin) call(ctx context.Context, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // a registry is asked meanwhile
	defer cancel()
	method, sent := http.MethodGet, io.Reader(nil)
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		method, sent = http.MethodPost, bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, a.base+path, sent)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	if a.token != "" {
		r.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.http.Do(r)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return ui.Fail(ui.ExitSource, fmt.Errorf("server %s: %w", a.where, err), "is imgpush serve running? --server says where")
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAdmin))
	if err != nil {
		return ui.Fail(ui.ExitSource, fmt.Errorf("server %s: %w", a.where, err), "")
	}
	if resp.StatusCode >= 400 {
		return a.refused(resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("server %s: %w", a.where, err)
	}
	return nil
}

// refused gives an answer its exit code.
func (a *admin) refused(status int, b []byte) error {
	var e wire.Error
	if json.Unmarshal(b, &e) != nil || e.Error == "" {
		return ui.Fail(ui.ExitOther, fmt.Errorf("server %s: status %d", a.where, status), "")
	}
	err := errors.New(e.Error)
	switch {
	case status == http.StatusUnauthorized:
		return ui.Fail(ui.ExitTrust, fmt.Errorf("server %s: %w", a.where, err), "--token-file holds what SITE.yaml says at admin.token")
	case e.Code == netboot.CodeTrust:
		return ui.Fail(ui.ExitTrust, err, "")
	case e.Code == netboot.CodeImage:
		return ui.Fail(ui.ExitSource, err, "")
	case e.Code == netboot.CodeMachine:
		return ui.Fail(ui.ExitUsage, err, "imgpush machines lists them")
	case e.Code == wire.UnknownJob:
		return ui.Fail(ui.ExitUsage, err, "imgpush jobs lists them")
	case e.Code == netboot.CodeOpenJob:
		return ui.Fail(ui.ExitTarget, err, "--cancel ends a job that has not begun to write; imgpush cancel JOB --force any")
	}
	return ui.Fail(ui.ExitOther, err, "")
}
