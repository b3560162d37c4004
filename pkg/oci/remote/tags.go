package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
)

// maxTags bounds what Tags returns.
const maxTags = 100_000

// Tags returns the tags of the repository, sorted; at most 100,000, else it is an error.
func (r *Repo) Tags(ctx context.Context) ([]string, error) {
	var tags []string
	a := ask{method: http.MethodGet, path: "tags/list", query: url.Values{"n": {"1000"}}}
	for range maxTags { // pages
		var ans *answer
		var b []byte
		err := r.c.retry(ctx, func() (err error) {
			ans, b, err = r.home.small(ctx, a, maxManifest, http.StatusOK)
			return err
		})
		if err != nil {
			return nil, err
		}
		var doc struct {
			Tags []string `json:"tags"`
		}
		if err := json.Unmarshal(b, &doc); err != nil {
			return nil, ans.fail(&permanent{err})
		}
		if tags = append(tags, doc.Tags...); len(tags) > maxTags {
			return nil, ans.fail(&permanent{fmt.Errorf("more than %d tags", maxTags)})
		}
		next, err := nextPage(ans)
		if err != nil {
			return nil, err
		}
		if next == nil || len(doc.Tags) == 0 {
			break
		}
		a.query, a.url = nil, next
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

// Delete deletes a tag, or a manifest by its digest. Many registries do not
// allow it.
func (r *Repo) Delete(ctx context.Context, reference string) error {
	a := ask{method: http.MethodDelete, path: "manifests/" + reference, scopes: []string{r.home.scope("pull,push,delete")}}
	return r.c.retry(ctx, func() error {
		_, _, err := r.home.small(ctx, a, maxErrorBody, http.StatusAccepted, http.StatusOK, http.StatusNoContent)
		return err
	})
}

func bytesBody(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}
