package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxRedirects bounds how far a request is sent on.
const maxRedirects = 5

// ask is a request to a source, in a form that can be sent again.
type ask struct {
	method string
	path   string   // below /v2/NAME/
	url    *url.URL // instead of path: where a redirect or an upload's location points
	query  url.Values
	header http.Header
	scopes []string // nil: to pull from the source's repository
	slow   bool     // the registry may think for long
	length int64    // of the body
	body   func() (io.ReadCloser, error)
}

// answer is what came back; its body is the caller's to close.
type answer struct {
	*http.Response
	req *http.Request
	src *source
}

// fail closes the answer and says that it is not what was asked for: by its
// status, or because of err.
func (a *answer) fail(err error) *Error {
	if err == nil {
		return a.src.failure(a.req, a.Response, nil)
	}
	a.Body.Close()
	e := a.src.failure(a.req, nil, err)
	e.Status = a.StatusCode
	return e
}

// drain closes the answer so that its connection can serve another request.
func (a *answer) drain() {
	io.CopyN(io.Discard, a.Body, maxErrorBody)
	a.Body.Close()
}

// detach reads the answer's body, at most maxErrorBody of it, and gives its
// connection back.
func (a *answer) detach() {
	b, _ := io.ReadAll(io.LimitReader(a.Body, maxErrorBody)) // a cut one says what it can
	a.Body.Close()
	a.Body = io.NopCloser(bytes.NewReader(b))
}

// send sends a request once: with credentials where it goes to the source's
// own host, and once more where the token was refused. Redirects are returned.
func (s *source) send(ctx context.Context, a ask) (*answer, error) {
	base, err := s.base(ctx)
	if err != nil {
		return nil, s.named(err)
	}
	u, home, err := s.resolve(base, a)
	if err != nil {
		return nil, err
	}
	scopes, auth := a.scopes, ""
	if scopes == nil {
		scopes = []string{s.scope("pull")}
	}
	if home {
		if auth, err = s.authorization(ctx, scopes, ""); err != nil {
			return nil, s.named(err)
		}
	}
	for again := false; ; again = true {
		req, err := a.request(ctx, u, auth)
		if err != nil {
			return nil, err
		}
		resp, err := s.c.wire.RoundTrip(req)
		if err != nil {
			return nil, s.failure(req, nil, err)
		}
		ans := &answer{resp, req, s}
		if !home || again || resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
			return ans, nil
		}
		ans.detach() // its connection may be the one that the token is asked over
		if scopes, err = s.refused(ctx, resp, scopes); err == nil {
			var fresh string
			fresh, err = s.authorization(ctx, scopes, auth)
			if err == nil && fresh == auth {
				return ans, nil
			}
			auth = fresh
		}
		if err != nil {
			return nil, s.named(err)
		}
	}
}

// named adds the repository to a handshake's error.
func (s *source) named(err error) error {
	if e, ok := errors.AsType[*Error](err); ok && e.Repository == "" {
		c := *e // others may be told of it, too
		c.Repository = s.name
		return &c
	}
	return err
}

// resolve returns where the request goes, and whether that is the source's own host.
func (s *source) resolve(base string, a ask) (*url.URL, bool, error) {
	own, err := url.Parse(base + "/v2/" + s.name + "/" + a.path)
	if err != nil {
		return nil, false, fmt.Errorf("%v: %w", s, err)
	}
	u := own
	if a.url != nil {
		u = own.ResolveReference(a.url)
		if u.Host == own.Host && u.Scheme == "http" { // a registry that does not know of the TLS before it
			u.Scheme = own.Scheme
		}
	}
	if len(a.query) > 0 {
		c := *u
		q := c.Query() // an upload's location has its own, which stays
		for k, v := range a.query {
			q[k] = v
		}
		c.RawQuery = q.Encode()
		u = &c
	}
	return u, u.Scheme == own.Scheme && address(u) == address(own), nil
}

// address returns HOST:PORT in lower case.
func address(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

func (a ask) request(ctx context.Context, u *url.URL, auth string) (*http.Request, error) {
	if a.slow {
		ctx = context.WithValue(ctx, slowAnswer{}, true)
	}
	req, err := http.NewRequestWithContext(ctx, a.method, u.String(), nil)
	if err != nil {
		return nil, plain(err)
	}
	for k, v := range a.header {
		req.Header[k] = v
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	if a.body != nil {
		if req.Body, err = a.body(); err != nil {
			return nil, err
		}
		req.ContentLength = a.length
	}
	return req, nil
}

// follow is send, and goes where redirects point. It returns the last place if
// that is not on the source's own host.
func (s *source) follow(ctx context.Context, a ask) (*answer, *url.URL, error) {
	var away *url.URL
	for range maxRedirects + 1 {
		ans, err := s.send(ctx, a)
		if err != nil {
			return nil, nil, err
		}
		if !slices.Contains([]int{301, 302, 303, 307, 308}, ans.StatusCode) {
			return ans, away, nil
		}
		to, err := ans.req.URL.Parse(ans.Header.Get("Location"))
		if err != nil || ans.Header.Get("Location") == "" {
			return nil, nil, ans.fail(errors.New("redirects without a usable Location"))
		}
		ans.drain()
		from := ans.req.URL
		if to.Host == from.Host && to.Scheme == "http" {
			to.Scheme = from.Scheme
		}
		if from.Scheme == "https" && to.Scheme == "http" && !s.c.o.PlainHTTP {
			return nil, nil, ans.fail(fmt.Errorf("redirects to %s: %w", to.Host, errPlainHTTP))
		}
		a.url = to
		if away = nil; address(to) != address(&url.URL{Scheme: from.Scheme, Host: s.reg.RegistryStr()}) {
			away = to
		}
	}
	return nil, nil, &Error{Registry: s.reg.RegistryStr(), Repository: s.name, Method: a.method, Path: "/v2/" + s.name + "/" + a.path,
		Err: &permanent{fmt.Errorf("more than %d redirects", maxRedirects)}}
}

// small sends a request and reads an answer of one of the given statuses, of at
// most limit bytes.
func (s *source) small(ctx context.Context, a ask, limit int64, statuses ...int) (*answer, []byte, error) {
	send := s.send
	if a.method == http.MethodGet || a.method == http.MethodHead {
		send = func(ctx context.Context, a ask) (*answer, error) {
			ans, _, err := s.follow(ctx, a)
			return ans, err
		}
	}
	ans, err := send(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	if !slices.Contains(statuses, ans.StatusCode) {
		return nil, nil, ans.fail(nil)
	}
	b, err := io.ReadAll(io.LimitReader(ans.Body, limit+1))
	switch {
	case err != nil:
		return nil, nil, ans.fail(err)
	case int64(len(b)) > limit:
		return nil, nil, ans.fail(&permanent{fmt.Errorf("has more than %d bytes", limit)})
	}
	ans.Body.Close()
	return ans, b, nil
}
