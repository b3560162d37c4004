// Package tftp is a read-only TFTP server (RFC 1350) with the options blksize
// (RFC 2348), timeout and tsize (RFC 2349) and windowsize (RFC 7440), for the
// firmware of many machines that start at once.
//
//	conn, err := tftp.Listen(ctx, ":69")
//	files := tftp.Map{"ipxe.efi": tftp.Disk("/usr/lib/ipxe/snponly.efi"), "autoexec.ipxe": tftp.Bytes(script)}
//	err = tftp.Serve(ctx, conn, files, tftp.Options{Log: log, Stats: stats})
//
// Answers come from the address that was asked. A session holds one socket and
// one block in memory; more than Options.Sessions at once wait, since the client
// asks again. Nothing is ever written; a name reaches only what Files knows.
package tftp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
)

// Files is what can be read. Open is called concurrently; the name has no
// leading slash, no "." or ".." element and no backslash. fs.ErrNotExist means
// that there is no such file.
type Files interface {
	Open(ctx context.Context, name string, client netip.AddrPort) (File, error)
}

// File is an open file. Its size does not change. It is closed after use if it
// is an io.Closer.
type File interface {
	io.ReaderAt
	Size() int64
}

// Map is a fixed set of files: each is opened anew for each session.
type Map map[string]Opener

// Opener opens one file.
type Opener func() (File, error)

// Open implements Files.
func (m Map) Open(_ context.Context, name string, _ netip.AddrPort) (File, error) {
	open, ok := m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return open()
}

// Bytes is a file in memory.
func Bytes(b []byte) Opener { return func() (File, error) { return bytes.NewReader(b), nil } }

// Disk is a regular file of this system, whatever its path is when it is asked for.
func Disk(path string) Opener {
	return func() (File, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = errors.New(path + ": not a regular file")
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		return disk{f, st.Size()}, nil
	}
}

type disk struct {
	*os.File
	size int64
}

func (d disk) Size() int64 { return d.size }

// Options of Serve. The zero value serves.
type Options struct {
	Sessions int           // at once; 0 is 4096
	MaxBlock int           // bytes of a block at most; 0 is 1468, which fits Ethernet whole
	Window   int           // blocks sent without an answer at most; 0 is 16
	Timeout  time.Duration // until a block is first repeated, if the client does not say; 0 is 1 s
	Retries  int           // of a block, at growing distance; 0 is 6
	Log      *slog.Logger  // nil: nothing is said
	Stats    *Stats        // nil: nothing is counted
}

// Stats counts. Its zero value is ready; all members may be read at any time.
type Stats struct {
	Requests  atomic.Int64 // read requests, without repeated ones
	Repeated  atomic.Int64 // read requests of a session that runs
	Late      atomic.Int64 // read requests beyond Options.Sessions, to be asked again
	Malformed atomic.Int64
	Refused   atomic.Int64 // not found, written to, netascii
	Done      atomic.Int64 // files that were acknowledged to the end
	Aborted   atomic.Int64 // by the client, which is normal after it asked for the size
	TimedOut  atomic.Int64
	Failed    atomic.Int64 // a file that could not be read
	Resent    atomic.Int64 // blocks
	Bytes     atomic.Int64 // of files, without what was repeated
	Sessions  atomic.Int64 // a gauge
}
