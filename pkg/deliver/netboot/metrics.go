package netboot

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
)

// counters count, by name and labels.
type counters struct {
	mu  sync.Mutex
	all map[string]map[string]int64
}

func (c *counters) init() { c.all = map[string]map[string]int64{} }

// add counts. The labels are few: none is what someone sent.
func (c *counters) add(name, labels string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.all[name]
	if m == nil {
		m = map[string]int64{}
		c.all[name] = m
	}
	m[labels] += n
}

func (c *counters) write(w io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.all)) {
		WriteMetric(w, name, "counter", c.all[name])
	}
}

// WriteMetric writes a metric in the Prometheus text format (version 0.0.4):
// its values by their labels, such as `state="queued"`, or "" for none.
func WriteMetric(w io.Writer, name, kind string, values map[string]int64) {
	fmt.Fprintf(w, "# TYPE %s %s\n", name, kind)
	for _, labels := range slices.Sorted(maps.Keys(values)) {
		if labels == "" {
			fmt.Fprintf(w, "%s %d\n", name, values[labels])
		} else {
			fmt.Fprintf(w, "%s{%s} %d\n", name, labels, values[labels])
		}
	}
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	states := map[string]int64{}
	for _, st := range []jobs.State{jobs.Queued, jobs.Claimed, jobs.Writing, jobs.Committed, jobs.Booted, jobs.Failed, jobs.Quarantined, jobs.Cancelled} {
		states[fmt.Sprintf("state=%q", st)] = 0
	}
	var frozen int64
	for _, j := range s.store.Current() {
		states[fmt.Sprintf("state=%q", j.State)]++
		if j.Frozen {
			frozen++
		}
	}
	known := map[string]int64{`known="true"`: 0, `known="false"`: 0}
	var half int64
	for _, m := range s.store.Machines() {
		known[fmt.Sprintf("known=%q", fmt.Sprint(m.Known))]++
		if m.Half {
			half++
		}
	}
	WriteMetric(&b, "imgpipe_jobs", "gauge", states)
	WriteMetric(&b, "imgpipe_jobs_frozen", "gauge", map[string]int64{"": frozen})
	WriteMetric(&b, "imgpipe_machines", "gauge", known)
	WriteMetric(&b, "imgpipe_machines_half_written", "gauge", map[string]int64{"": half})
	s.count.write(&b)
	for _, f := range s.o.Metrics {
		f(&b)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = io.WriteString(w, b.String()) // who goes away asks again
}

// counted counts a port's requests and bytes.
func (s *Server) counted(port string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &countingWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(c, r)
		s.count.add("imgpipe_http_requests_total", fmt.Sprintf("port=%q,code=\"%d\"", port, c.status), 1)
		s.count.add("imgpipe_http_bytes_total", fmt.Sprintf("port=%q", port), c.n)
		s.o.Log.Debug("request", "port", port, "method", r.Method, "path", clean(r.URL.Path), "remote", r.RemoteAddr, "status", c.status, "bytes", c.n)
	})
}

// buffers are for HTTP/2, which has no sendfile(2): a frame of the agents' size.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// countingWriter counts; files still go out by sendfile(2).
type countingWriter struct {
	http.ResponseWriter
	status int
	n      int64
}

func (c *countingWriter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *countingWriter) ReadFrom(r io.Reader) (n int64, err error) {
	if f, ok := c.ResponseWriter.(io.ReaderFrom); ok {
		n, err = f.ReadFrom(r)
	} else {
		b := buffers.Get().(*[64 << 10]byte)
		n, err = io.CopyBuffer(struct{ io.Writer }{c.ResponseWriter}, r, b[:])
		if err == nil { // else the connection may still read it: the stream ended before its frame was written
			buffers.Put(b)
		}
	}
	c.n += n
	return n, err
}

func (c *countingWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
