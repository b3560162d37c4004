package packages

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Locked is a package that a request was resolved to.
type Locked struct {
	Name     string           `json:"name"`
	Version  string           `json:"version"`
	Arch     string           `json:"arch"`
	Digest   diskimage.Digest `json:"sha256"` // of the .deb
	Size     int64            `json:"size"`
	Priority string           `json:"priority,omitempty"` // the archive's: what a variant installs goes by it
	URL      string           `json:"url,omitempty"`      // where it was
}

// Lock says which packages there are for a run.
type Lock struct {
	Packages []Locked
	Sources  []Source // what they were resolved against, for the record
	// Pin makes the packages a preference: the archive is asked as well, and those of
	// Free may have another version, as may what they then need. What is nowhere to be
	// had any more is taken from the archive as well. Not set: these packages and no others.
	Pin  bool
	Free []string
	// Fetch opens a package that the cache lacks; nil, or an error, leaves URLs that
	// are files.
	Fetch func(ctx context.Context, p Locked) (io.ReadCloser, error)
}

// strict says that no other packages are to be had.
func (l *Lock) strict() bool { return l != nil && !l.Pin }

// NotLockedError lists packages that a locked run lacks, or would install besides.
type NotLockedError struct {
	Missing []string // in the lock, and nowhere to be had
	Other   []string // installed, and not in the lock
	Unused  []string // in the lock, and not installed
	Err     error    // of fetching, if that is why
}

func (e *NotLockedError) Error() string {
	var parts []string
	for _, p := range []struct {
		what  string
		names []string
	}{{"cannot be had: ", e.Missing}, {"would be installed and is not in the lock: ", e.Other}, {"is in the lock and would not be installed: ", e.Unused}} {
		if len(p.names) > 0 {
			parts = append(parts, p.what+strings.Join(p.names, ", "))
		}
	}
	s := "the lock does not fit: " + strings.Join(parts, "; ")
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *NotLockedError) Unwrap() error { return e.Err }

// RequestDigest returns the digest of what a request asks for, whatever answers it:
// neither the epoch nor a tool's version counts.
func (r Request) RequestDigest() (diskimage.Digest, error) {
	r, err := r.normal()
	if err != nil {
		return diskimage.Digest{}, err
	}
	keys, err := r.keys()
	if err != nil {
		return diskimage.Digest{}, err
	}
	d := r.Debian
	return digestJSON([]any{"debian", d.Suite, d.Variant, d.Components, d.Mirrors, diskimage.DigestOf(keys), r.Arch, r.Packages})
}

// lockedKey is the key of a strictly locked request: its packages decide, not the
// archive, nor where they were.
func (r *run) lockedKey() (diskimage.Digest, error) {
	packages := slices.Clone(r.Lock.Packages)
	for i := range packages {
		packages[i].URL = ""
	}
	return digestJSON([]any{r.request, "locked", packages})
}

// Obtain brings packages into a cache that lacks them, each checked by its SHA-256;
// fetch is as in Lock. What is nowhere to be had is in a NotLockedError.
func Obtain(ctx context.Context, cacheDir string, packages []Locked, fetch func(context.Context, Locked) (io.ReadCloser, error)) error {
	c, err := openCache(cacheDir)
	if err != nil {
		return err
	}
	return c.obtain(ctx, &Lock{Packages: packages, Fetch: fetch})
}

// obtain brings every package of the lock into the cache.
func (c *cache) obtain(ctx context.Context, l *Lock) error {
	var missing []Locked
	for _, p := range l.Packages {
		if !c.hasDeb(p.uri()) {
			missing = append(missing, p)
		}
	}
	errs := make([]error, len(missing))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, p := range missing {
		g.Go(func() error {
			errs[i] = c.obtainOne(ctx, p, l.Fetch)
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	e := &NotLockedError{}
	for i, p := range missing {
		if errs[i] != nil {
			e.Missing, e.Err = append(e.Missing, p.Name+" "+p.Version), errs[i]
		}
	}
	if len(e.Missing) > 0 && l.strict() {
		return e
	}
	return nil // what is only preferred may be gone
}

func (c *cache) obtainOne(ctx context.Context, p Locked, fetch func(context.Context, Locked) (io.ReadCloser, error)) (err error) {
	var tried []error
	for _, open := range []func(context.Context, Locked) (io.ReadCloser, error){fetch, openFile} {
		if open == nil {
			continue
		}
		body, err := open(ctx, p)
		if err == nil {
			err = errors.Join(c.storeDeb(p.uri(), io.LimitReader(body, p.Size+1)), body.Close())
		}
		if err == nil {
			return nil
		}
		tried = append(tried, err)
	}
	return fmt.Errorf("%s: %w", p.Name, errors.Join(tried...))
}

// openFile opens the package where its URL is a file of this machine.
func openFile(_ context.Context, p Locked) (io.ReadCloser, error) {
	for _, scheme := range []string{"file:", "copy:"} {
		if path, ok := strings.CutPrefix(p.URL, scheme); ok {
			return os.Open(filepath.Clean("/" + strings.TrimLeft(path, "/")))
		}
	}
	return nil, fmt.Errorf("%s is no file", p.URL)
}

func (p Locked) uri() uri {
	return uri{URL: p.URL, File: debName(p.Name, p.Version, p.Arch), Size: p.Size, Digest: p.Digest}
}

// archive makes the files of an archive of the lock's packages in dir, which apt
// takes as [trusted=yes]: what is in it was compared with the lock.
func (r *run) archive(dir string) error {
	var index bytes.Buffer
	for _, p := range r.Lock.Packages {
		control, err := r.cache.control(p.Digest)
		if errors.Is(err, os.ErrNotExist) && !r.Lock.strict() {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		writeStanza(&index, control, p)
	}
	packages := index.Bytes()
	// mmdebstrap narrows what it asks apt for to the suite
	release := fmt.Sprintf("Suite: %[1]s\nCodename: %[1]s\nArchitectures: %[2]s\nComponents: main\nDate: Thu, 01 Jan 1970 00:00:00 UTC\nSHA256:\n %[3]x %[4]d Packages\n",
		r.req.Debian.Suite, r.req.Arch, sha256.Sum256(packages), len(packages))
	preferences := ""
	if r.Lock.Pin {
		preferences = r.preferences()
	}
	if err := os.Mkdir(filepath.Join(dir, "locked"), 0o755); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"Packages": packages, "Release": []byte(release), "preferences": []byte(preferences),
	} {
		name = filepath.Join(dir, "locked", name)
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return err
		}
		if err := os.Chmod(name, 0o644); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(dir, "locked"), 0o755)
}

// preferences pins every package but the free ones: apt_preferences(5), a
// priority over 1000 wins over newer versions.
func (r *run) preferences() string {
	var b strings.Builder
	for _, p := range r.Lock.Packages {
		if !slices.Contains(r.Lock.Free, p.Name) {
			fmt.Fprintf(&b, "Package: %s\nPin: version %s\nPin-Priority: 1001\n\n", p.Name, p.Version)
		}
	}
	return b.String()
}

// reUnmet are apt's words for a dependency whose one version to be had does not do,
// or which cannot be installed itself. A package's further lines begin with blanks.
var reUnmet = regexp.MustCompile(`^ (?:(\S+) : | +)(?:PreDepends|Depends|Breaks|Conflicts): (\S+) .*but .+ to be installed`)

// free is what of a lock that is only preferred has to move besides, by what apt
// said when the rest could not stay: what a package of Free now needs or breaks,
// or what needed it as it was.
func (l *Lock) free(err error) (names []string) {
	failed, ok := errors.AsType[*RunError](err)
	if !ok || l == nil || !l.Pin {
		return nil
	}
	held := func(name string) bool {
		name, _, _ = strings.Cut(name, ":")
		return !slices.Contains(l.Free, name) && slices.ContainsFunc(l.Packages, func(p Locked) bool { return p.Name == name })
	}
	subject := ""
	for line := range strings.Lines(failed.Tail) {
		m := reUnmet.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if m[1] != "" {
			subject = m[1]
		}
		name := m[2]
		if !held(name) {
			name = subject
		}
		if held(name) {
			name, _, _ = strings.Cut(name, ":")
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// writeStanza writes a package's entry of an index: its own control file with the
// archive's priority, and where the file is.
func writeStanza(w *bytes.Buffer, control []byte, p Locked) {
	s := bufio.NewScanner(bytes.NewReader(control))
	s.Buffer(nil, maxControl)
	for s.Scan() {
		line := s.Text()
		if name, _, ok := strings.Cut(line, ":"); line == "" || ok && p.Priority != "" && strings.EqualFold(name, "Priority") {
			continue
		}
		w.WriteString(line + "\n")
	}
	if p.Priority != "" {
		fmt.Fprintf(w, "Priority: %s\n", p.Priority)
	}
	fmt.Fprintf(w, "Filename: ./%s\nSize: %d\nSHA256: %s\n\n", debName(p.Name, p.Version, p.Arch), p.Size, p.Digest.Hex())
}

// compareInstalled says what was installed besides the lock, or instead.
func (l *Lock) compareInstalled(installed []Package) error {
	type key struct{ name, version, arch string }
	want := map[key]bool{}
	for _, p := range l.Packages {
		want[key{p.Name, p.Version, p.Arch}] = true
	}
	e := &NotLockedError{}
	for _, p := range installed {
		k := key{p.Name, p.Version, p.Arch}
		if !want[k] {
			e.Other = append(e.Other, p.Name+" "+p.Version)
		}
		delete(want, k)
	}
	for k := range want {
		e.Unused = append(e.Unused, k.name+" "+k.version)
	}
	slices.Sort(e.Unused)
	if len(e.Other)+len(e.Unused) > 0 {
		return e
	}
	return nil
}

// resolved joins what was installed with where it was planned to come from, and the
// priorities of the archive's indices.
func resolved(installed []Package, plan map[string]uri, priorities map[diskimage.Digest]string) ([]Locked, error) {
	var out []Locked
	for _, p := range installed {
		u, ok := plan[debName(p.Name, p.Version, p.Arch)]
		if !ok || u.Digest.IsZero() {
			return nil, fmt.Errorf("%s %s: the archive gives no SHA-256 of it", p.Name, p.Version)
		}
		out = append(out, Locked{p.Name, p.Version, p.Arch, u.Digest, u.Size, priorities[u.Digest], u.URL})
	}
	return out, nil
}

// priorities reads the priority of every package of some digests out of apt's
// indices, as the cache has them.
func (c *cache) priorities(of []Package) (map[diskimage.Digest]string, error) {
	want := map[diskimage.Digest]bool{}
	for _, p := range of {
		want[p.Digest] = true
	}
	out := map[diskimage.Digest]string{}
	r, size, _ := c.lists()
	if r == nil {
		return out, nil
	}
	defer r.Close()
	for tr := tar.NewReader(io.LimitReader(r, size)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if !strings.HasSuffix(h.Name, "_Packages") {
			continue
		}
		if err := readPriorities(tr, want, out); err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func readPriorities(r io.Reader, want map[diskimage.Digest]bool, out map[diskimage.Digest]string) error {
	var priority string
	var digest diskimage.Digest
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxControl)
	end := func() {
		if want[digest] {
			out[digest] = priority
		}
		priority, digest = "", diskimage.Digest{}
	}
	for s.Scan() {
		line := s.Bytes()
		switch {
		case len(line) == 0:
			end()
		case bytes.HasPrefix(line, []byte("Priority: ")):
			priority = string(line[len("Priority: "):])
		case bytes.HasPrefix(line, []byte("SHA256: ")):
			var err error
			if digest, err = diskimage.ParseDigest("sha256:" + string(line[len("SHA256: "):])); err != nil {
				return err
			}
		}
	}
	end()
	return s.Err()
}

// lockedStore keeps the indices of a lock's own archive out of the cache.
type lockedStore struct{ *cache }

func (lockedStore) lists() (io.ReadCloser, int64, []Source) { return nil, 0, nil }

func (lockedStore) putLists(r io.Reader, _ []Source) error {
	_, err := copyTar(io.Discard, r)
	return err
}

// missing lists the planned packages that are not cached.
func (c *cache) missing(plan []uri) (out []string) {
	for _, u := range plan {
		if !c.hasDeb(u) {
			out = append(out, u.File)
		}
	}
	return out
}

// mode is what the hooks do: nothing, strict, or pin.
func (l *Lock) mode() string {
	switch {
	case l == nil:
		return ""
	case l.Pin:
		return "pin"
	}
	return "strict"
}

// CachedPath returns where a cache has a package, if it has it.
func CachedPath(cacheDir string, d diskimage.Digest) string {
	return (&cache{dir: cacheDir}).debPath(d)
}
