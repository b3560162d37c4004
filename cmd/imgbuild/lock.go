package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/build"
	"github.com/imgpipe/imgpipe/pkg/diskimage/lock"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/buildcache"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

func lockCommand() *cli.Command {
	return &cli.Command{
		Name:      "lock",
		Usage:     "write down what a recipe's names lead to today",
		ArgsUsage: "RECIPE",
		Description: `Writes RECIPE.lock.json: every package with version and SHA-256, the files beside the
recipe, and the tools. build --locked then takes in that and nothing else, and gives the
same digest on any machine. With a lock that is there, what it has stays; what is new in
the recipe is added.

  imgbuild lock recipes/debian-server.yaml
  imgbuild lock recipes/debian-server.yaml --update openssl --update openssh-server
  imgbuild lock recipes/debian-server.yaml --diff
  imgbuild lock recipes/debian-server.yaml --mirror-to registry.example/packages`,
		Flags: append([]cli.Flag{
			setFlag, onlyFlag, cacheFlag,
			&cli.StringSliceFlag{Name: "update", Usage: "let `PACKAGE` move, and what it needs"},
			&cli.BoolFlag{Name: "upgrade", Usage: "let everything move"},
			&cli.BoolFlag{Name: "diff", Usage: "say what would change (with --upgrade, unless --update is given), and write nothing"},
			&cli.StringFlag{Name: "mirror-to", Usage: "push the packages to `REF`, a repository or oci:DIR, and name it in the lock"},
			&cli.StringFlag{Name: "scratch", Usage: "`DIR` for the package manager's root", DefaultText: "memory where there is enough"},
		}, refs.Flags()...),
		Action: runLock,
	}
}

// lockName is where the lock of a combination of a recipe lies.
func lockName(path string, x recipe.Combination) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + inFileName(x) + ".lock.json"
}

// readLock reads the lock of a recipe; nil where there is none.
func readLock(name string) (*lock.File, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, lock.MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > lock.MaxSize {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, lock.MaxSize)
	}
	l, err := lock.Parse(b)
	if err != nil {
		return nil, ui.Fail(ui.ExitRecipe, fmt.Errorf("%s: %w", name, err), "imgbuild lock writes it anew where it is gone")
	}
	return l, nil
}

// openedLock is a lock with the places that have its packages.
type openedLock struct {
	file   *lock.File
	repos  []oci.Repository
	client *http.Client // of what no mirror has; it must not wait for ever
	silent sync.Map     // hosts that it waited for in vain: hundreds of packages would wait as long each
}

// obeyedLock reads the lock that build --locked obeys.
func obeyedLock(c *cli.Context, x recipe.Combination, opener *refs.Opener) (*openedLock, error) {
	path := c.Args().First()
	name := lockName(path, x)
	f, err := readLock(name)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, ui.Fail(ui.ExitRecipe, fmt.Errorf("--locked: there is no %s", name), "imgbuild lock "+path)
	}
	return openMirrors(c, name, f, opener)
}

// openMirrors opens the places that have a lock's packages, of no lock none. One that
// cannot be opened is a warning.
func openMirrors(c *cli.Context, name string, f *lock.File, opener *refs.Opener) (*openedLock, error) {
	l := &openedLock{file: f, client: &http.Client{Transport: remote.NewTransport(remote.Options{})}}
	if f == nil {
		return l, nil
	}
	for _, text := range f.Mirrors {
		ref, err := refs.Parse(text)
		if err != nil {
			return nil, err
		}
		repo, err := opener.Repository(c.Context, ref)
		if err != nil {
			ui.From(c).Sayf("warning: %s: mirror %s: %v; going on without it", name, text, err)
			continue
		}
		l.repos = append(l.repos, repo)
	}
	return l, nil
}

// fetch opens a package at the first mirror that has it, else at its URL.
func (l *openedLock) fetch(ctx context.Context, p packages.Locked) (io.ReadCloser, error) {
	var errs []error
	for _, repo := range l.repos {
		d := v1.Descriptor{MediaType: buildcache.PackageType, Size: p.Size, Digest: v1.Hash{Algorithm: "sha256", Hex: p.Digest.Hex()}}
		body, err := repo.Blob(ctx, d, 0, p.Size)
		if err == nil {
			return body, nil
		}
		errs = append(errs, err)
	}
	if !strings.HasPrefix(p.URL, "http") {
		return nil, errors.Join(append(errs, errors.New("no mirror has it"))...)
	}
	body, err := l.download(ctx, p.URL)
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	return body, nil
}

// download opens the package at its URL.
func (l *openedLock) download(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if err, silent := l.silent.Load(req.URL.Host); silent {
		return nil, fmt.Errorf("%s is not asked: %w", url, err.(error))
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return nil, l.heard(req, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("%s: %s", url, resp.Status), resp.Body.Close())
	}
	return &downloaded{resp.Body, l, req}, nil
}

// heard remembers the host of a request that it did not answer.
func (l *openedLock) heard(req *http.Request, err error) error {
	if errors.Is(err, remote.ErrStalled) {
		l.silent.LoadOrStore(req.URL.Host, err)
	}
	return err
}

// downloaded is a body whose errors name its URL.
type downloaded struct {
	io.ReadCloser
	lock *openedLock
	req  *http.Request
}

func (d *downloaded) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = d.lock.heard(d.req, fmt.Errorf("%s: %w", d.req.URL, err))
	}
	return n, err
}

func runLock(c *cli.Context) (err error) {
	r, x, err := oneRecipe(c)
	if err != nil {
		return err
	}
	path := c.Args().First()
	name := lockName(path, x)
	talk := ui.From(c)
	old, err := readLock(name)
	if err != nil {
		return err
	}
	if old == nil && (len(c.StringSlice("update")) > 0 || c.Bool("diff")) {
		return ui.Fail(ui.ExitUsage, fmt.Errorf("there is no %s yet", name), "imgbuild lock "+path)
	}
	cache, err := cacheDir(c)
	if err != nil {
		return err
	}
	opener, err := refs.New(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opener.Close()) }()
	o := build.Options{
		CacheDir: cache, WorkDir: c.String("scratch"), Env: proxies(), Progress: (&buildSteps{talk: talk}).event, Now: time.Now, Bases: bases(c),
	}
	mirrors, err := openMirrors(c, name, old, opener)
	if err != nil {
		return err
	}
	o.FetchPackage = mirrors.fetch
	how := build.ResolveOptions{Previous: old, Update: c.StringSlice("update"), Upgrade: c.Bool("upgrade")}
	if c.Bool("diff") && len(how.Update) == 0 {
		how.Upgrade = true
	}
	f, err := build.Resolve(c.Context, r, o, how)
	if err != nil {
		return recipeError(baseError(err))
	}
	var changes []string
	if old != nil {
		changes = lock.Diff(old, f)
	}
	if c.Bool("diff") {
		return lockResult(talk, name, f, changes, false)
	}
	if ref := c.String("mirror-to"); ref != "" {
		if err := packages.Obtain(c.Context, cache, f.Packages, mirrors.fetch); err != nil { // older builds may have left only the tree
			return baseError(fmt.Errorf("--mirror-to %s: %w", ref, err))
		}
		if err := mirrorPackages(c, opener, cache, ref, f); err != nil {
			return err
		}
	}
	if n := unmirrored(old, f); n > 0 && !c.IsSet("mirror-to") {
		talk.Sayf("warning: %d packages that are new in the lock may be missing at its mirrors; --mirror-to %s sends them", n, f.Mirrors[0])
	}
	if err := build.WriteFile(name, f.Marshal()); err != nil {
		return ui.Fail(ui.ExitTarget, err, "")
	}
	return lockResult(talk, name, f, changes, true)
}

// unmirrored counts the packages that the mirrors of a lock were not given.
func unmirrored(old, f *lock.File) (n int) {
	if old == nil || len(f.Mirrors) == 0 {
		return 0
	}
	had := map[diskimage.Digest]bool{}
	for _, p := range old.Packages {
		had[p.Digest] = true
	}
	for _, p := range f.Packages {
		if !had[p.Digest] {
			n++
		}
	}
	return n
}

// lockResult says what a lock has, and what changed.
func lockResult(talk *ui.Talk, name string, f *lock.File, changes []string, wrote bool) error {
	result := struct {
		File     string   `json:"file"`
		Written  bool     `json:"written"`
		Packages int      `json:"packages"`
		Changes  []string `json:"changes"`
	}{name, wrote, len(f.Packages), append([]string{}, changes...)}
	return talk.Result(result, func(w io.Writer) error {
		for _, line := range changes {
			fmt.Fprintln(w, line) //nolint:errcheck // the last line says it
		}
		what := "would change"
		if wrote {
			what = "changed"
		}
		_, err := fmt.Fprintf(w, "%s: %d packages, %d lines %s\n", name, len(f.Packages), len(changes), what)
		return err
	})
}

// mirrorPackages pushes every package of a lock to ref, and names it in the lock.
func mirrorPackages(c *cli.Context, opener *refs.Opener, cache, text string, f *lock.File) error {
	ref, err := refs.Parse(text)
	if err != nil {
		return err
	}
	repo, err := opener.Create(c.Context, ref)
	if err != nil {
		return err
	}
	step := ui.From(c).Step("mirror").Counts("sent")
	files := make([]buildcache.Package, len(f.Packages))
	for i, p := range f.Packages {
		files[i] = buildcache.Package{Name: p.Name + "_" + p.Version + "_" + p.Arch + ".deb", Size: p.Size, Digest: p.Digest, Path: packages.CachedPath(cache, p.Digest)}
	}
	tag := ref.Tag
	if tag == "" {
		tag = "packages-" + f.Digest().Hex()
	}
	sent, err := buildcache.PutPackages(c.Context, repo, tag, files, step.Set)
	step.Note(ui.Bytes(sent) + " sent")
	step.End(err)
	if err != nil {
		return fmt.Errorf("--mirror-to %s: %w", text, err)
	}
	for _, m := range f.Mirrors {
		if m == text {
			return nil
		}
	}
	f.Mirrors = append(f.Mirrors, text)
	return nil
}
