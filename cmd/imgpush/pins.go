package main

import (
	"context"
	"log/slog"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// pins keeps the images of open jobs in the cache.
type pins struct {
	kept    *blobs
	log     *slog.Logger
	changes chan jobs.Change
}

// maxChanges bounds the changes of jobs that are still to be looked at. The
// image of one that is dropped may be evicted, and is fetched again.
const maxChanges = 4096

func newPins(kept *blobs, log *slog.Logger) *pins {
	return &pins{kept, log, make(chan jobs.Change, maxChanges)}
}

// changed is netboot.Options.Changed.
func (p *pins) changed(c jobs.Change) {
	if c.From != "" && needsImage(&c.Job) {
		return // it was pinned when it was made
	}
	select {
	case p.changes <- c:
	default:
	}
}

func needsImage(j *jobs.Job) bool { return j.Open() && j.State != jobs.Committed }

// follow pins the images of the jobs that are there, then as they come and go,
// until ctx ends.
func (p *pins) follow(ctx context.Context, current []jobs.Job) {
	for i := range current {
		p.look(ctx, &current[i])
	}
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-p.changes:
			p.look(ctx, &c.Job)
		}
	}
}

func (p *pins) look(ctx context.Context, j *jobs.Job) {
	if !needsImage(j) {
		p.kept.Unpin(j.ID)
		return
	}
	digest, err := diskimage.ParseDigest(j.Spec.Image.Digest)
	if err == nil {
		err = p.kept.Pin(ctx, j.ID, j.Spec.Image.Repository, digest)
	}
	if err != nil && ctx.Err() == nil {
		p.log.Warn("cache: an image is not pinned", "job", j.ID, "error", err)
	}
}
