package atomicfile

import (
	"io"
	"os"
)

// FS is the filesystem operations that make a file appear whole. OS is the
// real one; tests put in one that stops at any operation.
type FS interface {
	// CreateTemp makes a new file, readable by the owner only, in dir.
	CreateTemp(dir, pattern string) (TempFile, error)
	// Rename replaces new by old in one step.
	Rename(old, new string) error
	Remove(name string) error
	// Link gives a file a second name, which must be free.
	Link(old, new string) error
	// SyncDir makes the renames and links in dir durable.
	SyncDir(dir string) error
}

// TempFile is a file that has no final name yet.
type TempFile interface {
	io.Writer
	Name() string
	Chmod(os.FileMode) error
	Sync() error
	Close() error
}

// OS is the operating system's filesystem.
var OS FS = osFS{}

type osFS struct{}

func (osFS) CreateTemp(dir, pattern string) (TempFile, error) { return os.CreateTemp(dir, pattern) }
func (osFS) Rename(old, new string) error                     { return os.Rename(old, new) }
func (osFS) Remove(name string) error                         { return os.Remove(name) }
func (osFS) Link(old, new string) error                       { return os.Link(old, new) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
