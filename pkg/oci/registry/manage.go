package registry

import (
	"context"
	"errors"
	"io/fs"
	"net/http"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// deleteManifest deletes a tag, or a manifest with all its tags. A manifest
// that lost its tag stays, by its digest, until Collect.
func (r *Registry) deleteManifest(ctx context.Context, s *stream, _ *http.Request, pl place) error {
	p, err := r.open(ctx, pl.name, false)
	if err != nil {
		return err
	}
	defer r.release(p)
	p.content.Lock()
	defer p.content.Unlock()
	if pl.digest.IsZero() {
		err = p.dir.Remove(ctx, pl.ref)
	} else {
		err = p.deleteManifest(ctx, pl)
	}
	if errors.Is(err, oci.ErrNotFound) {
		return fail(http.StatusNotFound, codeManifestUnknown, "manifest %s: not in repository %s", pl.ref, p.name)
	}
	if err != nil {
		return err
	}
	return deleted(s)
}

func deleted(s *stream) error {
	s.Header().Set("Content-Length", "0")
	s.WriteHeader(http.StatusAccepted)
	return nil
}

// deleteManifest takes a manifest out of index.json and deletes its blob, by
// which it would still be there. What it refers to stays until Collect.
func (p *repo) deleteManifest(ctx context.Context, pl place) error {
	l, err := p.dir.Listing()
	if err != nil {
		return err
	}
	if holder, held := l.Holder(pl.digest); held {
		return fail(http.StatusConflict, codeDenied, "manifest %v is a part of image index %v: delete that first", pl.digest, holder)
	}
	if _, _, err := p.manifest(pl); errors.Is(err, oci.ErrCorrupt) || isUnknown(err) && listed(l, pl.digest) {
		err = nil // damaged or missing: even so it can go
	} else if err != nil {
		return err
	}
	if err := p.dir.RemoveManifest(ctx, pl.digest); err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	if _, needed, err := p.neededBy(pl.digest); needed || err != nil {
		return nil // somebody's layer as well, or nobody can tell
	}
	err = p.dir.RemoveBlob(pl.digest)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	return err
}

func isUnknown(err error) bool {
	f, ok := errors.AsType[*failure](err)
	return ok && f.status == http.StatusNotFound
}

func listed(l *oci.Listing, digest diskimage.Digest) bool {
	_, ok := l.Manifest(digest)
	return ok
}

// deleteBlob deletes a blob that no manifest needs.
func (r *Registry) deleteBlob(ctx context.Context, s *stream, _ *http.Request, pl place) error {
	p, err := r.open(ctx, pl.name, false)
	if err != nil {
		return err
	}
	defer r.release(p)
	p.content.Lock()
	defer p.content.Unlock()
	f, _, err := p.openBlob(pl.digest)
	if err != nil {
		return err
	}
	_ = f.Close() // it is only there
	m, needed, err := p.neededBy(pl.digest)
	if err != nil {
		return err
	}
	if needed {
		return fail(http.StatusConflict, codeDenied, "blob %v is needed by manifest %v: delete that first", pl.digest, m)
	}
	if err := p.dir.RemoveBlob(pl.digest); err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	return deleted(s)
}
