package dhcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// Journal is a Store in one file: a JSON object a line, appended and synced
// before Put returns; many Puts at once share one sync. A line that a crash cut
// is left out. The file is written anew when it is opened.
type Journal struct {
	mu     sync.Mutex
	f      *os.File
	leases []Lease
	next   *batch
	busy   bool
}

type batch struct {
	lines []byte
	done  chan struct{}
	err   error
}

// OpenJournal opens the file, or makes it.
func OpenJournal(path string) (*Journal, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	last := map[netip.Addr]Lease{}
	var order []netip.Addr
	for line := range bytes.Lines(b) {
		var l Lease
		if json.Unmarshal(line, &l) != nil || !validLease(l) {
			continue
		}
		if _, ok := last[l.Addr]; !ok {
			order = append(order, l.Addr)
		}
		last[l.Addr] = l
	}
	j := &Journal{}
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	for _, a := range order {
		j.leases = append(j.leases, last[a])
		_ = json.NewEncoder(w).Encode(last[a]) // into memory, of a type that encodes
	}
	_ = w.Flush()
	if err := atomicfile.WriteFile(path, out.Bytes(), 0o600); err != nil {
		return nil, err
	}
	if j.f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	return j, nil
}

// Leases implements Store: what was in the file when it was opened.
func (j *Journal) Leases(context.Context) ([]Lease, error) { return j.leases, nil }

// Put implements Store.
func (j *Journal) Put(_ context.Context, l Lease) error {
	line, err := json.Marshal(l)
	if err != nil {
		return err
	}
	j.mu.Lock()
	if j.next == nil {
		j.next = &batch{done: make(chan struct{})}
	}
	b := j.next
	b.lines = append(append(b.lines, line...), '\n')
	if j.busy { // whoever writes now takes this batch next
		j.mu.Unlock()
		<-b.done
		return b.err
	}
	j.busy = true
	for j.next != nil {
		cur := j.next
		j.next = nil
		j.mu.Unlock()
		cur.err = j.write(cur.lines)
		close(cur.done)
		j.mu.Lock()
	}
	j.busy = false
	j.mu.Unlock()
	return b.err
}

func (j *Journal) write(b []byte) error {
	if _, err := j.f.Write(b); err != nil {
		_, _ = j.f.Write([]byte("\n")) // so that the next line stands alone
		return fmt.Errorf("leases: %w", err)
	}
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	return nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.f.Close() }
