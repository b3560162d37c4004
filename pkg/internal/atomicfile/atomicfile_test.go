package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// faultFS fails from the operation with number stop on.
type faultFS struct {
	FS
	stop, n int
}

var errFault = errors.New("fault")

func (f *faultFS) step() error {
	f.n++
	if f.n > f.stop {
		return errFault
	}
	return nil
}

func (f *faultFS) CreateTemp(dir, pattern string) (TempFile, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	t, err := f.FS.CreateTemp(dir, pattern)
	return faultFile{t, f}, err
}

func (f *faultFS) Rename(old, new string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.FS.Rename(old, new)
}

func (f *faultFS) SyncDir(dir string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.FS.SyncDir(dir)
}

type faultFile struct {
	TempFile
	f *faultFS
}

func (t faultFile) Write(p []byte) (int, error) {
	if err := t.f.step(); err != nil {
		n, _ := t.TempFile.Write(p[:len(p)/2])
		return n, err
	}
	return t.TempFile.Write(p)
}

func (t faultFile) Chmod(m os.FileMode) error {
	if err := t.f.step(); err != nil {
		return err
	}
	return t.TempFile.Chmod(m)
}

func (t faultFile) Sync() error {
	if err := t.f.step(); err != nil {
		return err
	}
	return t.TempFile.Sync()
}

func (t faultFile) Close() error {
	return errors.Join(t.f.step(), t.TempFile.Close())
}

func TestFaultLeavesTheOldOrTheNewFileAndNoTemporary(t *testing.T) {
	for stop := 0; ; stop++ {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		if err := WriteFile(path, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		err := WriteFileIn(&faultFS{FS: OS, stop: stop}, path, []byte("new"), 0o640)
		if err != nil && !errors.Is(err, errFault) {
			t.Fatal(err)
		}
		b, rerr := os.ReadFile(path)
		if rerr != nil || string(b) != "new" && (string(b) != "old" || err == nil) {
			t.Errorf("operation %d (%v): file holds %q, %v", stop, err, b, rerr)
		}
		entries, rerr := os.ReadDir(dir)
		if rerr != nil || len(entries) != 1 {
			t.Errorf("operation %d: directory holds %v, %v", stop, entries, rerr)
		}
		if err == nil {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o640 || stop < 6 {
				t.Errorf("done after %d operations: %v, %v", stop, info.Mode(), err)
			}
			return
		}
	}
}

func TestAbortRemovesTheTemporaryOnlyBeforeCommit(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "f"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Abort()
	f.Abort()
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("after Abort: %v", entries)
	}
	if f, err = Create(filepath.Join(dir, "f"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	f.Abort()
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "x" {
		t.Errorf("after Commit and Abort: %q, %v", b, err)
	}
}
