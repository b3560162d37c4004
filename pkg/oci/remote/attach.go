package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

// PushManifest stores a manifest or an index of at most 4 MiB, under a tag, or
// under its digest when reference is that or "". One with a subject can be found
// by Referrers when it returns: by the registry's referrers API where it has one
// (its answer says so), else because the index under the tag sha256-HEX lists it.
//
// That index is read, changed and written back, and no registry does this as one
// step. So it is looked at again three times, after pauses that grow with the
// time the registry takes, and written anew until it holds our entry and all
// others that were ever seen in it. An entry can still be lost, if a client
// writes an index that it read before ours was there, after our last look: 0.7
// to 1.4 s with the default Backoff, and at least 3 of the slowest reads and
// writes, after our last write. Attaches through one Client do not race.
func (r *Repo) PushManifest(ctx context.Context, reference string, mediaType types.MediaType, body []byte) (v1.Descriptor, error) {
	if len(body) > maxManifest {
		return v1.Descriptor{}, fmt.Errorf("manifest of %d bytes, at most %d are allowed", len(body), maxManifest)
	}
	doc, err := parseDocument(body, string(mediaType))
	if err != nil {
		return v1.Descriptor{}, err
	}
	if mediaType == "" {
		mediaType = doc.MediaType
	}
	desc, err := describe(body, string(mediaType))
	if err != nil {
		return v1.Descriptor{}, err
	}
	if digest, err := diskimage.ParseDigest(reference); err == nil && hashOf(digest) != desc.Digest {
		return desc, fmt.Errorf("manifest %v: pushed as %v", desc.Digest, digest)
	} else if reference == "" {
		reference = desc.Digest.String()
	} else if err != nil {
		if err := names.CheckTag(reference); err != nil {
			return desc, fmt.Errorf("%v: %w", r, err)
		}
	}
	var ans *answer
	err = r.c.retry(ctx, func() (err error) {
		ans, err = r.put(ctx, reference, string(mediaType), body, "")
		return err
	})
	if err != nil {
		return desc, err
	}
	if doc.Subject == nil || ans.Header.Get("OCI-Subject") != "" { // distribution-spec 1.1, "Pushing Manifests with Subject"
		return desc, nil
	}
	subject, err := diskimage.ParseDigest(doc.Subject.Digest.String())
	if err != nil {
		return desc, fmt.Errorf("subject: %w", err)
	}
	return desc, r.attach(ctx, subject, desc)
}

// put writes a manifest, once, with If-Match where etag is given.
func (r *Repo) put(ctx context.Context, reference, mediaType string, body []byte, etag string) (*answer, error) {
	a := ask{method: http.MethodPut, path: "manifests/" + reference, scopes: []string{r.home.scope("pull,push")},
		header: http.Header{"Content-Type": {mediaType}}, length: int64(len(body)), body: bytesBody(body)}
	if etag != "" {
		a.header.Set("If-Match", etag)
	}
	ans, _, err := r.home.small(ctx, a, maxErrorBody, http.StatusCreated, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	if err != nil {
		return nil, err
	}
	want := diskimage.DigestOf(body).String()
	if got := ans.Header.Get("Docker-Content-Digest"); got != "" && got != want {
		return nil, ans.fail(fmt.Errorf("stored %v as %v", want, clean(got, "")))
	}
	return ans, nil
}

// maxRewrites bounds how often one attach writes the index anew.
const maxRewrites = 64

// attaches serialises the changes of one client to one index.
type attaches struct {
	mu sync.Mutex
	m  map[string]*attaching
}

// attaching is one index that attaches of this client change.
type attaching struct {
	turn  chan struct{}
	users int
	slow  time.Duration // the slowest reading and writing; the turn guards it

	mu   sync.Mutex
	seen entries // that must not vanish: ours, and what was read
}

func (a *attaches) enter(key string) *attaching {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil {
		a.m = make(map[string]*attaching)
	}
	t := a.m[key]
	if t == nil {
		t = &attaching{turn: make(chan struct{}, 1), seen: entries{}}
		a.m[key] = t
	}
	t.users++
	return t
}

func (a *attaches) leave(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.m[key]; t != nil {
		if t.users--; t.users == 0 {
			delete(a.m, key)
		}
	}
}

// referrersTag is distribution-spec 1.1, "Referrers Tag Schema".
func referrersTag(d diskimage.Digest) string { return "sha256-" + d.Hex() }

// attach lists desc in the index of subject's referrers.
func (r *Repo) attach(ctx context.Context, subject diskimage.Digest, desc v1.Descriptor) error {
	key := r.home.String() + "@" + subject.String()
	t := r.c.attaching.enter(key)
	defer r.c.attaching.leave(key)
	raw, err := json.Marshal(desc)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.seen[desc.Digest] = raw // whoever writes next writes this, too
	t.mu.Unlock()
	rewrites, slow := 0, time.Duration(0)
	for look := 0; look <= 3; look++ {
		if look > 0 {
			pause := max(r.c.o.Backoff/2<<look, slow<<(look-1))
			if err := sleep(ctx, jitter(pause)); err != nil {
				return err
			}
		}
		var wrote bool
		wrote, slow, err = r.settle(ctx, t, subject)
		if err != nil {
			return fmt.Errorf("list %v among the referrers of %v: %w", desc.Digest, subject, err)
		}
		if wrote && look > 0 {
			if rewrites++; rewrites > maxRewrites {
				return fmt.Errorf("list %v among the referrers of %v: others undo it", desc.Digest, subject)
			}
			look = 0
		}
	}
	return nil
}

// settle reads the index and writes it anew if anything that was seen is not in
// it. It returns the slowest time that this took so far.
func (r *Repo) settle(ctx context.Context, t *attaching, subject diskimage.Digest) (wrote bool, slow time.Duration, err error) {
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return false, 0, context.Cause(ctx)
	}
	for again := (tries{c: r.c}); ; {
		begin := time.Now()
		wrote, err := r.rewrite(ctx, t, subject)
		t.slow = max(t.slow, time.Since(begin))
		if err == nil {
			return wrote, t.slow, nil
		}
		// What was read may be out of date by the time of the next try: it begins
		// with reading.
		if e, ok := errors.AsType[*Error](err); ok && e.Status == http.StatusPreconditionFailed {
			err = again.pause(ctx, err)
		} else {
			err = again.again(ctx, err)
		}
		if err != nil {
			return false, t.slow, err
		}
	}
}

// rewrite reads the index once, and writes it once if it lacks anything.
func (r *Repo) rewrite(ctx context.Context, t *attaching, subject diskimage.Digest) (wrote bool, err error) {
	x, etag, err := r.referrersIndex(ctx, subject)
	if err != nil {
		return false, err
	}
	t.mu.Lock()
	changed := x.add(t.seen)
	t.mu.Unlock()
	if !changed {
		return false, nil
	}
	b, err := x.bytes()
	if err != nil {
		return false, err
	}
	_, err = r.put(ctx, referrersTag(subject), string(types.OCIImageIndex), b, etag)
	return true, err
}

// entries are the members of an index's manifests by digest, as they were read.
type entries map[v1.Hash]json.RawMessage

// index is an image index whose fields, known or not, are kept as they were.
type index struct {
	fields    map[string]json.RawMessage
	manifests []json.RawMessage
	has       map[v1.Hash]bool
}

// maxReferrers bounds the listings that are read and written.
const maxReferrers = 1000

// referrersIndex reads the index of a subject's referrers, empty if there is none.
func (r *Repo) referrersIndex(ctx context.Context, subject diskimage.Digest) (*index, string, error) {
	b, _, etag, err := r.home.manifest(ctx, referrersTag(subject), diskimage.Digest{})
	if IsNotFound(err) {
		return &index{fields: map[string]json.RawMessage{"schemaVersion": json.RawMessage("2"),
			"mediaType": json.RawMessage(`"` + string(types.OCIImageIndex) + `"`)}, has: map[v1.Hash]bool{}}, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	x, err := parseIndex(b)
	if err != nil {
		return nil, "", fmt.Errorf("%v:%s: %w", r, referrersTag(subject), err)
	}
	return x, etag, nil
}

func parseIndex(b []byte) (*index, error) {
	x := &index{has: make(map[v1.Hash]bool)}
	if err := json.Unmarshal(b, &x.fields); err != nil {
		return nil, err
	}
	if x.fields["manifests"] == nil || x.fields["config"] != nil || x.fields["layers"] != nil {
		return nil, errors.New("not an image index")
	}
	if err := json.Unmarshal(x.fields["manifests"], &x.manifests); err != nil {
		return nil, err
	}
	if len(x.manifests) > maxReferrers {
		return nil, fmt.Errorf("lists %d manifests, at most %d are allowed", len(x.manifests), maxReferrers)
	}
	for _, m := range x.manifests {
		var d struct{ Digest v1.Hash }
		if err := json.Unmarshal(m, &d); err != nil {
			return nil, err
		}
		x.has[d.Digest] = true
	}
	return x, nil
}

// add puts in what is missing of seen, and into seen what it lacks. It reports
// whether the index changed.
func (x *index) add(seen entries) (changed bool) {
	for _, m := range x.manifests {
		var d struct{ Digest v1.Hash }
		if json.Unmarshal(m, &d) == nil && seen[d.Digest] == nil {
			seen[d.Digest] = m
		}
	}
	var missing []string
	for h := range seen {
		if !x.has[h] {
			missing = append(missing, h.String())
		}
	}
	slices.Sort(missing)
	for _, s := range missing {
		h, _ := v1.NewHash(s)
		x.manifests = append(x.manifests, seen[h])
		x.has[h] = true
	}
	return len(missing) > 0
}

func (x *index) bytes() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	list, err := json.Marshal(x.manifests)
	if err != nil {
		return nil, err
	}
	x.fields["manifests"] = list
	if err := enc.Encode(x.fields); err != nil {
		return nil, err
	}
	if out.Len() > maxManifest {
		return nil, fmt.Errorf("the list of referrers would have %d bytes, at most %d are allowed", out.Len(), maxManifest)
	}
	return bytes.TrimSpace(out.Bytes()), nil
}
