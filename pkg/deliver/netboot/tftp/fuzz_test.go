package tftp

import (
	"strings"
	"testing"
)

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("\x00\x01ipxe.efi\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00timeout\x003\x00"))
	f.Add([]byte("\x00\x01../../etc/passwd\x00octet\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		for _, e := range strings.Split(r.name, "/") {
			if e == "" || e == "." || e == ".." || strings.ContainsAny(e, "\\\x00") {
				t.Errorf("name %q", r.name)
			}
		}
		if r.block != 0 && (r.block < minBlock || r.block > maxBlock) || r.window < 0 || r.window > 65535 || r.timeout < 0 {
			t.Errorf("%+v", r)
		}
		if n := len(r.oack(r.block, r.window, 1<<40)); n > 128 {
			t.Errorf("an OACK of %d bytes", n)
		}
	})
}
