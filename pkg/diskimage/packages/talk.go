package packages

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// The hooks run where the tree is, which an ordinary user's process cannot
// reach, so everything passes through two pipes. The hooks write lines, and tar
// streams where the conversation calls for one; the answers are lines, and tar
// streams whose length was said or that end with the pipe:
//
//	> SIZE\n, SIZE bytes of tar     the last indices
//	< source SHA256 NAME\n …        what the archive is now
//	< updated\n
//	> stop | [send]\n               send: give the indices back
//	< tar                           after send
//	> TERM …\n                      what to plan for, in apt's words
//	< uri 'URL' FILE SIZE HASH\n …
//	< planned\n
//	> debs\n, tar until the end     the packages that are cached
//	< kernel, package lines         when all is installed
//	< debs\n, tar                   the packages that were not cached
//	< done\n
type talk struct {
	in    *bufio.Reader
	out   io.WriteCloser
	store store
	terms string // for apt: what will be installed

	// decide is asked once with the archive's state; false stops the run.
	decide func([]Source) (bool, error)
	// planned is told what will be installed and how much of it is not cached.
	planned func(plan []uri, missing int) error

	stopped  bool // decide said so
	sources  []Source
	digests  map[string]diskimage.Digest // of the planned packages, by file name
	packages []Package
	kernels  []string
	done     bool
}

// store is what the conversation wants of the cache.
type store interface {
	// lists opens the tar of the last indices, gives its size in bytes and the
	// sources they are of; a nil reader if there are none.
	lists() (io.ReadCloser, int64, []Source)
	// putLists replaces the indices.
	putLists(r io.Reader, sources []Source) error
	// hasDeb reports whether a planned package is cached, whole and unchanged.
	hasDeb(u uri) bool
	// deb opens a cached package.
	deb(u uri) (io.ReadCloser, error)
	// putDeb stores a package if its digest is that of a planned one.
	putDeb(name string, r io.Reader) error
}

// uri is a package that apt plans to install.
type uri struct {
	URL    string
	File   string // apt's name in its archives directory
	Size   int64
	Digest diskimage.Digest // zero if the archive gives no SHA-256
}

const maxLine = 64 << 10

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func newTalk(in io.Reader, out io.WriteCloser, s store) *talk {
	return &talk{in: bufio.NewReaderSize(in, maxLine), out: out, store: s, digests: map[string]diskimage.Digest{}}
}

// run holds the conversation. It returns nil if it came to its end or was
// stopped on purpose, io.ErrUnexpectedEOF if the other side went away.
func (t *talk) run() error {
	defer t.out.Close()
	of, err := t.sendLists()
	if err != nil {
		return err
	}
	if err := t.lines("updated", func(kind, rest string) error {
		if kind != "source" {
			return fmt.Errorf("unexpected word %q", kind)
		}
		hash, name, _ := strings.Cut(rest, " ")
		d, err := diskimage.ParseDigest("sha256:" + hash)
		if err != nil {
			return err
		}
		t.sources = append(t.sources, Source{name, d})
		return nil
	}); err != nil {
		return err
	}
	goOn, err := t.decide(t.sources)
	if err != nil || !goOn {
		t.stopped = err == nil
		fmt.Fprintln(t.out, "stop") // the other side may be gone: it stops either way
		return err
	}
	if !sameSources(of, t.sources) {
		if err := t.say("send"); err != nil {
			return err
		}
		if err := t.tarStream(func(r io.Reader) error { return t.store.putLists(r, t.sources) }); err != nil {
			return fmt.Errorf("indices: %w", err)
		}
	}
	if err := t.say(t.terms); err != nil {
		return err
	}
	if err := t.sendDebs(); err != nil {
		return err
	}
	return t.finish()
}

// sendLists sends the last indices and returns the sources they are of.
func (t *talk) sendLists() ([]Source, error) {
	r, size, of := t.store.lists()
	if r == nil {
		return nil, t.say("0")
	}
	defer r.Close()
	if err := t.say(strconv.FormatInt(size, 10)); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(t.out, r, size); err != nil {
		return nil, fmt.Errorf("indices: %w", gone(err))
	}
	return of, nil
}

func (t *talk) say(line string) error {
	_, err := io.WriteString(t.out, line+"\n")
	return gone(err)
}

// sendDebs reads the plan and sends what is cached of it.
func (t *talk) sendDebs() error {
	var plan []uri
	if err := t.lines("planned", func(kind, rest string) error {
		if kind != "uri" {
			return fmt.Errorf("unexpected word %q", kind)
		}
		u, err := parseURI(rest)
		plan = append(plan, u)
		t.digests[u.File] = u.Digest
		return err
	}); err != nil {
		return err
	}
	var have []uri
	for _, u := range plan {
		if t.store.hasDeb(u) {
			have = append(have, u)
		}
	}
	if err := t.planned(plan, len(plan)-len(have)); err != nil {
		fmt.Fprintln(t.out, "stop")
		return err
	}
	if err := t.say("debs"); err != nil {
		return err
	}
	w := tar.NewWriter(t.out)
	for _, u := range have {
		if err := t.sendDeb(w, u); err != nil {
			return fmt.Errorf("%s: %w", u.File, err)
		}
	}
	if err := w.Close(); err != nil {
		return gone(err)
	}
	return gone(t.out.Close())
}

func (t *talk) sendDeb(w *tar.Writer, u uri) error {
	r, err := t.store.deb(u)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := w.WriteHeader(&tar.Header{Name: u.File, Mode: 0o644, Size: u.Size}); err != nil {
		return gone(err)
	}
	_, err = io.Copy(w, r)
	return gone(err)
}

// finish reads what was installed, and the packages that were downloaded.
func (t *talk) finish() error {
	if err := t.lines("debs", func(kind, rest string) error {
		switch kind {
		case "kernel":
			t.kernels = append(t.kernels, rest)
		case "package":
			f := strings.Fields(rest)
			if len(f) != 4 {
				return fmt.Errorf("package line %q", rest)
			}
			if f[3] != "installed" {
				return fmt.Errorf("package %s is left in state %q", f[0], f[3])
			}
			t.packages = append(t.packages, Package{f[0], f[1], f[2], t.digests[debName(f[0], f[1], f[2])]})
		default:
			return fmt.Errorf("unexpected word %q", kind)
		}
		return nil
	}); err != nil {
		return err
	}
	err := t.tarStream(func(r io.Reader) error {
		tr := tar.NewReader(r)
		for {
			h, err := tr.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := t.store.putDeb(h.Name, tr); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("downloaded packages: %w", err)
	}
	err = t.lines("done", func(kind, _ string) error { return fmt.Errorf("unexpected word %q", kind) })
	t.done = err == nil
	return err
}

// lines calls f for each line up to the one that is just end.
func (t *talk) lines(end string, f func(kind, rest string) error) error {
	for {
		line, err := t.in.ReadSlice('\n')
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return gone(err)
		}
		s := strings.TrimSuffix(string(line), "\n")
		if s == end {
			return nil
		}
		kind, rest, _ := strings.Cut(s, " ")
		if err := f(kind, rest); err != nil {
			return fmt.Errorf("talk with the sandbox: %w", err)
		}
	}
}

// tarStream lets f read one tar stream, then reads what tar pads it with: GNU
// tar writes whole records of 10240 bytes.
func (t *talk) tarStream(f func(io.Reader) error) error {
	c := &countReader{r: t.in}
	if err := f(c); err != nil {
		return err
	}
	const record = 10240
	// f may have stopped at the first zero block; the stream ends with its record
	_, err := io.CopyN(io.Discard, t.in, (record-c.n%record)%record)
	return gone(err)
}

// gone turns the errors of a pipe whose other end is closed into one.
func gone(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(io.ErrUnexpectedEOF, err)
}

// parseURI reads a line of apt-get --print-uris: 'URL' FILE SIZE HASH.
func parseURI(s string) (uri, error) {
	f := strings.Fields(s)
	if len(f) < 3 || len(f[0]) < 2 {
		return uri{}, fmt.Errorf("apt's plan: %q", s)
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || size < 0 || strings.ContainsRune(f[1], '/') {
		return uri{}, fmt.Errorf("apt's plan: %q", s)
	}
	u := uri{URL: strings.Trim(f[0], "'"), File: f[1], Size: size}
	if len(f) > 3 {
		if h, ok := strings.CutPrefix(f[3], "SHA256:"); ok {
			if u.Digest, err = diskimage.ParseDigest("sha256:" + h); err != nil {
				return uri{}, fmt.Errorf("apt's plan: %q: %w", s, err)
			}
		}
	}
	return u, nil
}

// debName is how apt calls a package's file: NAME_VERSION_ARCH.deb, where "_",
// ":" and what is no printable character are percent-encoded.
func debName(name, version, arch string) string {
	return quoteDeb(name) + "_" + quoteDeb(version) + "_" + quoteDeb(arch) + ".deb"
}

func quoteDeb(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c == '_' || c == ':' || c == '%' || c <= ' ' || c >= 0x7f {
			fmt.Fprintf(&b, "%%%02x", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func sameSources(a, b []Source) bool {
	if len(a) != len(b) || len(a) == 0 {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
