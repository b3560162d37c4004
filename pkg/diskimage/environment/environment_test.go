package environment_test

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/environment"
)

const (
	key  = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
	cert = "-----BEGIN CERTIFICATE-----\nMCowBQYDK2VwAyEA\n-----END CERTIFICATE-----\n"
)

func sample() environment.Config {
	return environment.Config{Version: 1, Name: "env", Release: "2026.11", Architecture: "amd64", Kernel: "6.1.0-56-amd64", Floor: 1_790_000_000,
		Trust:  environment.Trust{Keys: []environment.Key{{Name: "release.pub", PEM: key}}},
		Server: environment.Server{URL: "https://10.0.0.1:8443", CA: []string{cert}}, Jobs: environment.Authenticated, Rescue: true}
}

func TestConfigComesBack(t *testing.T) {
	c := sample()
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := environment.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := got.Marshal()
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("%v\n%s\n%s", err, b, again)
	}
	if got.FloorTime().Year() != 2026 {
		t.Errorf("floor %v", got.FloorTime())
	}
}

func TestConfigRefusals(t *testing.T) {
	for want, change := range map[string]func(*environment.Config){
		"version 2":                func(c *environment.Config) { c.Version = 2 },
		`name "E"`:                 func(c *environment.Config) { c.Name = "E" },
		"architecture":             func(c *environment.Config) { c.Architecture = "i386" },
		`kernel "../x"`:            func(c *environment.Config) { c.Kernel = "../x" },
		"not in the years 1970":    func(c *environment.Config) { c.Floor = -1 },
		`jobs ""`:                  func(c *environment.Config) { c.Jobs = "" },
		"keys beside a policy":     func(c *environment.Config) { c.Trust.Policy = "version: 1" },
		"files without a policy":   func(c *environment.Config) { c.Trust = environment.Trust{Files: map[string]string{"a": "b"}} },
		"one PEM block PUBLIC KEY": func(c *environment.Config) { c.Trust.Keys[0].PEM = cert },
		"one PEM block CERT":       func(c *environment.Config) { c.Server.CA[0] = cert + cert },
		"want https://HOST":        func(c *environment.Config) { c.Server.URL = "https://user@host" },
	} {
		c := sample()
		change(&c)
		if _, err := c.Marshal(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	c := sample()
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for want, text := range map[string][]byte{
		"unknown field":       bytes.Replace(b, []byte(`"rescue"`), []byte(`"resque"`), 1),
		"more than one JSON":  append(bytes.Clone(b), b...),
		"at most 1048576 are": bytes.Repeat([]byte(" "), environment.MaxConfig+1),
		"EOF":                 b[:len(b)/2],
	} {
		if _, err := environment.Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func manifest(files map[string]string) environment.Manifest {
	var m environment.Manifest
	for p, s := range files {
		m = append(m, environment.File{Digest: diskimage.Digest(sha256.Sum256([]byte(s))), Size: int64(len(s)), Path: p})
	}
	m.Sort()
	return m
}

// TestManifestFindsWhatMemoryCutShort: of every file every byte counts, and that it
// is there.
func TestManifestFindsWhatMemoryCutShort(t *testing.T) {
	files := map[string]string{"/init": "program", "/etc/imgpipe/environment.json": "{}", "/lib/modules/6.1/a.ko": "module"}
	b, err := manifest(files).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	m, err := environment.ParseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	root := func() fstest.MapFS {
		out := fstest.MapFS{}
		for p, s := range files {
			out[p[1:]] = &fstest.MapFile{Data: []byte(s), Mode: 0o644}
		}
		return out
	}
	if p, err := m.Verify(root(), 0); err != nil || p != nil {
		t.Fatalf("%v, %v", p, err)
	}
	for p, s := range files {
		for n := range len(s) {
			cut, altered := root(), root()
			cut[p[1:]].Data = []byte(s[:n])
			altered[p[1:]].Data[n] ^= 1
			for want, fsys := range map[string]fstest.MapFS{"has": cut, "altered": altered} {
				got, err := m.Verify(fsys, 0)
				if err != nil || len(got) != 1 || got[0].Path != p || !strings.Contains(got[0].What, want) {
					t.Errorf("%s %s at %d: %v, %v", p, want, n, got, err)
				}
			}
		}
		gone := root()
		delete(gone, p[1:])
		if got, err := m.Verify(gone, 0); err != nil || len(got) != 1 || got[0].What != "missing" {
			t.Errorf("%s gone: %v, %v", p, got, err)
		}
	}
	if got, err := m.Verify(fstest.MapFS{}, 2); err != nil || len(got) != 2 {
		t.Errorf("limited to 2: %v, %v", got, err)
	}
	for n := range len(b) {
		if n > 0 && b[n-1] == '\n' {
			continue // a shorter list
		}
		if _, err := environment.ParseManifest(b[:n]); err == nil {
			t.Errorf("a manifest of %d of %d bytes was taken", n, len(b))
		}
	}
}

func TestManifestRefusals(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for _, text := range []string{
		"", "\n", sum + " 1 init\n", sum + " 1 /\n", sum + " 1 /a/../b\n", sum + " 1 /a b\n", sum + " 01 /a\n", sum + " -1 /a\n", "aa 1 /a\n",
		sum + " 1 /b\n" + sum + " 1 /a\n", sum + " 1 /a\n" + sum + " 1 /a\n", sum + " 1 /a\r\n", sum + " 1 /ä\n",
	} {
		if _, err := environment.ParseManifest([]byte(text)); err == nil {
			t.Errorf("taken: %q", text)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(strings.Repeat("a", 64) + " 1 /a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := environment.ParseManifest(b)
		if err != nil {
			return
		}
		again, err := m.Marshal()
		if err != nil || !bytes.EqualFold(b, again) {
			t.Errorf("%q, %q, %v", b, again, err)
		}
	})
}

func FuzzConfig(f *testing.F) {
	c := sample()
	b, err := c.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := environment.Parse(b)
		if err != nil {
			return
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if _, err := environment.Parse(out); err != nil {
			t.Errorf("%q: %v", out, err)
		}
	})
}
