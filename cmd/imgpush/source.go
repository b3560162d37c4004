package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/trust"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// source is where a server's images and environments come from.
type source struct {
	way   *refs.Way
	state string // directory

	mu    sync.Mutex
	names map[string]string // places by the names that they have below /v2/
}

// sourceError tells an error of images from one of trust, for who asked.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }
func (e sourceError) AdminCode() wire.Code {
	if ui.Code(e.error) == ui.ExitTrust {
		return netboot.CodeTrust
	}
	return netboot.CodeImage
}

// believed pins what a reference names, once it is settled that it is trusted
// by its own signatures: an agent sees no index.
func (s *source) believed(ctx context.Context, t site.Trust, text, arch string, then func(*oci.Pin, oci.Repository) error) (err error) {
	ref, err := refs.Parse(text)
	if err == nil {
		err = refs.Named(ref)
	}
	if err != nil {
		return err
	}
	if arch != "" {
		ref.Platform = "linux/" + arch
	}
	opener := s.way.Opener()
	defer func() { err = errors.Join(err, opener.Close()) }()
	repo, err := opener.Repository(ctx, ref)
	if err != nil {
		return err
	}
	pin, err := oci.Resolve(ctx, repo, ref)
	if err != nil {
		return refs.Fail(err)
	}
	if !t.Insecure {
		whom, err := whom(t)
		if err != nil {
			return err
		}
		if _, err := trust.Verify(ctx, whom, repo, ref, pin.Digest()); err != nil {
			return err
		}
	}
	return then(pin, repo)
}

// whom reads the policy or the keys of a site.
func whom(t site.Trust) (*sign.Trust, error) {
	if t.Policy != "" {
		return trust.Policy("policy", t.Policy)
	}
	return trust.Keys("keys", t.Keys)
}

// resolve is netboot.Options.Resolve.
func (s *source) resolve(ctx context.Context, t site.Trust, text, arch string) (out wire.Image, err error) {
	err = s.believed(ctx, t, text, arch, func(pin *oci.Pin, _ oci.Repository) error {
		place, err := trust.Place(pin.Ref)
		if err != nil {
			return err
		}
		out = wire.Image{Repository: s.name(place), Digest: pin.Digest().String(), Reference: place}
		return nil
	})
	if err != nil {
		return out, sourceError{err}
	}
	return out, nil
}

// name returns the repository below /v2/ for a place.
func (s *source) name(place string) string {
	name := repositoryName(place)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil {
		s.names = map[string]string{}
	}
	s.names[name] = place
	return name
}

// place is the reverse of name.
func (s *source) place(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.names[name]
	return p, ok
}

// environment fetches and verifies what machines boot. Where the place cannot be
// reached, what was verified before under the same reference is taken: fresh
// tells.
func (s *source) environment(ctx context.Context, now *site.Site) (env *netboot.Environment, fresh bool, err error) {
	err = s.believed(ctx, now.Environment.Trust, now.Environment.Ref, "", func(pin *oci.Pin, repo oci.Repository) error {
		e, err := oci.OpenEnvironment(ctx, repo, pin.Image)
		if err != nil {
			return refs.Fail(fmt.Errorf("%s: %w", now.Environment.Ref, err))
		}
		described := netboot.Environment{Name: e.Config().Name, Version: e.Config().Version, Digest: e.Digest().String(),
			Architecture: e.Config().Architecture, Cmdline: e.Config().Cmdline, Files: map[string]netboot.File{}}
		for _, f := range e.Files() {
			described.Files[f.Title] = netboot.File{Digest: f.Digest.String(), Size: f.Size}
		}
		env, err = netboot.KeepEnvironment(s.state, now.Environment.Ref, described, func(title string) (io.ReadCloser, error) { return e.Open(ctx, title) })
		return refs.Fail(err)
	})
	if err == nil {
		return env, true, nil
	}
	if ui.Code(err) == ui.ExitSource {
		if kept, kerr := netboot.KeptEnvironment(s.state, now.Environment.Ref); kerr == nil {
			return kept, false, err
		}
	}
	return nil, false, err
}

// environmentTime bounds fetching an environment, environmentAgain is when
// fetching is tried again.
const (
	environmentTime  = 10 * time.Minute
	environmentAgain = time.Minute
)

// repositoryName returns the name below /v2/ for a place, as policies name it. A
// registry's keeps its names, so that logs can be read.
func repositoryName(place string) string {
	if dir, ok := strings.CutPrefix(place, "oci:"); ok {
		sum := sha256.Sum256([]byte(dir))
		return "layout/" + hex.EncodeToString(sum[:8])
	}
	host, name, _ := strings.Cut(place, "/")
	host = strings.ReplaceAll(strings.ToLower(host), ":", "_")
	if strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" || strings.HasPrefix(host, "layout") { // IPv6
		sum := sha256.Sum256([]byte(host))
		host = "host-" + hex.EncodeToString(sum[:8])
	}
	return host + "/" + name
}
