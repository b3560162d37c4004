package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program starts imgpush registry, and returns its URL when it serves.
func program(t *testing.T, args ...string) (cmd *exec.Cmd, url string, stdout, stderr *bufio.Reader) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	imgpush := filepath.Join(t.TempDir(), "imgpush") // by this name the test is the command
	if err := os.Symlink(self, imgpush); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(imgpush, append([]string{"registry"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
	stdout, stderr = bufio.NewReader(out), bufio.NewReader(errs)
	line, err := stdout.ReadString('\n')
	_, url, ok := strings.Cut(strings.TrimSpace(line), " at ")
	if !ok {
		rest, _ := io.ReadAll(stderr) // what it said instead
		t.Fatalf("%q, %v\n%s", line, err, rest)
	}
	return cmd, url, stdout, stderr
}

// A server that is told to stop lets a request that is running end, and ends
// with 0; its uploads leave nothing.
func TestRegistryStopsWhenToldTo(t *testing.T) {
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		root := t.TempDir()
		cmd, url, _, stderr := program(t, root, "--listen", "127.0.0.1:0")
		r, err := http.Post(url+"/v2/a/blobs/uploads/", "", nil)
		if err != nil || r.StatusCode != http.StatusAccepted {
			t.Fatal(r, err)
		}
		body, feed := io.Pipe()
		req, err := http.NewRequest("PATCH", url+r.Header.Get("Location"), body)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan string, 1)
		go func() {
			r, err := http.DefaultClient.Do(req)
			if err != nil {
				done <- err.Error()
				return
			}
			done <- r.Status
		}()
		if _, err := feed.Write([]byte("begun")); err != nil {
			t.Fatal(err)
		}
		for { // until the server has the request, it may refuse it
			s, err := http.Get(url + r.Header.Get("Location"))
			if err != nil {
				t.Fatal(err)
			}
			if s.Header.Get("Range") == "0-4" {
				break
			}
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		for { // until it listens no more
			c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
			if err != nil {
				break
			}
			_ = c.Close() // it only tried
		}
		if _, err := feed.Write([]byte(", ended")); err != nil {
			t.Fatal(err)
		}
		if err := feed.Close(); err != nil {
			t.Fatal(err)
		}
		if got := <-done; got != "202 Accepted" {
			t.Errorf("%v: the request that was running: %s", signal, got)
		}
		log, err := io.ReadAll(stderr)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", signal, err, log)
		}
		if !strings.Contains(string(log), "POST /v2/a/blobs/uploads/ 202 0 B") {
			t.Errorf("log: %s", log)
		}
		temps, err := os.ReadDir(filepath.Join(root, "a/.tmp"))
		if err != nil || len(temps) != 0 {
			t.Errorf("left: %v, %v", temps, err)
		}
	}
}

func TestRegistryOverTLSWithUsers(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, pool := selfSigned(t, dir)
	// htpasswd -bnBC 4 ci secret
	users := filepath.Join(dir, "users")
	if err := os.WriteFile(users, []byte("ci:$2y$04$BW8LFQb/5Y3RgOt2KUOSzuJv15M.EcMh1PFz170dzaKPh1EiQTuXG\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, url, _, stderr := program(t, root, "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", filepath.Join(dir, "key"), "--htpasswd", users)
	if !strings.HasPrefix(url, "https://127.0.0.1:") {
		t.Fatalf("serves %s", url)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	for password, want := range map[string]int{"": 401, "wrong": 401, "secret": 202} {
		req, err := http.NewRequest("POST", url+"/v2/a/blobs/uploads/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if password != "" {
			req.SetBasicAuth("ci", password)
		}
		r, err := client.Do(req)
		if err != nil || r.StatusCode != want {
			t.Errorf("password %q: %v, %v", password, r, err)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	log, err := io.ReadAll(stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(string(log), ` by "ci"`) || strings.Contains(string(log), "secret") {
		t.Errorf("%v; log: %s", err, log)
	}
}

func TestRegistryLogsAsJSON(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	imgpush := filepath.Join(t.TempDir(), "imgpush")
	if err := os.Symlink(self, imgpush); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(imgpush, "registry", t.TempDir(), "--listen", "127.0.0.1:0", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
	var started struct{ URL string }
	if err := json.NewDecoder(out).Decode(&started); err != nil {
		t.Fatal(err)
	}
	if _, err := http.Get(started.URL + "/v2/a/tags/list"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var line struct {
		Method, Path string
		Status       int
	}
	if err := json.Unmarshal([]byte(stderr.String()), &line); err != nil || line.Method != "GET" || line.Path != "/v2/a/tags/list" || line.Status != 404 {
		t.Errorf("%q: %v", stderr.String(), err)
	}
}

// selfSigned makes a certificate for 127.0.0.1 in dir, and who trusts it.
func selfSigned(t *testing.T, dir string) (cert string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registry"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	cert = filepath.Join(dir, "crt")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, filepath.Join(dir, "key"): {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(c)
	return cert, pool
}
