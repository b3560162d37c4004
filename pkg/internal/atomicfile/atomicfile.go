// Package atomicfile writes files that appear whole: temporary file beside the
// target, fsync, rename, fsync of the directory.
//
//	err := atomicfile.WriteFile("lock.json", data, 0o644)
//
//	f, err := atomicfile.Create("disk.raw", 0o644)
//	if err != nil { … }
//	defer f.Abort()                    // does nothing after Commit
//	_, err = f.Write(data)
//	err = f.Commit()
//
// After a crash at any moment the target is the old file or the new one. When
// WriteFile or Commit has returned, the new one survives power loss. What it
// does not do: keep the old file's mode, owner or hard links, or remove the
// temporary file (named ".NAME.tmp-…") of a process that was killed.
package atomicfile

import (
	"os"
	"path/filepath"
)

// File is a file being written that has not got its name yet. It is not safe
// for concurrent use.
type File struct {
	fs     FS
	tmp    TempFile
	path   string
	done   bool // committed or aborted
	closed bool
}

// Create starts a file that will replace path on Commit, with the given
// permissions. The directory must exist.
func Create(path string, perm os.FileMode) (*File, error) { return CreateIn(OS, path, perm) }

// CreateIn is Create on another filesystem.
func CreateIn(fs FS, path string, perm os.FileMode) (*File, error) {
	tmp, err := fs.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return nil, err
	}
	f := &File{fs: fs, tmp: tmp, path: path}
	if err := tmp.Chmod(perm); err != nil {
		f.Abort()
		return nil, err
	}
	return f, nil
}

// Write appends to the file.
func (f *File) Write(p []byte) (int, error) { return f.tmp.Write(p) }

// Commit makes the file durable under its path. After an error the target is
// as it was, or is the new file with its durability unknown; the temporary
// file is gone.
func (f *File) Commit() error {
	err := f.tmp.Sync()
	cerr := f.tmp.Close()
	f.closed = true
	if err == nil {
		err = cerr
	}
	if err == nil {
		err = f.fs.Rename(f.tmp.Name(), f.path)
	}
	if err != nil {
		f.Abort()
		return err
	}
	f.done = true
	return f.fs.SyncDir(filepath.Dir(f.path))
}

// Abort removes the temporary file, unless the file was committed. It may be
// called more than once.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	if !f.closed {
		_ = f.tmp.Close() // what it holds is thrown away
	}
	_ = f.fs.Remove(f.tmp.Name()) // nothing better can be done
}

// WriteFile replaces path by a file that holds data.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	return WriteFileIn(OS, path, data, perm)
}

// WriteFileIn is WriteFile on another filesystem.
func WriteFileIn(fs FS, path string, data []byte, perm os.FileMode) error {
	f, err := CreateIn(fs, path, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}
