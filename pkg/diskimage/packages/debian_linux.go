package packages

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/workdir"
)

//go:embed setup.sh
var setupHook string

//go:embed defer.sh
var deferHook string

//go:embed finish.sh
var finishHook string

//go:embed extracted.sh
var extractedHook string

//go:embed copy.pm
var copyModule string

// baseEnv is the whole environment of a run, besides TMPDIR, SOURCE_DATE_EPOCH
// and what the caller adds: nothing of the user's reaches a maintainer script.
// INITRD=No is what kernel packages' hooks know to make no initramfs by.
var baseEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/nonexistent",
	"LC_ALL=C.UTF-8",
	"TZ=UTC",
	"PYTHONHASHSEED=0",
	"DEBIAN_FRONTEND=noninteractive",
	"DEBCONF_NONINTERACTIVE_SEEN=true",
	"INITRD=No",
}

// Debian returns a tree made of Debian packages: the cached one if the request
// is known, unless o.Refresh; else a new one. It needs mmdebstrap, and root or
// subordinate ids. Errors a caller may want to tell apart: UnknownPackageError,
// MissingToolError, MirrorError, NoSpaceError, RunError, ErrNoSubordinateIDs.
func Debian(ctx context.Context, req Request, o Options) (*Result, error) {
	r, err := newRun(ctx, req, o)
	if err != nil {
		return nil, fmt.Errorf("debian: %w", err)
	}
	res, err := r.result(ctx)
	if err == nil {
		res.Entries = r.entries(res.Key)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // whatever else broke broke because of that
		}
		return nil, fmt.Errorf("debian: %w", err)
	}
	return res, nil
}

// Cached returns the tree that a request last led to, nil where the cache has none.
// It needs neither rights nor network.
func Cached(ctx context.Context, req Request, o Options) (*Result, error) {
	r, err := newRun(ctx, req, o)
	if err != nil {
		return nil, fmt.Errorf("debian: %w", err)
	}
	return r.last(ctx), nil
}

// last returns what the request last led to, here or where Fetch finds it.
func (r *run) last(ctx context.Context) *Result {
	if r.Lock != nil {
		return r.lastLocked(ctx)
	}
	res := r.cache.last(r.request)
	if res == nil && r.Fetch != nil {
		r.Fetch(ctx, "requests/"+r.request.Hex())
		if key, ok := r.cache.lastKey(r.request); ok {
			r.Fetch(ctx, "roots/"+key.Hex())
		}
		res = r.cache.last(r.request)
	}
	if res != nil {
		res.FromCache = true
		res.Entries = r.entries(res.Key)
	}
	return res
}

// lastLocked returns the tree that a strict lock led to. A lock that is only a
// preference is asked of the archive each time.
func (r *run) lastLocked(ctx context.Context) *Result {
	key, err := r.lockedKey()
	if err != nil || !r.Lock.strict() {
		return nil
	}
	res := r.cache.root(key)
	if res == nil && r.Fetch != nil {
		r.Fetch(ctx, "roots/"+key.Hex())
		res = r.cache.root(key)
	}
	if res != nil {
		res.FromCache, res.Entries = true, r.entries(key)
	}
	return res
}

func (r *run) entries(key diskimage.Digest) []string {
	if r.Lock != nil {
		return []string{"roots/" + key.Hex()}
	}
	return []string{"roots/" + key.Hex(), "requests/" + r.request.Hex()}
}

// run is one call of Debian.
type run struct {
	Options
	req     Request
	request diskimage.Digest
	cache   *cache
	keys    []byte   // the keyring
	tool    string   // "mmdebstrap 1.3.5"
	mode    string   // "root" or "unshare"
	moved   []string // of a lock: not told to, but needed to
}

func newRun(ctx context.Context, req Request, o Options) (*run, error) {
	if o.CacheDir == "" {
		return nil, errors.New("no cache directory")
	}
	req, err := req.normal()
	if err != nil {
		return nil, err
	}
	r := &run{Options: o, req: req, mode: "unshare"}
	if os.Geteuid() == 0 {
		r.mode = "root"
	}
	if r.tool, err = toolVersion(ctx); err != nil {
		return nil, err
	}
	if r.keys, err = req.keys(); err != nil {
		return nil, err
	}
	var sources diskimage.Digest
	if r.request, sources, err = req.identity(r.tool, r.keys); err != nil {
		return nil, err
	}
	if r.CacheDir, err = filepath.Abs(o.CacheDir); err != nil {
		return nil, err
	}
	if r.WorkDir != "" { // mmdebstrap runs elsewhere
		if r.WorkDir, err = filepath.Abs(o.WorkDir); err != nil {
			return nil, err
		}
	}
	if r.cache, err = openCache(r.CacheDir); err != nil {
		return nil, err
	}
	r.cache.base = sources.Hex()
	return r, nil
}

// toolVersion returns what mmdebstrap calls itself.
func toolVersion(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--version")
	cmd.Env = baseEnv
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", &MissingToolError{Tool: "mmdebstrap", Package: "mmdebstrap"}
	}
	if err != nil {
		return "", fmt.Errorf("mmdebstrap --version: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// result takes the tree from the cache, or makes it there. Processes with the
// same request wait for each other, so that one does the work.
func (r *run) result(ctx context.Context) (*Result, error) {
	if !r.Refresh || r.Lock.strict() {
		if res := r.last(ctx); res != nil {
			return res, nil
		}
	}
	unlock, err := r.cache.lock(ctx, r.request.Hex())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !r.Refresh || r.Lock.strict() {
		if res := r.last(ctx); res != nil { // made meanwhile
			return res, nil
		}
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.Lock != nil {
		if err := r.cache.obtain(ctx, r.Lock); err != nil {
			return nil, err
		}
	}
	for {
		res, err := r.build(ctx, r.WorkDir, firstNeed)
		more := r.Lock.free(err)
		if len(more) == 0 || ctx.Err() != nil {
			return res, err
		}
		lock := *r.Lock
		lock.Free = append(slices.Clone(lock.Free), more...) // it grows each time
		r.Lock, r.moved = &lock, append(r.moved, more...)
	}
}

// errTooSmall stops a run whose work directory will not hold the tree.
type errTooSmall struct{ need int64 }

func (e *errTooSmall) Error() string { return fmt.Sprintf("about %d MiB are needed", e.need>>20) }

// build runs mmdebstrap once, or twice if the tree turns out not to fit into
// memory.
func (r *run) build(ctx context.Context, parent string, need int64) (*Result, error) {
	for _, p := range []string{parent, workdir.SharedMem, workdir.VarTmp} {
		if p != "" {
			workdir.Left(p, workPrefix, func(dir string) { removeWorkDir(dir, r.mode) }) // the next build tries again
		}
	}
	dir, err := workdir.Make(parent, workPrefix, need)
	if err != nil {
		return nil, err
	}
	held, err := workdir.Hold(dir)
	if err != nil {
		return nil, errors.Join(err, removeWorkDir(dir, r.mode))
	}
	defer held.Close()
	var res *Result
	if err = r.fill(dir); err == nil {
		res, err = r.runIn(ctx, dir, strings.HasPrefix(dir, workdir.SharedMem+"/") && parent == "")
	}
	err = errors.Join(err, removeWorkDir(dir, r.mode))
	if small, ok := errors.AsType[*errTooSmall](err); ok {
		return r.build(ctx, workdir.VarTmp, small.need)
	}
	return res, err
}

// fill puts what the sandbox reads into dir: subordinate ids and apt's own user
// could not read it where it lies. Only the request's keys are trusted, so apt
// is shown a directory with them and an empty file instead of the host's two
// places.
func (r *run) fill(dir string) error {
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o755); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{"keys/archive" + filepath.Ext(r.req.Debian.Keyring), r.keys, 0o644},
		{"none.gpg", nil, 0o644},
		{"setup", []byte(setupHook), 0o755},
		{"defer", []byte(deferHook), 0o755},
		{"finish", []byte(finishHook), 0o755},
		{"extracted", []byte(extractedHook), 0o755},
		{"copy.pm", []byte(copyModule), 0o644},
	} {
		name := filepath.Join(dir, f.name)
		if err := os.WriteFile(name, f.data, f.mode); err != nil {
			return err
		}
		if err := os.Chmod(name, f.mode); err != nil { // whatever the umask is
			return err
		}
	}
	if r.Lock != nil {
		if err := r.archive(dir); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(dir, "keys"), 0o755)
}

// runIn makes the tree in dir. With mayMove, it gives up with errTooSmall once
// it knows that the tree will not fit.
func (r *run) runIn(ctx context.Context, dir string, mayMove bool) (_ *Result, err error) {
	out := &output{progress: r.Progress, log: r.Log, now: r.Now}
	f, err := r.cache.createTemp("root")
	if err != nil {
		return nil, err
	}
	defer func() {
		f.Close()
		os.Remove(f.Name()) // gone after a commit
	}()
	tar := &tarWriter{f: f}

	fromHooks, hooksOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	hooksIn, toHooks, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, fromHooks.Close(), hooksOut.Close())
	}
	var kept store = r.cache
	if r.Lock.strict() {
		kept = lockedStore{r.cache}
	}
	t := newTalk(fromHooks, toHooks, kept)
	t.terms = strings.Join(append([]string{r.req.terms()}, r.moved...), " ")
	var cached *Result
	t.decide = func(s []Source) (bool, error) {
		if r.Lock != nil {
			return true, nil
		}
		key, err := keyOf(r.request, s)
		if err == nil {
			if cached = r.cache.root(key); cached == nil && r.Fetch != nil {
				r.Fetch(ctx, "roots/"+key.Hex())
				cached = r.cache.root(key)
			}
		}
		return cached == nil, err
	}
	var need int64
	t.planned = func(plan []uri, missing int) error {
		out.plan(len(plan), missing)
		if r.Lock.strict() && missing > 0 {
			return &NotLockedError{Other: r.cache.missing(plan)}
		}
		need = estimate(plan)
		if mayMove && workdir.Room(dir) < need {
			return &errTooSmall{need}
		}
		return nil
	}

	cmd := r.command(ctx, dir)
	cmd.ExtraFiles = []*os.File{hooksOut, hooksIn}
	cmd.Stdout, cmd.Stderr = tar, out
	out.begin()
	err = cmd.Start()
	hooksOut.Close()
	hooksIn.Close()
	if err != nil {
		return nil, errors.Join(err, fromHooks.Close(), toHooks.Close())
	}
	var talkErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		if talkErr = t.run(); talkErr != nil {
			fromHooks.Close() // else a hook that still writes would wait for ever
		}
	})
	runErr := cmd.Wait()
	toHooks.Close()
	if runErr != nil {
		fromHooks.Close()
	}
	wg.Wait()
	fromHooks.Close()
	steps := out.times()

	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case t.stopped:
		cached.FromCache = true
		return cached, r.cache.setLast(r.request, cached.Key)
	case talkErr != nil && !errors.Is(talkErr, io.ErrUnexpectedEOF) && !errors.Is(talkErr, os.ErrClosed):
		return nil, talkErr
	case errors.Is(tar.err, unix.ENOSPC):
		return nil, &NoSpaceError{Dir: r.cache.dir}
	case tar.err != nil:
		return nil, fmt.Errorf("package cache: %w", tar.err)
	case runErr != nil:
		return nil, out.explain(r.req, dir, need, runErr)
	case !t.done:
		return nil, fmt.Errorf("mmdebstrap ended without running its hooks: %w", talkErr)
	}
	key, sources, err := r.outcome(t)
	if err != nil {
		return nil, err
	}
	locked, err := r.locked(t.packages)
	if err != nil {
		return nil, err
	}
	res := &Result{
		Key: key, Sources: sources, Locked: locked, Packages: t.packages, Kernels: t.kernels,
		Tool: r.tool, Mode: r.mode, Keyring: diskimage.DigestOf(r.keys), Steps: steps, Size: tar.size, Digest: tar.digest(),
	}
	return res, r.keep(f, res)
}

// outcome returns the key of what was made, and the archives it came from. A strict lock's
// list has to be what is installed.
func (r *run) outcome(t *talk) (diskimage.Digest, []Source, error) {
	if r.Lock.strict() {
		if err := r.Lock.compareInstalled(t.packages); err != nil {
			return diskimage.Digest{}, nil, err
		}
		key, err := r.lockedKey()
		return key, r.Lock.Sources, err
	}
	key, err := keyOf(r.request, t.sources)
	if err == nil && r.Lock != nil {
		key, err = digestJSON([]any{key, "pinned", t.packages})
	}
	return key, t.sources, err
}

// locked says what was installed as a lock does; nil where packages are only unpacked.
func (r *run) locked(installed []Package) ([]Locked, error) {
	switch {
	case r.req.Debian.Variant == VariantExtract:
		return nil, nil
	case r.Lock.strict():
		return r.Lock.Packages, nil
	}
	priorities, err := r.cache.priorities(installed)
	if err != nil {
		return nil, fmt.Errorf("package cache: %w", err)
	}
	out, err := resolved(installed, r.cache.plan, priorities)
	if err != nil || r.Lock == nil {
		return out, nil //nolint:nilerr // an archive without SHA-256 builds, and cannot be locked
	}
	for i := range out { // what came from the lock's own archive keeps its URL and priority
		j := slices.IndexFunc(r.Lock.Packages, func(p Locked) bool { return p.Digest == out[i].Digest })
		if j >= 0 {
			out[i] = r.Lock.Packages[j]
		}
	}
	return out, nil
}

// keep puts a finished tree into the cache.
func (r *run) keep(f *os.File, res *Result) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("package cache: %w", err)
	}
	res.Tar = r.cache.path("roots", res.Key.Hex()+".tar")
	if err := r.cache.commit(f, res.Tar); err != nil {
		return fmt.Errorf("package cache: %w", err)
	}
	if err := r.cache.putJSON(r.cache.path("roots", res.Key.Hex()+".json"), res); err != nil {
		return fmt.Errorf("package cache: %w", err)
	}
	if r.Lock != nil {
		return nil
	}
	return r.cache.setLast(r.request, res.Key)
}

// command returns the process that makes the tree in dir. In either mode it has
// mount, UTS, IPC and PID namespaces: in unshare mode mmdebstrap makes them, in
// root mode util-linux does. Killing it ends everything that it started.
func (r *run) command(ctx context.Context, dir string) *exec.Cmd {
	var args []string
	if r.mode == "root" {
		args = []string{"unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"}
		if r.Lock.strict() {
			args = append(args, "--net")
		}
		args = append(args, "sh", "-c", `hostname localhost && exec "$@"`, "sh")
	}
	d := r.req.Debian
	args = append(args, "perl", "-I"+dir, "-Mcopy", "-S", "mmdebstrap", "--verbose", "--mode="+r.mode, "--format=tar",
		"--variant="+d.Variant,
		"--architectures="+r.req.Arch,
		"--components="+strings.Join(d.Components, ","),
		"--keyring="+filepath.Join(dir, "none.gpg"),
		"--keyring="+filepath.Join(dir, "keys"),
		// what the host trusts must not show in the image's sources.list
		"--skip=check/signed-by",
		// imgpipe keeps the packages and cleans up itself
		"--skip=essential/unlink,cleanup/apt",
		"--setup-hook="+filepath.Join(dir, "setup"))
	if d.Variant == VariantExtract {
		args = append(args, "--extract-hook="+filepath.Join(dir, "extracted"))
	} else {
		args = append(args, "--extract-hook="+filepath.Join(dir, "defer"), "--customize-hook="+filepath.Join(dir, "finish"))
	}
	if len(r.req.Packages) > 0 {
		args = append(args, "--include="+strings.Join(r.req.Packages, ","))
	}
	args = append(args, d.Suite, "-")
	args = append(args, d.Mirrors...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(append([]string{}, r.Env...), baseEnv...) // the last of a name counts
	cmd.Env = append(cmd.Env, "TMPDIR="+dir, "SOURCE_DATE_EPOCH="+strconv.FormatInt(r.req.Epoch.Unix(), 10), "IMGPIPE_VARIANT="+d.Variant, "IMGPIPE_LOCK="+r.Lock.mode())
	if r.req.NoInitramfs {
		cmd.Env = append(cmd.Env, "IMGPIPE_INITRAMFS=no")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// estimate returns the bytes of a root made of these packages, with the
// packages, the indices and the initramfs's scratch space beside it: Debian's
// packages are about a fourth of what they unpack to.
func estimate(plan []uri) int64 {
	n := int64(512 << 20)
	for _, u := range plan {
		n += 5 * u.Size
	}
	return n
}

// tarWriter writes the tree's tar, hashes it, and has the kernel start writing
// it to disk at once, so that the flush at the end is short.
type tarWriter struct {
	f       *os.File
	size    int64
	started int64
	hash    interface {
		io.Writer
		Sum([]byte) []byte
	}
	err error
}

func (w *tarWriter) Write(p []byte) (int, error) {
	if w.hash == nil {
		w.hash = sha256.New()
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	if w.size-w.started >= 8<<20 {
		// an optimisation: where it is not known, Sync does all of it
		unix.SyncFileRange(int(w.f.Fd()), w.started, w.size-w.started, unix.SYNC_FILE_RANGE_WRITE)
		w.started = w.size
	}
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

func (w *tarWriter) digest() (d diskimage.Digest) {
	if w.hash != nil {
		w.hash.Sum(d[:0])
	}
	return d
}
