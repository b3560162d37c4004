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
	Run      []Run
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
	Debian  *DebianBase
	OCI     *OCIBase
	Tar     *TarBase
	Dir     *DirBase
	Disk    *DiskBase
	Recipe  *RecipeBase
	Scratch *ScratchBase
}

// OCIBase is the tree of a container image.
type OCIBase struct {
	Ref string // of a registry, or oci:DIR[:TAG] with DIR as a path that the process can open
}

// TarBase is the tree in a tar, which may be compressed.
type TarBase struct {
	File string // a path that the process can open
}

// DirBase is the tree below a folder, owned by root.
type DirBase struct {
	Path string // a path that the process can open
}

// DiskBase is the root tree of a disk: a file, or one of our artifacts.
type DiskBase struct {
	File      string // raw or qcow2, as a path that the process can open
	Ref       string // of a registry, or oci:DIR[:TAG]
	Partition string // name or number; "" is the one that looks like a root
}

// RecipeBase is the tree of another recipe, as it is before anything that boots
// is made of it.
type RecipeBase struct {
	File string // a path that the process can open
}

// ScratchBase is an empty tree.
type ScratchBase struct{}

// Run is a step that runs in the tree.
type Run struct {
	Name    string
	Script  string            // for /bin/sh -eu, or what its #! line names
	After   string            // packages, files
	Network bool              // the host's; without it only loopback
	User    string            // name or number in the tree
	Workdir string            // in the tree
	Env     map[string]string // besides the fixed ones
	Cache   []string          // folders that are kept from build to build, and are not of the tree
	Secrets []Secret
	Mounts  []Mount
}

// Secret is a text that a step reads and that never reaches the tree.
type Secret struct {
	Name string // as --secret names it
	Path string // where the step finds it; default /run/secrets/NAME
}

// Mount is a file or folder beside the recipe that a step sees, read-only.
type Mount struct {
	Path   string // in the tree
	Source string // a path that the process can open
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
	Firmware  string        // uefi, bios, hybrid: both
	Loader    string        // of UEFI: uki, systemd-boot
	Initramfs string        // distribution, native
	Cmdline   string        // without root= and rw/ro, which are the build's business
	Entries   []Entry       // of the boot menu, besides the image's own
	Timeout   time.Duration // for which the menu shows; 0 is not at all
	Tries     int           // boots that may fail before another entry is tried; 0 is no counting

	SecureBoot SecureBoot // signs what UEFI starts
}

// Entry is a further entry of the boot menu: the image with another command line.
type Entry struct {
	Name    string
	Title   string // default: the image's with Name
	Cmdline string // instead of Boot.Cmdline
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
	Type        string // esp, bios, config, root, verity, swap, data
	Filesystem  string // fat32, fat16, fat, ext4, erofs; "" for config (a NoCloud FAT) or none
	Label       string
	Size        int64 // bytes; 0 is auto (ext4 only)
	FreePercent int   // room beside what is used, in percent of it; default 100; 0 where Size is not auto
	Grow        bool
	Mount       string // "/" for the root, "" where it is not mounted
	ReadOnly    bool   // a root or data partition that nothing writes to
	Slot        string // a, b: of a root that there are two of; "" otherwise
	For         string // of a verity partition: the name of the one whose hashes it holds
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
