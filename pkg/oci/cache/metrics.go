package cache

import (
	"fmt"
	"io"
)

// WriteMetrics writes what was counted, in Prometheus' text format.
func (c *Cache) WriteMetrics(w io.Writer) {
	used, limit := c.Usage()
	s := &c.Stats
	for _, m := range []struct {
		name, kind, help string
		value            int64
	}{
		{"requests_total", "counter", "Requests to /v2/.", s.Requests.Load()},
		{"hits_total", "counter", "Manifests and ranges of blobs that were there.", s.Hits.Load()},
		{"misses_total", "counter", "Manifests and ranges of blobs that were not there.", s.Misses.Load()},
		{"served_bytes_total", "counter", "Bytes of blobs sent to clients.", s.Served.Load()},
		{"fetched_bytes_total", "counter", "Bytes of blobs that came from upstream.", s.Fetched.Load()},
		{"passed_bytes_total", "counter", "Bytes sent without being kept, because there was no room.", s.Passed.Load()},
		{"evictions_total", "counter", "Blobs removed to make room.", s.Evictions.Load()},
		{"bad_total", "counter", "Ranges from upstream or on disk that were wrong.", s.Bad.Load()},
		{"doubts_total", "counter", "Ranges that a client doubted.", s.Doubts.Load()},
		{"errors_total", "counter", "Requests that upstream or the disk failed.", s.Errors.Load()},
		{"stale_total", "counter", "Old listings of referrers given because upstream did not answer.", s.Stale.Load()},
		{"used_bytes", "gauge", "Bytes on disk and on their way to it.", used},
		{"limit_bytes", "gauge", "Bytes that may be on disk.", limit},
		{"pinned_images", "gauge", "Images that are kept for jobs, or staged.", int64(c.Pins())},
	} {
		fmt.Fprintf(w, "# HELP imgpipe_cache_%s %s\n# TYPE imgpipe_cache_%s %s\nimgpipe_cache_%s %d\n", m.name, m.help, m.name, m.kind, m.name, m.value)
	}
}
