package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/pkg/oci"
)

// The calls of StageHandler, as JSON. A POST and a DELETE carry an Order; a POST
// is answered with a line of Progress at least every second, the last of which
// has Staged or Error; GET lists Staged.
type (
	// Order names an image as a person does: HOST/NAME:TAG, or with a digest.
	Order struct {
		Ref string `json:"ref"`
	}
	// Progress is how far staging got, in bytes.
	Progress struct {
		Done   int64   `json:"done"`
		Total  int64   `json:"total"`
		Staged *Staged `json:"staged,omitempty"`
		Error  string  `json:"error,omitempty"`
		Code   string  `json:"code,omitempty"` // tooLarge, notFound
	}
)

const (
	maxOrder    = 4 << 10 // bytes
	maxProgress = 64 << 10
	maxLists    = 16 << 20
	tellEvery   = 500 * time.Millisecond
)

// StageHandler is the part of an admin API that stages images. Who reaches it
// may do so: authorise before. find turns a reference into a repository's name
// below /v2/ and a tag or digest. Staging ends with the request.
func (c *Cache) StageHandler(find func(ctx context.Context, ref string) (name, reference string, err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			list, err := c.Staged()
			if err != nil {
				say(w, http.StatusInternalServerError, Progress{Error: err.Error()})
				return
			}
			say(w, http.StatusOK, list)
			return
		}
		if req.Method != http.MethodPost && req.Method != http.MethodDelete {
			w.Header().Set("Allow", "GET, POST, DELETE")
			say(w, http.StatusMethodNotAllowed, Progress{Error: "want GET, POST or DELETE"})
			return
		}
		var order Order
		if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxOrder)).Decode(&order); err != nil {
			say(w, http.StatusBadRequest, Progress{Error: err.Error()})
			return
		}
		name, reference, err := find(req.Context(), order.Ref)
		switch {
		case err != nil:
			say(w, http.StatusBadRequest, Progress{Error: err.Error()})
		case req.Method == http.MethodPost:
			c.stageAndTell(req.Context(), w, name, reference)
		default:
			c.unstageAndTell(w, name, reference)
		}
	})
}

func say(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // plain structs always encode
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // who asked is told, or has gone
}

// stageAndTell tells how far it is from a goroutine of its own, so that a slow
// reader delays nothing.
func (c *Cache) stageAndTell(ctx context.Context, w http.ResponseWriter, name, reference string) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	var mu sync.Mutex
	var now Progress
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(tellEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				mu.Lock()
				p := now
				mu.Unlock()
				line(w, p)
			}
		}
	})
	staged, err := c.Stage(ctx, name, reference, func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		now.Done, now.Total = done, total
	})
	close(done)
	wg.Wait()
	now.Staged = staged
	if err != nil {
		now.Error, now.Code = err.Error(), codeOf(err)
	}
	line(w, now)
}

func line(w http.ResponseWriter, p Progress) {
	b, err := json.Marshal(p)
	if err != nil { // plain structs always encode
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute))
	_, _ = w.Write(append(b, '\n')) // who asked is told, or has gone
	_ = http.NewResponseController(w).Flush()
}

func codeOf(err error) string {
	switch {
	case errors.Is(err, ErrTooLarge):
		return "tooLarge"
	case errors.Is(err, oci.ErrNotFound):
		return "notFound"
	}
	return ""
}

// unstageAndTell removes what was staged of a repository by that reference, or
// digest: the tag may mean another image by now.
func (c *Cache) unstageAndTell(w http.ResponseWriter, name, reference string) {
	list, err := c.Staged()
	if err != nil {
		say(w, http.StatusInternalServerError, Progress{Error: err.Error()})
		return
	}
	for _, s := range list {
		if s.Repository != name || s.Reference != reference && s.Digest.String() != reference {
			continue
		}
		if err := c.Unstage(name, s.Digest); err != nil {
			say(w, http.StatusInternalServerError, Progress{Error: err.Error()})
			return
		}
		say(w, http.StatusOK, Progress{Staged: &s})
		return
	}
	say(w, http.StatusNotFound, Progress{Error: "no such image is staged", Code: "notFound"})
}

// StagedError is what a server says of an order that it did not follow.
type StagedError struct{ Text, Code string }

func (e *StagedError) Error() string { return e.Text }

// StageAt asks the StageHandler at url to stage an image. progress may be nil.
func StageAt(ctx context.Context, client *http.Client, url, ref string, progress func(done, total int64)) (*Staged, error) {
	body, err := call(ctx, client, http.MethodPost, url, &Order{ref})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	lines := json.NewDecoder(body)
	for {
		var p Progress
		if err := lines.Decode(&p); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("the server broke off: %w; what was fetched stays, ask again", err)
		}
		if p.Error != "" {
			return nil, &StagedError{p.Error, p.Code}
		}
		if progress != nil {
			progress(p.Done, p.Total)
		}
		if p.Staged != nil {
			return p.Staged, nil
		}
	}
}

// UnstageAt asks the StageHandler at url to let go of an image.
func UnstageAt(ctx context.Context, client *http.Client, url, ref string) (*Staged, error) {
	body, err := call(ctx, client, http.MethodDelete, url, &Order{ref})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var p Progress
	err = json.NewDecoder(io.LimitReader(body, maxProgress)).Decode(&p)
	return p.Staged, err
}

// StagedAt asks the StageHandler at url what is staged.
func StagedAt(ctx context.Context, client *http.Client, url string) (list []Staged, err error) {
	body, err := call(ctx, client, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	err = json.NewDecoder(io.LimitReader(body, maxLists)).Decode(&list)
	return list, err
}

func call(ctx context.Context, client *http.Client, method, url string, order *Order) (io.ReadCloser, error) {
	var body io.Reader
	if order != nil {
		b, err := json.Marshal(order)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	if order != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var p Progress
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxProgress)).Decode(&p); err != nil || p.Error == "" {
		p.Error = resp.Status
	}
	return nil, &StagedError{p.Error, p.Code}
}
