// Package packages makes a tree with a distribution's own package manager,
// driven in a sandbox: mmdebstrap and apt, as root or as an ordinary user with
// subordinate ids. docs/packages.md is the normative text.
//
//	root, err := packages.Debian(ctx, packages.Request{
//		Debian:   recipe.DebianBase{Suite: "bookworm"},
//		Arch:     "amd64",
//		Packages: []string{"systemd-sysv"},
//		Epoch:    epoch,
//	}, packages.Options{CacheDir: dir})
//	t := …                                // the tree in root.Tar
//	err = packages.Golden(t, epoch)       // nothing of one machine is left in it
//
// It guarantees that the same request against the same archive (the same
// InRelease files) gives the same tree after Golden, whoever builds it, where
// and when; that the distribution's initramfs is generated at most once for a
// kernel, and not at all where none is wanted; that a cached result needs no network; that the cache never holds
// anything half-made, whatever is killed; and that a cancelled run leaves no
// process and no temporary directory behind.
//
// It does not choose packages, does not judge what maintainer scripts do, and
// keeps the cache from growing only as far as its caller prunes it.
package packages

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// Request is everything that decides what a tree holds, besides the archive.
type Request struct {
	Debian   recipe.DebianBase
	Arch     string    // Debian's word: amd64, arm64
	Packages []string  // names, NAME=VERSION or NAME/SUITE; their order means nothing
	Epoch    time.Time // whole seconds; no timestamp in the tree is later

	NoInitramfs bool // none is generated: whoever asks makes one
}

// Options says where and how, none of which changes the tree.
type Options struct {
	CacheDir string           // required; made if missing, shared by concurrent builds
	WorkDir  string           // parent of the temporary root; "" is /dev/shm if the tree fits, else /var/tmp
	Refresh  bool             // ask the archive even if the request is cached
	Env      []string         // more environment for the tools: http_proxy=…; nothing of the process's own is used
	Progress func(Event)      // called in order from one goroutine; nil for none
	Log      io.Writer        // gets the tools' own output as it comes; nil for none
	Now      func() time.Time // for Result.Steps; nil records no times
	// Fetch brings a cache entry, KIND/KEY, from elsewhere where it can: tried
	// before the entry is made. nil is nowhere.
	Fetch func(ctx context.Context, entry string)
	Lock  *Lock // which packages there are; nil: what the archive has
}

// Event is a moment of a run. Total is 0 where it is not known.
type Event struct {
	Step        Step
	Done, Total int    // packages
	Item        string // the package or file at hand
}

// Step is a part of a run that takes time of its own.
type Step string

// The steps, in order.
const (
	Update    Step = "update"    // the archive's indices
	Download  Step = "download"  // packages that are not cached
	Unpack    Step = "unpack"    // the essential packages, first without their scripts
	Configure Step = "configure" // unpacking the rest, and all maintainer scripts
	Initramfs Step = "initramfs"
	Tar       Step = "tar" // the finished tree into the cache
)

// Result is a tree in the cache.
type Result struct {
	Tar       string           `json:"-"` // path of an uncompressed pax tar
	FromCache bool             `json:"-"`
	Entries   []string         `json:"-"`    // of the cache, KIND/KEY: what the next such request finds
	Key       diskimage.Digest `json:"key"`  // of the request and the archive's state
	Size      int64            `json:"size"` // of Tar in bytes
	Digest    diskimage.Digest `json:"digest"`
	Sources   []Source         `json:"sources"`
	Packages  []Package        `json:"packages"` // by name
	Kernels   []string         `json:"kernels"`  // versions that have a /boot/vmlinuz-VERSION
	Tool      string           `json:"tool"`     // "mmdebstrap 1.3.5"
	Keyring   diskimage.Digest `json:"keyring"`  // of the keys that the archive was checked with
	Mode      string           `json:"mode"`     // "root" or "unshare"
	Steps     []StepTime       `json:"steps,omitempty"`
	Locked    []Locked         `json:"locked,omitempty"` // Packages, as a lock says them
}

// Source is the signed state of one suite of an archive: its InRelease file.
type Source struct {
	Name   string           `json:"name"` // apt's name of it: the URL with _ for /
	Digest diskimage.Digest `json:"digest"`
}

// Suite returns the suite that the state is of: bookworm-security. Where the
// archive was mirrored is not in it.
func (s Source) Suite() string {
	_, suite, _ := strings.Cut(s.Name, "_dists_")
	return strings.TrimSuffix(strings.TrimSuffix(suite, "_InRelease"), "_Release")
}

// Package is an installed package.
type Package struct {
	Name    string           `json:"name"`
	Version string           `json:"version"`
	Arch    string           `json:"arch"`
	Digest  diskimage.Digest `json:"digest,omitzero"` // of the .deb, as the archive signed it; zero if it gave none
}

// StepTime is how long a step took.
type StepTime struct {
	Step Step          `json:"step"`
	Time time.Duration `json:"nanoseconds"`
}
