package tftp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// Opcodes (RFC 1350 section 5, RFC 2347).
const (
	opRead  = 1
	opWrite = 2
	opData  = 3
	opAck   = 4
	opError = 5
	opOACK  = 6
)

// Error codes (RFC 1350 appendix, RFC 2347).
const (
	errOther    = 0
	errNotFound = 1
	errAccess   = 2
	errIllegal  = 4
	errOptions  = 8
)

const (
	defaultBlock = 512
	minBlock     = 8     // RFC 2348
	maxBlock     = 65464 // RFC 2348
	maxRequest   = 1024  // bytes; RFC 2347 says 512, which long paths exceed
	maxName      = 255
)

// request is a read request with what it asks for; zero: not asked.
type request struct {
	name    string
	octet   bool
	block   int
	tsize   bool
	timeout time.Duration
	window  int
}

var errMalformed = errors.New("malformed")

// parseRequest reads an RRQ. Options that it does not know, or with values out
// of range, are left out, as RFC 2347 says.
func parseRequest(b []byte) (request, error) {
	if len(b) < 4 || len(b) > maxRequest || binary.BigEndian.Uint16(b) != opRead || b[len(b)-1] != 0 {
		return request{}, errMalformed
	}
	fields := strings.Split(string(b[2:len(b)-1]), "\x00")
	if len(fields) < 2 || len(fields[0]) > maxName {
		return request{}, errMalformed
	}
	r := request{octet: strings.EqualFold(fields[1], "octet")}
	var ok bool
	if r.name, ok = cleanName(fields[0]); !ok {
		return request{}, errMalformed
	}
	for i := 2; i+1 < len(fields); i += 2 {
		n, err := strconv.ParseUint(fields[i+1], 10, 63)
		if err != nil {
			continue
		}
		switch strings.ToLower(fields[i]) {
		case "blksize":
			if n >= minBlock && n <= maxBlock {
				r.block = int(n)
			}
		case "timeout":
			if n >= 1 && n <= 255 {
				r.timeout = time.Duration(n) * time.Second
			}
		case "windowsize":
			if n >= 1 && n <= 65535 {
				r.window = int(n)
			}
		case "tsize":
			r.tsize = true
		}
	}
	return r, nil
}

// cleanName makes a name relative and free of "..": firmware writes "/x", "\x"
// and "x" for the same file. Control characters are refused.
func cleanName(s string) (string, bool) {
	for _, c := range []byte(s) {
		if c < 0x20 || c == 0x7f {
			return "", false
		}
	}
	s = strings.TrimPrefix(path.Clean("/"+strings.ReplaceAll(s, `\`, "/")), "/")
	return s, s != ""
}

// oack returns the answer to the options: only what was asked for (RFC 2347);
// nil if nothing was.
func (r request) oack(block, window int, size int64) []byte {
	b := []byte{0, opOACK}
	add := func(name string, n int64) { b = fmt.Appendf(b, "%s\x00%d\x00", name, n) }
	if r.block != 0 {
		add("blksize", int64(block))
	}
	if r.timeout != 0 {
		add("timeout", int64(r.timeout/time.Second))
	}
	if r.tsize {
		add("tsize", size)
	}
	if r.window != 0 {
		add("windowsize", int64(window))
	}
	if len(b) == 2 {
		return nil
	}
	return b
}

func errorPacket(code uint16, text string) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, opError}, code)
	return append(append(b, text...), 0)
}
