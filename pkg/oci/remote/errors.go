package remote

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/imgpipe/imgpipe/pkg/internal/blob"
)

// Error is a request that a registry, or the way to it, did not serve. Its text
// holds no credentials, and no query of a URL: a signed one is a credential.
type Error struct {
	Registry   string // HOST[:PORT] that was asked: the registry, a mirror, or where one of them redirected
	Repository string
	Method     string
	Path       string
	Status     int    // 0: there was no answer
	Code       string // the registry's own, distribution-spec 1.1, "Error Codes": MANIFEST_UNKNOWN
	Message    string // the registry's own, at most 512 bytes
	Err        error  // the cause where there was no answer, or one that makes no sense

	after time.Duration // the registry's Retry-After
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s %s: ", e.Registry, e.Method, e.Path)
	switch {
	case e.Err != nil && e.Status != 0:
		fmt.Fprintf(&b, "%d %s: %v", e.Status, http.StatusText(e.Status), e.Err)
	case e.Err != nil:
		b.WriteString(e.Err.Error())
	default:
		fmt.Fprintf(&b, "%d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Code != "" {
		b.WriteString(": " + e.Code)
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes a 404 oci.ErrNotFound.
func (e *Error) Is(target error) bool {
	return target == blob.ErrNotFound && e.Status == http.StatusNotFound
}

// IsNotFound reports whether a registry said that it has no such thing.
func IsNotFound(err error) bool { return errors.Is(err, blob.ErrNotFound) }

// IsUnauthorized reports whether a registry wants other credentials, or any.
func IsUnauthorized(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden)
}

// Hint says in one line what a person may try; "" if nothing comes to mind.
func Hint(err error) string {
	if errors.Is(err, errPlainHTTP) || errors.Is(err, http.ErrSchemeMismatch) {
		return "the registry speaks plain HTTP: --plain-http allows it; what is sent can be read and changed on the way"
	}
	if isCertificate(err) {
		return "the registry's certificate is not trusted: --ca FILE names the authority that issued it"
	}
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok:
		return ""
	case e.Status == http.StatusUnauthorized:
		return "log in to " + e.Registry + " (docker login, podman login), or give --username and --password-stdin"
	case e.Status == http.StatusForbidden:
		return "these credentials may not do this in " + e.Repository
	case e.Status == http.StatusTooManyRequests:
		return "the registry limits requests: try later, or logged in"
	case e.Code == "NAME_UNKNOWN":
		return "is the repository's name right? Some registries say this, too, of what one may not see"
	case e.Status == http.StatusMethodNotAllowed:
		return "the registry does not take this: is it read-only, or a mirror?"
	case e.Status == 0 && e.Err != nil:
		return "is " + e.Registry + " reachable from here, and a registry?"
	}
	return ""
}

func isCertificate(err error) bool {
	var verify *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &verify) || errors.As(err, &authority) || errors.As(err, &hostname) || errors.As(err, &invalid)
}

// maxErrorBody bounds what is read of an answer that says why not.
const maxErrorBody = 64 << 10

// failure turns a request's error, or its answer, into an *Error. It closes the answer's body.
func (s *source) failure(req *http.Request, resp *http.Response, err error) *Error {
	e := &Error{Registry: req.URL.Host, Repository: s.name, Method: req.Method, Path: req.URL.Path, Err: plain(err)}
	if resp == nil {
		return e
	}
	e.Status = resp.StatusCode
	e.after = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // a cut one says what it can
	resp.Body.Close()
	var doc struct {
		Errors []struct {
			Code    string          `json:"code"`
			Message string          `json:"message"`
			Detail  json.RawMessage `json:"detail"`
		} `json:"errors"`
	}
	secret := credential(req)
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		e.Code, e.Message = clean(doc.Errors[0].Code, secret), clean(doc.Errors[0].Message, secret)
	} else if t := resp.Header.Get("Content-Type"); !strings.Contains(t, "html") {
		e.Message = clean(string(body), secret)
	}
	return e
}

// credential returns what must not be repeated of a request.
func credential(req *http.Request) string {
	_, secret, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	return secret
}

// clean makes a registry's text fit to be shown: short, on one line, without
// the request's credential.
func clean(s, secret string) string {
	if secret != "" {
		s = strings.ReplaceAll(s, secret, "…")
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 512 {
		s = strings.ToValidUTF8(s[:512], "") + "…"
	}
	return s
}

// plain removes URLs from an error: their queries may be signatures.
func plain(err error) error {
	for {
		var u *url.Error
		if !errors.As(err, &u) {
			return err
		}
		err = u.Err
	}
}

// handshakeFailure is failure for what the library did on our behalf.
func (h *host) handshakeFailure(what, path string, err error) *Error {
	e := &Error{Registry: h.reg.RegistryStr(), Method: http.MethodGet, Path: path}
	if t, ok := errors.AsType[*transport.Error](err); ok {
		e.Status = t.StatusCode
		if t.Request != nil {
			e.Registry, e.Method, e.Path = t.Request.URL.Host, t.Request.Method, t.Request.URL.Path
		}
		if len(t.Errors) > 0 {
			e.Code, e.Message = clean(string(t.Errors[0].Code), ""), clean(t.Errors[0].Message, "")
		}
		return e
	}
	err = plain(err)
	if strings.HasPrefix(err.Error(), "no token in bearer response") { // goes on with the answer, which may hold another
		err = errors.New("the token server's answer has no token")
	}
	e.Err = fmt.Errorf("%s: %w", what, err)
	return e
}

// transient reports whether the same request may be served later.
func transient(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch {
	case e.Status == http.StatusRequestTimeout, e.Status == http.StatusTooEarly, e.Status == http.StatusTooManyRequests:
		return true
	case e.Status == http.StatusNotImplemented, e.Status == http.StatusHTTPVersionNotSupported:
		return false
	case e.Status >= 500:
		return true
	case e.Status >= 300:
		return false
	}
	// No answer, or one that contradicts itself.
	var dns *net.DNSError
	var never *permanent
	switch {
	case errors.Is(err, errPlainHTTP), errors.Is(err, http.ErrSchemeMismatch), isCertificate(err), errors.As(err, &never):
		return false
	case errors.As(err, &dns):
		return !dns.IsNotFound
	}
	return true
}

// permanent is a cause that trying again does not mend.
type permanent struct{ error }

func (p *permanent) Unwrap() error { return p.error }
