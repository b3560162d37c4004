package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/trust"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/cache"
)

// blobs is the blob cache of a site's server, and the repositories behind it.
type blobs struct {
	*cache.Cache
	src    *source
	server atomic.Pointer[netboot.Server] // nil: nobody is served yet

	mu     sync.Mutex
	opener *refs.Opener
	repos  map[string]oci.Repository // by name below /v2/
}

// openBlobs opens STATE/cache.
func openBlobs(now *site.Site, src *source, log *slog.Logger) (_ *blobs, err error) {
	b := &blobs{src: src, opener: src.way.Opener(), repos: map[string]oci.Repository{}}
	b.Cache, err = cache.Open(cache.Options{
		Dir: filepath.Join(now.State, "cache"), MaxBytes: int64(now.Cache.Size), Upstream: b.upstream, Allow: b.allow,
		Notify: func(err error) { log.Warn("cache", "error", err) },
	})
	if err != nil {
		return nil, errors.Join(ui.Fail(ui.ExitTarget, err, ""), b.opener.Close())
	}
	return b, nil
}

// pinEvery is how often the cache looks which jobs are open.
const pinEvery = 10 * time.Second

// pin keeps the images of open jobs in the cache, until ctx ends.
func (b *blobs) pin(ctx context.Context, s *netboot.Server) {
	pinned := map[string]bool{}
	tick := time.NewTicker(pinEvery)
	defer tick.Stop()
	for {
		open := map[string]bool{}
		for _, j := range s.Store().Current() {
			if j.Open() {
				b.pinJob(ctx, j.Spec.Image, open, pinned)
			}
		}
		for image := range pinned {
			if !open[image] {
				b.Unpin(image)
				delete(pinned, image)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// pinJob pins an image that is not pinned. One whose manifest cannot be had now
// is tried again.
func (b *blobs) pinJob(ctx context.Context, image wire.Image, open, pinned map[string]bool) {
	key := image.Repository + "@" + image.Digest
	if open[key] = true; pinned[key] {
		return
	}
	if d, err := diskimage.ParseDigest(image.Digest); err == nil {
		pinned[key] = b.Pin(ctx, key, image.Repository, d) == nil
	}
}

// Close comes after the last request.
func (b *blobs) Close() error { return errors.Join(b.Cache.Close(), b.opener.Close()) }

func (b *blobs) allow(r *http.Request, name string) bool {
	s := b.server.Load()
	return s != nil && s.MayRead(r, name)
}

// maxJobs bounds how many jobs are looked through for the place of a name.
const maxJobs = 10_000

// upstream opens the place that has a name below /v2/: one that was resolved, or
// that a job of before the last start names.
func (b *blobs) upstream(name string) (cache.Upstream, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.repos[name]; r != nil {
		return r, nil
	}
	place, ok := b.src.place(name)
	if s := b.server.Load(); !ok && s != nil {
		all, err := s.Store().Jobs(maxJobs, time.Now())
		if err != nil {
			return nil, err
		}
		for _, j := range all {
			if j.Spec.Image.Repository == name {
				place, ok = j.Spec.Image.Reference, true
				break
			}
		}
	}
	if !ok {
		return nil, fmt.Errorf("repository %s: no job has an image there: %w", name, oci.ErrNotFound)
	}
	ref, err := refs.Parse(place)
	if err != nil {
		return nil, err
	}
	r, err := b.opener.Repository(context.Background(), ref)
	if err != nil {
		return nil, err
	}
	b.repos[name] = r
	return r, nil
}

// find is for cache.StageHandler.
func (b *blobs) find(_ context.Context, text string) (name, reference string, err error) {
	ref, err := refs.Parse(text)
	if err == nil {
		err = refs.Named(ref)
	}
	if err != nil {
		return "", "", err
	}
	place, err := trust.Place(ref)
	if err != nil {
		return "", "", err
	}
	reference = ref.Tag
	if !ref.Digest.IsZero() {
		reference = ref.Digest.String()
	}
	return b.src.name(place), reference, nil
}

func stageCommand() *cli.Command {
	return &cli.Command{
		Name:      "stage",
		Usage:     "fetch images into a site's cache ahead of their jobs",
		ArgsUsage: "[REF…]",
		Description: `The server fetches each image whole, with its signatures, and keeps it until --remove.
What is there already is not fetched. Without REF, lists what is staged.

  imgpush stage registry.example/os/debian-server:2026.11.2
  imgpush stage --remove registry.example/os/debian-server:2026.11.1`,
		Flags:  adminFlags(&cli.BoolFlag{Name: "remove", Usage: "let go of them: their room may be used"}),
		Action: runStage,
	}
}

func runStage(c *cli.Context) error {
	a, err := adminOf(c)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: bearer{a.http.Transport, a.token}, CheckRedirect: a.http.CheckRedirect}
	url := a.base + "/admin/staged"
	list := []cache.Staged{}
	switch {
	case c.NArg() == 0 && c.Bool("remove"):
		return ui.Usagef(c, "stage --remove needs a REF")
	case c.NArg() == 0:
		if list, err = cache.StagedAt(c.Context, client, url); err != nil {
			return a.unstaged(err)
		}
	}
	for _, ref := range c.Args().Slice() {
		var s *cache.Staged
		if c.Bool("remove") {
			s, err = cache.UnstageAt(c.Context, client, url, ref)
		} else {
			step := ui.From(c).Step("stage " + ref)
			s, err = cache.StageAt(c.Context, client, url, ref, step.Set)
			step.End(err)
		}
		if err != nil {
			return a.unstaged(fmt.Errorf("%s: %w", ref, err))
		}
		if s != nil {
			list = append(list, *s)
		}
	}
	return ui.From(c).Result(map[string]any{"staged": list}, func(w io.Writer) error {
		for _, s := range list {
			if _, err := fmt.Fprintf(w, "%s:%s %v %s\n", s.Repository, s.Reference, s.Digest, ui.Bytes(s.Bytes)); err != nil {
				return err
			}
		}
		return nil
	})
}

// unstaged gives an error its exit code.
func (a *admin) unstaged(err error) error {
	e, ok := errors.AsType[*cache.StagedError](err)
	switch {
	case !ok:
		return ui.Fail(ui.ExitSource, fmt.Errorf("server %s: %w", a.where, err), "is imgpush serve running? --server says where")
	case e.Code == "tooLarge":
		return ui.Fail(ui.ExitTarget, err, "imgpush stage lists what is staged; --remove lets go; cache.size in SITE.yaml is the bound")
	case e.Code == "notFound":
		return ui.Fail(ui.ExitSource, err, "")
	}
	return ui.Fail(ui.ExitOther, err, "")
}

// bearer sends a token with each request.
type bearer struct {
	http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.RoundTripper.RoundTrip(r)
}
