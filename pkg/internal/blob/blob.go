// Package blob holds what pkg/oci and pkg/oci/remote share, of which neither
// imports the other: what they say of a blob that cannot be had, and how one is
// pushed. Their callers use oci's names, which are aliases of these.
package blob

import (
	"errors"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Error is a blob that is not what its digest says, or could not be read.
type Error struct {
	Blob  diskimage.Digest
	Range diskimage.Extent // bytes of the blob
	Err   error
}

func (e *Error) Error() string {
	return fmt.Sprintf("blob %v, bytes %v: %v", e.Blob, e.Range, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrCorrupt is the cause of an Error whose bytes do not match a digest.
var ErrCorrupt = errors.New("does not match its SHA-256")

// ErrNotFound is a tag or digest that a layout or a repository does not have.
// Its text is a layout's; the client of registries quotes the registry instead.
var ErrNotFound = errors.New("not in the layout")

// PushOptions change how a blob is stored.
type PushOptions struct {
	// MountFrom names repositories of the same registry that may have the blob;
	// the first four are asked.
	MountFrom []string
}
