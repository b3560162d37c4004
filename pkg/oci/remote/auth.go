package remote

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// host is one registry, or mirror, and what is known of how it wants to be
// asked. The library does the handshake and the exchange of credentials for a
// token; the tokens are kept here, because its transport sends a request's
// consumed body again after a 401, compares the Host header where the URL's
// host decides, and lets every parallel request renew the token for itself.
type host struct {
	c   *Client
	reg name.Registry

	turn      chan struct{} // held by whom changes what follows
	challenge *transport.Challenge
	tokens    map[string]token   // by scopes
	failures  map[string]failure // by scopes; "" is the handshake
}

// failure is told to all who waited while it happened, so that they do not wait
// for it again one after the other.
type failure struct {
	err error
	at  time.Time
}

// failedSince returns the error of what was tried while the caller, who has the
// turn now, waited for it.
func (h *host) failedSince(began time.Time, what string) error {
	if f, ok := h.failures[what]; ok && f.at.After(began) {
		return f.err
	}
	return nil
}

func (h *host) fail(what string, err error) error {
	if len(h.failures) >= maxTokens {
		clear(h.failures)
	}
	h.failures[what] = failure{err, time.Now()}
	return err
}

type token struct {
	value   string
	expires time.Time // zero: not said
}

// maxTokens bounds the tokens of one host: one for each repository and action.
const maxTokens = 256

// lock waits for the turn.
func (h *host) lock(ctx context.Context) error {
	select {
	case h.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *host) unlock() { <-h.turn }

// scope is what is wanted of a repository: "repository:NAME:pull".
func (s *source) scope(actions string) string { return "repository:" + s.name + ":" + actions }

// hello makes the handshake once. The caller holds the turn.
func (h *host) hello(ctx context.Context, began time.Time) error {
	if h.challenge != nil {
		return nil
	}
	if err := h.failedSince(began, ""); err != nil {
		return err
	}
	both := new(pinged)
	ch, err := transport.Ping(context.WithValue(ctx, pingKey{}, both), h.reg, h.c.wire)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return h.fail("", h.handshakeFailure("hello", "/v2/", both.tell(err)))
	}
	if ch.Insecure && !h.c.o.PlainHTTP && !isLoopback(hostOnly(h.reg.RegistryStr())) {
		return h.handshakeFailure("hello", "/v2/", errPlainHTTP)
	}
	h.challenge = ch
	return nil
}

// base returns the scheme and host that requests begin with.
func (h *host) base(ctx context.Context) (string, error) {
	began := time.Now()
	if err := h.lock(ctx); err != nil {
		return "", err
	}
	defer h.unlock()
	if err := h.hello(ctx, began); err != nil {
		return "", err
	}
	if h.challenge.Insecure {
		return "http://" + h.reg.RegistryStr(), nil
	}
	return "https://" + h.reg.RegistryStr(), nil
}

// authorization returns the header for a request within scopes; "" for none.
// stale is one that was refused: it is renewed, unless another request has done so.
func (s *source) authorization(ctx context.Context, scopes []string, stale string) (string, error) {
	h, began := s.host, time.Now()
	if err := h.lock(ctx); err != nil {
		return "", err
	}
	defer h.unlock()
	if err := h.hello(ctx, began); err != nil {
		return "", err
	}
	scheme := strings.ToLower(h.challenge.Scheme)
	if scheme == "" {
		return "", nil
	}
	if s.auth == nil { // docker's configuration may have credentials for one repository
		auth, err := authn.Resolve(ctx, h.c.o.Keychain, h.reg.Repo(s.name))
		if err != nil {
			return "", h.handshakeFailure("credentials", "/v2/", &permanent{err})
		}
		s.auth = auth
	}
	cfg, err := authn.Authorization(ctx, s.auth)
	if err != nil {
		return "", h.handshakeFailure("credentials", "/v2/", &permanent{err})
	}
	switch {
	case cfg.RegistryToken != "":
		return "Bearer " + cfg.RegistryToken, nil
	case scheme == "bearer":
		return h.bearer(ctx, began, s.auth, scopes, stale)
	case cfg.Username != "" && cfg.Password != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password)), nil
	case cfg.Auth != "":
		return "Basic " + cfg.Auth, nil
	}
	return "", nil
}

// bearer returns a token for scopes, a new one if the one at hand is stale. The
// caller holds the turn.
func (h *host) bearer(ctx context.Context, began time.Time, auth authn.Authenticator, scopes []string, stale string) (string, error) {
	key := strings.Join(scopes, " ")
	if t, ok := h.tokens[key]; ok && t.value != stale && (t.expires.IsZero() || time.Now().Before(t.expires)) {
		return t.value, nil
	}
	if err := h.failedSince(began, key); err != nil {
		return "", err
	}
	asked := time.Now()
	got, err := transport.Exchange(ctx, h.reg, auth, h.c.wire, scopes, h.challenge)
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", h.fail(key, h.handshakeFailure("token", "/v2/", err))
	}
	t := token{value: "Bearer " + got.Token}
	if got.AccessToken != "" {
		t.value = "Bearer " + got.AccessToken
	}
	if got.ExpiresIn > 0 { // renewed when a tenth is left
		t.expires = asked.Add(time.Duration(got.ExpiresIn) * time.Second * 9 / 10)
	}
	if len(h.tokens) >= maxTokens {
		clear(h.tokens)
	}
	h.tokens[key] = t
	return t.value, nil
}

// refused learns from a 401 what the handshake did not say: a registry that
// greets without a challenge and asks for one later, or wants more scope.
func (h *host) refused(ctx context.Context, resp *http.Response, scopes []string) ([]string, error) {
	scheme, params := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	if scheme == "" {
		return scopes, nil
	}
	if err := h.lock(ctx); err != nil {
		return nil, err
	}
	defer h.unlock()
	if h.challenge != nil && h.challenge.Scheme == "" {
		h.challenge = &transport.Challenge{Scheme: scheme, Parameters: params, Insecure: h.challenge.Insecure}
	}
	if more := params["scope"]; more != "" && !slices.Contains(scopes, more) {
		scopes = append([]string{more}, scopes...) // some token servers look at the first alone
	}
	return scopes, nil
}

// parseChallenge reads the first Basic or Bearer challenge, RFC 9110, section
// 11.6.1, in the forms that registries send: one challenge a header field.
func parseChallenge(fields []string) (scheme string, params map[string]string) {
	for _, f := range fields {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(f), " ")
		if s := strings.ToLower(scheme); s != "basic" && s != "bearer" {
			continue
		}
		params = make(map[string]string)
		for rest = strings.TrimSpace(rest); rest != ""; {
			key, after, ok := strings.Cut(rest, "=")
			if !ok {
				break
			}
			var value string
			if strings.HasPrefix(after, `"`) {
				value, rest, _ = strings.Cut(after[1:], `"`)
			} else {
				value, rest, _ = strings.Cut(after, ",")
			}
			params[strings.ToLower(strings.TrimSpace(key))] = value
			rest = strings.TrimLeft(rest, ", \t")
		}
		return scheme, params
	}
	return "", nil
}
