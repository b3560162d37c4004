package remote_test

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

// judge finds a tool that CI installs, or skips the test.
func judge(t *testing.T, tool string) string {
	t.Helper()
	if path, err := filepath.Abs(filepath.Join("..", "..", "..", "build", "judges", tool)); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Skipf("%s is not installed", tool)
	}
	return path
}

// distribution starts the real registry on loopback and returns HOST:PORT.
func distribution(t *testing.T) string {
	t.Helper()
	tool := judge(t, "registry")
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp: {addr: %q, secret: test}\n", filepath.Join(dir, "data"), addr)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("registry:\n%s", out.Bytes())
		}
	})
	for {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("registry: %v\n%s", err, out.Bytes())
		case <-time.After(20 * time.Millisecond):
		}
		if resp, err := http.Get("http://" + addr + "/v2/"); err == nil {
			resp.Body.Close()
			return addr
		}
	}
}

func TestDistribution(t *testing.T) {
	t.Parallel()
	suite(t, distribution(t), quirks{})
}

// TestEmbedded is imgpush registry.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	reg, err := registry.New(t.TempDir(), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	suite(t, served(t, reg), quirks{})
}

// TestOthers are the registry of this project's tests, and go-containerregistry's.
func TestOthers(t *testing.T) {
	t.Parallel()
	t.Run("ocitest", func(t *testing.T) { suite(t, served(t, ocitest.NewRegistry()), quirks{}) })
	t.Run("ggcr", func(t *testing.T) {
		suite(t, served(t, ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithReferrersSupport(true))), quirks{oneStore: true, noSessions: true})
	})
}

func served(t *testing.T, h http.Handler) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.Listener.Addr().String()
}
