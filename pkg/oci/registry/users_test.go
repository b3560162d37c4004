package registry_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

func basic(name, password string) header {
	return header{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))}
}

func passwd(t *testing.T, path string, lines ...string) string {
	t.Helper()
	for i, l := range lines {
		if name, password, ok := strings.Cut(l, "="); ok {
			hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
			if err != nil {
				t.Fatal(err)
			}
			lines[i] = name + ":" + strings.Replace(string(hash), "$2a$", "$2y$", 1) // as htpasswd writes it
		}
	}
	// A new file, as editors and htpasswd leave one.
	if err := os.WriteFile(path+".new", []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsersAreAskedForTheirPassword(t *testing.T) {
	path := passwd(t, filepath.Join(t.TempDir(), "users"), "# ours", "", "ci=secret:with:colons", "ops=hunter2")
	users, err := registry.LoadUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen []string
	c, _ := serve(t, registry.Options{Users: users, Log: func(a registry.Access) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, a.User)
	}})
	r := c.do("GET", "/v2/", nil, nil).want(t, 401)
	r.code(t, "UNAUTHORIZED")
	r.head(t, "WWW-Authenticate", `Basic realm="imgpush registry", charset="UTF-8"`)
	c.do("GET", "/v2/", nil, basic("ci", "secret:with:colons")).want(t, 200)
	c.do("GET", "/v2/", nil, basic("ci", "secret:with:colons")).want(t, 200) // remembered
	for _, h := range []header{basic("ci", "secret"), basic("ci", ""), basic("", ""), basic("nobody", "hunter2"), basic("ci", "hunter2"), {"Authorization": "Bearer x"}} {
		c.do("GET", "/v2/", nil, h).want(t, 401)
		c.do("PUT", "manifests/v1", []byte("{}"), h).want(t, 401)
	}
	if mu.Lock(); seen[1] != "ci" || seen[0] != "" || seen[3] != "" {
		t.Errorf("users in the log: %q", seen)
	}
	mu.Unlock()
	passwd(t, path, "ops=hunter2")
	c.do("GET", "/v2/", nil, basic("ci", "secret:with:colons")).want(t, 401)
	c.do("GET", "/v2/", nil, basic("ops", "hunter2")).want(t, 200)
	passwd(t, path, "broken") // what it held before counts
	c.do("GET", "/v2/", nil, basic("ops", "hunter2")).want(t, 200)
	c.do("GET", "/v2/", nil, basic("broken", "")).want(t, 401)
}

func TestAnonymousPull(t *testing.T) {
	users, err := registry.LoadUsers(passwd(t, filepath.Join(t.TempDir(), "users"), "ci=secret"))
	if err != nil {
		t.Fatal(err)
	}
	c, _ := serve(t, registry.Options{Users: users, AnonymousPull: true})
	c.do("POST", "blobs/uploads/?digest="+digestOf([]byte("x")), []byte("x"), basic("ci", "secret")).want(t, 201)
	c.do("GET", "blobs/"+digestOf([]byte("x")), nil, nil).want(t, 200)
	c.do("GET", "tags/list", nil, basic("", "")).want(t, 200) // as skopeo without a password
	c.do("GET", "tags/list", nil, basic("ci", "wrong")).want(t, 401)
	c.do("GET", "/v2/", nil, nil).want(t, 401) // else clients would not log in to push
	c.do("POST", "blobs/uploads/", nil, nil).want(t, 401)
	c.do("GET", "blobs/uploads/x", nil, nil).want(t, 401)
	c.do("DELETE", "blobs/"+digestOf([]byte("x")), nil, nil).want(t, 401)
}

func TestPasswordFilesThatAreNoneAreRefused(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"":                      "no users",
		"ci":                    ":1: want NAME:HASH",
		":$2y$05$x":             ":1: want NAME:HASH",
		"\nci:secret":           ":2: the password of \"ci\" is no bcrypt hash",
		"ci:{SHA}W6ph5Mm5Pz8Gg": "no bcrypt hash",
	} {
		path := filepath.Join(dir, "users")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := registry.LoadUsers(path); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "W6ph") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want %q and no secret", text, err, want)
		}
	}
	if _, err := registry.LoadUsers(filepath.Join(dir, "missing")); err == nil {
		t.Error("a missing file is taken")
	}
}
