package build

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

const maxRecord = 16 << 20

// GetRecord reads the record entry, KIND/NAME, of a cache, and marks it as used
// now. A missing or damaged one is as good as none.
func GetRecord(dir, entry string, v any) bool {
	name := recordPath(dir, entry)
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil || json.Unmarshal(b, v) != nil {
		return false
	}
	now := time.Now()
	_ = os.Chtimes(name, now, now) // where that fails, pruning fails as well
	return true
}

// PutRecord writes a record, whole or not at all.
func PutRecord(dir, entry string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	name := recordPath(dir, entry)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return atomicfile.WriteFile(name, append(b, '\n'), 0o644)
}

func recordPath(dir, entry string) string {
	return filepath.Join(dir, filepath.FromSlash(entry)+".json")
}

// WriteFile writes a file, whole or not at all.
func WriteFile(name string, b []byte) error { return atomicfile.WriteFile(name, b, 0o644) }
