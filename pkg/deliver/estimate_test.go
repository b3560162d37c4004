package deliver_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
)

// TestEstimate measures with a clock that goes on by a second whenever it is
// asked, and compares with what those measurements say.
func TestEstimate(t *testing.T) {
	const size = 32 * mib
	raw := make([]byte, size)
	scribble(raw[mib:16*mib], 5)
	source, err := delivertest.NewImage(raw, 512, 64<<10, 16*mib)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	now := time.Unix(0, 0)
	o := deliver.Options{Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Second)
		return now
	}}
	disk := delivertest.NewDisk(dirty(size), 512)
	w, err := deliver.NewWant(source.Index(), nil, deliver.InfoOf(disk), nil)
	if err != nil {
		t.Fatal(err)
	}
	have, err := deliver.Look(ctx, w, disk, o)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := deliver.NewPlan(w, have)
	if err != nil {
		t.Fatal(err)
	}
	before := source.Sent()
	rate, err := deliver.TryFetch(ctx, plan, source, o)
	if err != nil || rate.Bytes == 0 || rate.Bytes > source.Sent()-before || rate.Bytes > 8*(2<<20+64<<10) || rate.Seconds < 1 {
		t.Fatalf("%+v after %d bytes, %v", rate, source.Sent()-before, err)
	}
	if disk.Changes() > 0 {
		t.Fatal("the disk was changed")
	}
	e := plan.Estimate(rate)
	if e == nil {
		t.Fatal("no estimate")
	}
	fetch := float64(plan.FetchSize()) / float64(rate.Bytes) * rate.Seconds
	disks := 2 * float64(plan.Bytes(deliver.Fetch)) / float64(e.Read.Bytes) * e.Read.Seconds
	if got := e.Seconds; got < max(fetch, disks)*0.999 || got > max(fetch, disks)*1.001 {
		t.Errorf("estimate %v s, fetching takes %v and the disk %v", got, fetch, disks)
	}
	if e := plan.Estimate(deliver.Rate{Bytes: 100, Seconds: 1}); e != nil {
		t.Errorf("from 100 bytes: %+v", e)
	}
	blind, err := deliver.NewPlan(w, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := blind.Estimate(rate); e != nil {
		t.Errorf("of a disk that was not looked at: %+v", e)
	}
	source.Fault = func(_ int, body []byte) (io.Reader, error) { return bytes.NewReader(body[:len(body)/2]), nil }
	if _, err := deliver.TryFetch(ctx, plan, source, o); err == nil {
		t.Error("a source that ends early is not noticed")
	} else if e, ok := errors.AsType[*deliver.Error](err); !ok || e.Problem != deliver.ProblemSource || e.State != deliver.StateUntouched {
		t.Errorf("%v", err)
	}
}
