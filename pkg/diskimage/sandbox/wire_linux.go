package sandbox

import (
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// The build and its helper, which has the ids and the mounts, talk gob over two
// pipes: requests one way, replies the other. A request is answered by replies up to
// one that is Done. The helper is this program; what it says of a step's files is
// still checked as that of a stranger, since names and contents are the step's.

// request is what the build asks for: exactly one of the pointers is set.
type request struct {
	Lay  *layRequest // followed by entries, up to an empty one
	Run  *config
	Read *readRequest
	End  bool // remove the work directory's contents
}

// layRequest makes a directory hold what follows.
type layRequest struct {
	Dir    string   // below the work directory
	Clear  bool     // remove it first
	Remove []string // paths
	Stamp  bool     // note what is there, for the next scan
}

// readRequest reads from a file of the tree.
type readRequest struct {
	Path string
	Off  int64
	Len  int
}

// entry is a path with its metadata.
type entry struct {
	Path     string
	Kind     tree.Kind
	Mode     uint16
	UID, GID uint32
	MTime    time.Time
	Xattrs   map[string]string
	Target   string
	Link     string // of a hard link: the path of the same file
	Size     int64
	Data     []byte // the contents, or their beginning; then chunks follow
	More     bool   // chunks follow, up to an empty one
	Finish   bool   // of a directory: it is complete, and gets its metadata

	Ino   uint64 // of a scan: which paths are one file
	Links uint64
	Read  bool // of a scan: all that is known is that it was read
}

// chunk is a part of a file's contents.
type chunk struct {
	Off  int64
	Data []byte
}

// maxChunk is how much of a file is in one message.
const maxChunk = 256 << 10

// config is a step as the helper needs it: every path is resolved.
type config struct {
	Name     string
	Script   string
	UID, GID uint32
	Groups   []uint32
	Workdir  string
	Env      []string
	Network  bool
	Tmpfs    []place // for /run, /tmp and their like
	Files    []file  // in one of them
	Binds    []bind
	Secrets  []file
	Planted  []file // in the tree
	Terminal bool   // an interactive shell instead of the script
	UserNS   bool   // the helper has a user namespace
}

// place is a directory that something is mounted on.
type place struct {
	Path string
	Kind string // run, tmp, proc, sys, dev
}

type file struct {
	Path    string
	Data    []byte
	Mode    uint32
	Replace bool // of one planted: what is there is put aside
}

// bind is a folder or file that is mounted.
type bind struct {
	From     string // below the work directory or the caches
	Path     string
	ReadOnly bool
	File     bool
}

// reply is a part of an answer.
type reply struct {
	Output  []byte
	Entry   *entry
	Removed []string
	Result  *result
	Data    []byte
	Err     string
	Done    bool
}

// result is how a step's program ended.
type result struct {
	Status string // "" is success
	Full   bool   // the work directory is full
}
