package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/build"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/buildcache"
)

// memory is what the cache knows of builds before this one, here and where
// --cache-from says (docs/buildcache.md).
type memory struct {
	c       *cli.Context
	talk    *ui.Talk
	dir     string
	recipe  *recipe.Recipe
	choices recipe.Combination
	program string // what runs: other bytes may make other images
	lock    diskimage.Digest
	limit   int64 // bytes of the cache

	opener *refs.Opener
	from   []source
	to     *source
}

// source is a shared cache.
type source struct {
	text   string
	repo   oci.Repository
	failed bool // it was warned of, and is not asked again
}

// remembered is what builds/KEY.json holds.
type remembered struct {
	Manifest v1.Descriptor `json:"manifest"`
	Record   build.Record  `json:"record"`
}

// remember reads the flags of the cache.
func remember(c *cli.Context, dir string, t *target) (*memory, error) {
	m := &memory{c: c, talk: ui.From(c), dir: dir, recipe: t.recipe, choices: t.combination}
	var err error
	if m.limit, err = ui.ParseBytes(c.String("cache-size")); err != nil {
		return nil, ui.Usagef(c, "--cache-size: %v", err)
	}
	if m.program, err = ownDigest(); err != nil {
		return nil, err
	}
	if m.opener, err = refs.New(c); err != nil {
		return nil, err
	}
	for _, text := range c.StringSlice("cache-from") {
		ref, err := refs.Parse(text)
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		s := source{text: text}
		if s.repo, err = m.opener.Repository(c.Context, ref); err != nil {
			m.talk.Sayf("warning: --cache-from %s: %v; going on without it", text, err)
			continue
		}
		m.from = append(m.from, s)
	}
	if text := c.String("cache-to"); text != "" {
		ref, err := refs.Parse(text)
		if err == nil {
			m.to = &source{text: text}
			m.to.repo, err = m.opener.Create(c.Context, ref)
		}
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	return m, nil
}

func (m *memory) close() error { return m.opener.Close() }

// ownDigest returns the SHA-256 of the program that runs.
func ownDigest() (string, error) {
	name, err := os.Executable()
	if err != nil {
		return "", err
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// fetch brings an entry from the first shared cache that has it. What goes wrong is
// a warning: the entry is made.
func (m *memory) fetch(ctx context.Context, entry string) {
	for i := range m.from {
		s := &m.from[i]
		if s.failed {
			continue
		}
		found, err := buildcache.Get(ctx, s.repo, entry, m.dir)
		if err != nil && ctx.Err() == nil {
			s.failed = true
			m.talk.Sayf("warning: --cache-from %s: %v; going on without it", s.text, err)
		}
		if found {
			return
		}
	}
}

// wholeKey returns the key of a build from that of its last step: what the
// artifact says besides the disk, and how it is compressed, count as well.
func (m *memory) wholeKey(keys []build.StepKey) diskimage.Digest {
	return build.Key(keys[len(keys)-1].Key, "pack",
		build.StepInput{Name: "recipe", Digest: diskimage.DigestOf(m.recipe.Canonical())},
		build.StepInput{Name: "lock", Digest: m.lock},
		build.StepInput{Name: "level " + m.c.String("level")},
		build.StepInput{Name: "imgbuild " + m.program})
}

// same returns the image that the same build led to before, if dir has all of it.
func (m *memory) same(o build.Options, dir *oci.Dir, ref oci.Ref) (*built, error) {
	if o.Refresh || wantsEvidence(m.c) || m.to != nil {
		return nil, nil
	}
	keys, known, err := build.Keys(m.c.Context, m.recipe, o)
	if err != nil || !known {
		return nil, err
	}
	var old remembered
	if !build.GetRecord(m.dir, "builds/"+m.wholeKey(keys).Hex(), &old) {
		return nil, nil
	}
	digest, err := diskimage.ParseDigest(old.Manifest.Digest.String())
	if err != nil {
		return nil, nil
	}
	a, err := dir.Open(m.c.Context, oci.Ref{Digest: digest})
	if err != nil {
		return nil, nil // another layout, or it was collected
	}
	if whole, err := dir.Complete(m.c.Context, a); err != nil || !whole {
		return nil, errors.Join(err, a.Close())
	}
	if err := dir.Publish(m.c.Context, old.Manifest, ref.Tag); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	m.explain(keys)
	m.talk.Sayf("nothing changed")
	old.Record.FromCache, old.Record.Steps, old.Record.PackageSteps = true, nil, nil
	return &built{artifact: a, manifest: old.Manifest, record: old.Record, same: a.Index().DataSize()}, nil
}

// keep writes down what a build led to, for the next one, shares what it used, and
// prunes. The image is made: what goes wrong is a warning.
func (m *memory) keep(b built, entries []string) {
	m.explain(b.record.Keys)
	last := lastBuild{m.choices.String(), b.record.Keys}
	err := errors.Join(
		build.PutRecord(m.dir, "builds/"+m.wholeKey(b.record.Keys).Hex(), remembered{b.manifest, b.record}),
		build.PutRecord(m.dir, m.last(m.choices), last),
		build.PutRecord(m.dir, m.last(nil), last))
	if err != nil {
		m.talk.Sayf("warning: cache: %v", err)
	}
	m.share(entries)
	if _, _, err := build.Prune(m.dir, build.PruneOptions{Keep: m.limit, Now: time.Now()}); err != nil {
		m.talk.Sayf("warning: cache: %v", err)
	}
}

// share gives entries to --cache-to.
func (m *memory) share(entries []string) {
	if m.to == nil {
		return
	}
	step := m.talk.Step("share")
	var sent int64
	var err error
	for _, e := range entries {
		var n int64
		n, err = buildcache.Put(m.c.Context, m.to.repo, e, m.dir)
		if sent += n; err != nil {
			break
		}
	}
	step.Note(ui.Bytes(sent) + " sent")
	step.End(nil)
	if err != nil {
		m.talk.Sayf("warning: --cache-to %s: %v", m.to.text, err)
	}
}

// lastBuild is what last/NAME.json holds.
type lastBuild struct {
	Choices string          `json:"choices,omitempty"` // of the matrix
	Keys    []build.StepKey `json:"keys"`
}

// explain says what made steps differ from the last build of this image. Where this
// combination of a matrix was not built before, it says what its choices decide.
func (m *memory) explain(keys []build.StepKey) {
	if !m.c.Bool("explain") {
		return
	}
	what := m.recipe.Name
	if len(m.choices) > 0 {
		what += " with " + m.choices.String()
	}
	var before lastBuild
	if !build.GetRecord(m.dir, m.last(m.choices), &before) {
		if !build.GetRecord(m.dir, m.last(nil), &before) {
			m.talk.Sayf("explain: no build of %s in this cache before", what)
			return
		}
		m.talk.Sayf("explain: no build of %s in this cache before; against that with %s:", what, before.Choices)
	}
	for _, line := range build.Changes(before.Keys, keys) {
		m.talk.Sayf("explain: %s", line)
	}
}

// last names the record of the last build with these choices; of none, of the last
// build whatever they were.
func (m *memory) last(choices recipe.Combination) string {
	name := "last/" + m.recipe.Name
	if len(choices) == 0 && len(m.choices) > 0 {
		return name + "-matrix"
	}
	name += "-" + m.recipe.Arch
	if m.recipe.Flavour != "" {
		name += "-" + m.recipe.Flavour
	}
	if len(choices) > 0 {
		name += "-" + diskimage.DigestOf([]byte(choices.String())).Hex()[:16]
	}
	return name
}
