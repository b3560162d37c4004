package cache_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/oci/cache"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
)

const benchBlob = 256 << 20

// BenchmarkAgainstNginx gives the same 256 MiB from a cache and from nginx
// (sendfile on), each a process of its own, in turns, over plain HTTP to one
// client on the same machine, and reports the medians and their ratio.
//
//	go test ./pkg/oci/cache -run NONE -bench Nginx -benchtime 5x
func BenchmarkAgainstNginx(b *testing.B) {
	s := newSite(b, 1<<20, cache.Options{MaxBytes: 2 * benchBlob})
	d, m := s.pushBlob(b, benchBlob, 1)
	if _, err := s.cache.Stage(b.Context(), repoName, m.Digest.String(), nil); err != nil {
		b.Fatal(err)
	}
	if err := s.cache.Close(); err != nil {
		b.Fatal(err)
	}
	s.cache = nil
	host, _, _ := strings.Cut(s.upstream.String(), "/")
	base, _ := serveProcess(b, s.o.Dir, host, 2*benchBlob)
	s.url = base
	if a := s.get(b.Context(), "manifests/"+m.Digest.String()); a.status != 200 {
		b.Fatalf("%d %s", a.status, a.body)
	}
	urls := []string{base + "/v2/" + repoName + "/blobs/" + d.Digest.String(), nginx(b, filepath.Join(s.o.Dir, "blobs/sha256"), b.TempDir()) + "/" + d.Digest.Hex}
	for _, bench := range []struct {
		name        string
		size        int64
		connections int64
	}{{"whole, 1 connection", benchBlob, 1}, {"ranges of 1 MiB, 4 connections", 1 << 20, 4}, {"ranges of 64 KiB, 4 connections", 64 << 10, 4}} {
		b.Run(bench.name, func(b *testing.B) {
			var took [2][]time.Duration
			for b.Loop() {
				for i, url := range urls {
					begun := time.Now()
					pullRanges(b, url, bench.size, bench.connections)
					took[i] = append(took[i], time.Since(begun))
				}
			}
			var median [2]float64
			for i := range took {
				slices.Sort(took[i])
				median[i] = took[i][len(took[i])/2].Seconds()
			}
			b.ReportMetric(benchBlob/median[0]/1e6, "MB/s-ours")
			b.ReportMetric(benchBlob/median[1]/1e6, "MB/s-nginx")
			b.ReportMetric(median[1]/median[0], "of-nginx")
		})
	}
}

func pullRanges(b *testing.B, url string, size, connections int64) {
	b.Helper()
	var wg sync.WaitGroup
	for k := range connections {
		wg.Go(func() {
			transport := &http.Transport{ReadBufferSize: 64 << 10}
			defer transport.CloseIdleConnections()
			buf := make([]byte, 256<<10)
			for off := k * size; off < benchBlob; off += size * connections {
				req, err := http.NewRequest("GET", url, nil)
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+size-1))
				r, err := transport.RoundTrip(req)
				if err != nil {
					b.Error(err)
					return
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, buf)
				if cerr := r.Body.Close(); err != nil || cerr != nil || n != size || r.StatusCode != 206 {
					b.Errorf("%d bytes, %v, %v, status %d", n, err, cerr, r.StatusCode)
					return
				}
			}
		})
	}
	wg.Wait()
}

// nginx serves dir until the test ends.
func nginx(b *testing.B, dir, tmp string) string {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		b.Fatal(err)
	}
	config := filepath.Join(tmp, "nginx.conf")
	text := fmt.Sprintf(`daemon off; user root; pid %[1]s/pid; error_log %[1]s/error; worker_processes auto;
events { worker_connections 1024; }
http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  server { listen %[2]s; root %[3]s; } }
`, tmp, addr, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(ocitest.Tool(b, "nginx"), "-e", filepath.Join(tmp, "error"), "-c", config)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // its workers end with it
		_ = cmd.Wait()
	})
	for range 100 {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			return "http://" + addr
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.Fatal("nginx does not start")
	return ""
}
