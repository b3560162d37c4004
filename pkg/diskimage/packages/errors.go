package packages

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNoSubordinateIDs is wrapped by the error for an ordinary user who has no
// range in /etc/subuid and /etc/subgid.
var ErrNoSubordinateIDs = errors.New("no subordinate user and group ids")

// UnknownPackageError says that the archive has no package of a name.
type UnknownPackageError struct {
	Name  string
	Suite string
}

func (e *UnknownPackageError) Error() string {
	return fmt.Sprintf("package %q is not in %s with the components asked for", e.Name, e.Suite)
}

// MissingToolError says that a program is not installed.
type MissingToolError struct {
	Tool    string
	Package string // Debian's package that has it
}

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("%s is not installed: apt-get install %s", e.Tool, e.Package)
}

// MirrorError says that an archive could not be reached or is not trusted.
type MirrorError struct {
	URL    string // as far as apt named it
	Reason string // apt's words
	Hint   string // what to try
}

func (e *MirrorError) Error() string {
	s := "archive"
	if e.URL != "" {
		s += " " + e.URL
	}
	return fmt.Sprintf("%s: %s (%s)", s, e.Reason, e.Hint)
}

// NoSpaceError says that a filesystem is full.
type NoSpaceError struct {
	Dir  string // where the temporary root was
	Need int64  // estimated bytes; 0 if not known
}

func (e *NoSpaceError) Error() string {
	s := "no space left in " + e.Dir
	if e.Need > 0 {
		s += fmt.Sprintf(" (about %d MiB are needed)", e.Need>>20)
	}
	return s + ": free some, or name another work directory"
}

// RunError is a failure of the package manager that has no better name.
type RunError struct {
	Tool string
	Err  error  // how the process ended
	Tail string // the last lines it wrote
}

func (e *RunError) Error() string {
	s := fmt.Sprintf("%s: %v", e.Tool, e.Err)
	if e.Tail != "" {
		s += "; its last lines:\n\t" + strings.ReplaceAll(strings.TrimSpace(e.Tail), "\n", "\n\t")
	}
	return s
}

// Unwrap returns how the process ended.
func (e *RunError) Unwrap() error { return e.Err }
