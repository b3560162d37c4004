package recipe

import (
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Recipe is what an image is to be: resolved (extends merged, variables put in,
// defaults filled) and valid. Field names in errors and in Pos are the YAML
// paths, such as "files[2].mode".
type Recipe struct {
	Version  int
	Kind     string // KindDiskImage, KindEnvironment
	Name     string
	Release  string
	Arch     string // amd64, arm64
	Flavour  string // "" unless the recipe names one
	Epoch    time.Time
	Vars     map[string]string
	Base     Base
	Packages []string
	Files    []File
	Remove   []string // absolute glob patterns; ** crosses directories
	Users    []User
	Groups   []Group
	Systemd  Systemd
	Hostname string
	Timezone string
	Locale   string
	Boot     Boot
	Disk     Disk
	Test     Test

	Environment // of that kind; what is above from Flavour on, but Epoch to Packages, is then empty

	origins map[string]Pos      // by field: where its value was written; a default has none
	sources map[string][]string // the lines of every file read, for excerpts
	dir     string              // the folder of the recipe: sources are shown relative to it
	inputs  []Input
	given   map[string]string
}

// Input is a file that a recipe was read from.
type Input struct {
	Name   string           // relative to the folder of the recipe
	Digest diskimage.Digest // of its bytes
}

// Inputs returns the recipe's file and those that it extends, by name.
func (r *Recipe) Inputs() []Input { return slices.Clone(r.inputs) }

// Given returns the variables that Options.Set set.
func (r *Recipe) Given() map[string]string { return maps.Clone(r.given) }

// Relative returns a path of this host, such as a File's Source, as the recipe
// would name it: relative to its folder where it can be.
func (r *Recipe) Relative(path string) string {
	if rel, err := filepath.Rel(r.dir, path); err == nil {
		return filepath.ToSlash(rel)
	}
	return path
}

// KindDiskImage is the kind of a recipe for a disk image.
const KindDiskImage = "DiskImage"

// Base is where the tree starts: exactly one field is set.
type Base struct {
	Debian *DebianBase
}

// DebianBase is a tree made by Debian's package manager.
type DebianBase struct {
	Suite      string   // bookworm
	Variant    string   // minbase, apt, essential, …: mmdebstrap's word; default minbase
	Components []string // default [main]
	Mirrors    []string // URLs or sources.list lines; empty is mmdebstrap's own default
	Keyring    string   // path of an apt keyring; empty is the host's default
}

// File is one entry of files: inline Content, or a file or directory beside
// the recipe (Source, resolved to a path the process can open), or a symlink
// (Target), or a bare directory (Directory).
type File struct {
	Path      string // in the image: absolute, clean
	Content   string
	Source    string
	Target    string
	Directory bool
	Mode      *uint16 // nil: 0644, 0755 for directories, the source's own otherwise
	Owner     string  // "name:group" or numeric "0:0"; default root:root
}

// User is an account to be in /etc/passwd.
type User struct {
	Name           string
	UID            *uint32 // nil: the lowest free from 1000, or from 999 down for System
	Group          string  // primary group; default: a group of the user's own name
	Groups         []string
	Gecos          string
	Home           string // default /home/NAME, /root for root
	Shell          string // default /bin/sh
	AuthorizedKeys []string
	PasswordHash   string // crypt(5); default "!": no password login
	System         bool
}

// Group is a group to be in /etc/group.
type Group struct {
	Name   string
	GID    *uint32
	System bool
}

// Systemd says which units start.
type Systemd struct {
	Enable        []string
	Disable       []string
	Mask          []string
	DefaultTarget string // "" leaves the distribution's
}

// Boot says how the image starts.
type Boot struct {
	Firmware string // uefi
	Loader   string // uki
	Cmdline  string // without root= and rw/ro, which are the build's business
}

// Disk is the layout of the image.
type Disk struct {
	Size       int64 // bytes; 0 is auto
	SectorSize int64 // 512 or 4096
	Partitions []Partition
}

// Partition is one entry of disk.partitions.
type Partition struct {
	Name        string
	Type        string // esp, config, root, data
	Filesystem  string // fat32, fat16, fat, ext4; "" for config (a NoCloud FAT) or none
	Label       string
	Size        int64 // bytes; 0 is auto (ext4 only)
	FreePercent int   // room beside what is used, in percent of it; default 100; 0 where Size is not auto
	Grow        bool
	Mount       string // "/" for the root, "" where it is not mounted
}

// Test is what `imgbuild test` looks for on the console.
type Test struct {
	Timeout time.Duration
	Expect  []string
	Reject  []string
}

// Pos is a place in a recipe file, counted from 1; the zero Pos is "a default".
type Pos struct {
	File string
	Line int
	Col  int
}
