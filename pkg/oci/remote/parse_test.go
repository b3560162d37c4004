package remote

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func TestParseContentRange(t *testing.T) {
	for _, c := range []struct {
		text            string
		off, end, total int64
		ok              bool
	}{
		{"bytes 0-0/1", 0, 1, 1, true}, {"bytes 5-9/*", 5, 10, -1, true}, {"Bytes 5-9/10", 5, 10, 10, true},
		{"", 0, 0, 0, false}, {"bytes */10", 0, 0, 0, false}, {"bytes 5-/10", 0, 0, 0, false}, {"bytes -5/10", 0, 0, 0, false},
		{"bytes 5-9", 0, 0, 0, false}, {"items 5-9/10", 0, 0, 0, false}, {"bytes 5-9223372036854775807/*", 0, 0, 0, false},
		{"bytes +5-9/10", 0, 0, 0, false},
	} {
		off, end, total, err := parseContentRange(c.text)
		if (err == nil) != c.ok || c.ok && (off != c.off || end != c.end || total != c.total) {
			t.Errorf("%q: %d %d %d %v", c.text, off, end, total, err)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Fuzz(func(t *testing.T, s string) {
		off, end, total, err := parseContentRange(s)
		if err == nil && (off < 0 || end < 1 || total < -1) {
			t.Errorf("%q: %d %d %d", s, off, end, total)
		}
	})
}

func TestUploaded(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int64
		ok   bool
	}{{"0-0", 1, true}, {"0-1023", 1024, true}, {"bytes=0-1023", 1024, true}, {"", 0, false}, {"1-5", 0, false}, {"0-", 0, false}, {"0--5", 0, false}} {
		if n, ok := uploaded(c.text); ok != c.ok || ok && n != c.n {
			t.Errorf("%q: %d %v", c.text, n, ok)
		}
	}
}

func TestParseChallenge(t *testing.T) {
	for _, c := range []struct {
		text   string
		scheme string
		params map[string]string
	}{
		{`Bearer realm="https://a/t",service="b c",scope="repository:x:pull,push"`, "Bearer", map[string]string{"realm": "https://a/t", "service": "b c", "scope": "repository:x:pull,push"}},
		{`basic realm="x"`, "basic", map[string]string{"realm": "x"}},
		{`Basic`, "Basic", map[string]string{}},
		{`Negotiate abc`, "", nil}, {``, "", nil},
		{`Bearer realm="open`, "Bearer", map[string]string{"realm": "open"}},
	} {
		scheme, params := parseChallenge([]string{"Negotiate", c.text})
		if scheme != c.scheme || !maps.Equal(params, c.params) {
			t.Errorf("%s: %q %q", c.text, scheme, params)
		}
	}
}

func FuzzParseChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="b",scope="c"`)
	f.Fuzz(func(t *testing.T, s string) { parseChallenge([]string{s}) })
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-1": 0, "86400": maxRetryAfter, "99999999999999999999": 0, "soon": 0,
		now.Add(9 * time.Second).Format(http.TimeFormat): 9 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
		now.Add(time.Hour).Format(http.TimeFormat): maxRetryAfter,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{"a\nb\x1b[31m\t c": "a b[31m c", "x tok-en y": "x … y", "": ""} {
		if got := clean(in, "tok-en"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := clean(fmt.Sprintf("%01000d", 1), ""); len(got) > 520 {
		t.Errorf("%d bytes", len(got))
	}
}

func TestErrorsHoldNoURL(t *testing.T) {
	err := plain(&url.Error{Op: "Get", URL: "https://store.example/x?signature=secret", Err: &url.Error{URL: "https://secret", Err: ErrStalled}})
	if err != ErrStalled {
		t.Error(err)
	}
}

func TestTransient(t *testing.T) {
	for status, want := range map[int]bool{400: false, 401: false, 403: false, 404: false, 405: false, 409: false, 410: false, 413: false, 416: false,
		408: true, 425: true, 429: true, 500: true, 501: false, 502: true, 503: true, 504: true, 505: false, 507: true} {
		if got := transient(fmt.Errorf("x: %w", &Error{Status: status})); got != want {
			t.Errorf("%d: %v", status, got)
		}
	}
	if transient(&Error{Err: &url.Error{Err: errPlainHTTP}}) || transient(&Error{Err: &permanent{ErrStalled}}) || !transient(&Error{Err: ErrStalled}) {
		t.Error("of causes")
	}
}

// FuzzIndex: what is read is written again with all it had, and ours.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"sha256:` +
		diskimage.DigestOf(nil).Hex() + `","x":1}],"y":[{}]}`))
	ours := hashOf(diskimage.DigestOf([]byte("ours")))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := parseIndex(b)
		if err != nil {
			return
		}
		n, fields := len(x.manifests), len(x.fields)
		had := x.has[ours]
		changed := x.add(entries{ours: json.RawMessage(`{"digest":"` + ours.String() + `"}`)})
		out, err := x.bytes()
		if err != nil {
			t.Fatal(err)
		}
		y, err := parseIndex(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if changed == had || !y.has[ours] || len(y.fields) != fields || len(y.manifests) != n+map[bool]int{true: 1}[changed] {
			t.Errorf("%s became %s", b, out)
		}
	})
}
