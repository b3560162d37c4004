package sandbox

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// arg0 is what this program is called where it is the sandbox's.
const arg0 = "imgpipe-sandbox"

// The sandbox's processes are this program again, whatever it is: a command or a
// test. They must not become what it otherwise is, so they branch off before main.
func init() {
	if len(os.Args) != 3 || os.Args[0] != arg0 {
		return
	}
	var err error
	switch os.Args[1] {
	case "enter":
		err = enter(os.Args[2])
	case "serve":
		err = serve(os.Args[2])
	case "init":
		err = initMain()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// File descriptors of the helper.
const (
	fdRequests = 3
	fdReplies  = 4
)

// settings is what a helper is started with.
type settings struct {
	Work   string // the host's folder; "" is memory
	Caches string
	Memory int64 // bytes that the work directory may take of it
	UserNS bool

	WorkFD, CachesFD int // the two as detached mounts
}

// enter is the first stage, in new namespaces but with the caller's own ids: it
// takes hold of the folders, which only they may reach, waits for its ids, takes
// them, and becomes the second stage.
func enter(text string) error {
	runtime.LockOSThread()
	var s settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	seal(fdReplies + 1)
	s.WorkFD, s.CachesFD = -1, -1
	for _, d := range []struct {
		path string
		fd   *int
	}{{s.Work, &s.WorkFD}, {s.Caches, &s.CachesFD}} {
		if d.path == "" {
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, d.path, unix.OPEN_TREE_CLONE)
		if err != nil {
			return fmt.Errorf("open_tree %s: %w", d.path, err)
		}
		*d.fd = fd
	}
	if n, err := unix.Read(fdRequests, make([]byte, 1)); n != 1 {
		return errors.Join(errors.New("no ids came"), err)
	}
	// raw: of this thread, which goes on alone
	for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, 0, 0, 0}, {unix.SYS_SETRESUID, 0, 0, 0}} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return fmt.Errorf("taking the ids: %w", errno)
		}
	}
	next, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", []string{arg0, "serve", string(next)}, os.Environ())
}

// seal marks files from first on as not to be inherited: who started this program
// may have left some open.
func seal(first int) {
	if unix.CloseRange(uint(first), ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC) != nil { // before Linux 5.11
		for fd := first; fd < 4096; fd++ {
			unix.CloseOnExec(fd)
		}
	}
}

// base is where the helper has its mounts. What the host has there is hidden from it.
const base = "/tmp"

// helper serves one build. It is the first process of its PID namespace: when it
// ends, all that it has started ends.
type helper struct {
	settings
	in    *gob.Decoder
	out   *gob.Encoder
	flush *bufio.Writer

	stamps map[string]stamp             // of the tree, as it was laid out last
	kept   map[uint64]map[string]string // by inode: attributes that cannot be set here
}

func serve(text string) error {
	h := &helper{kept: map[uint64]map[string]string{}}
	if err := json.Unmarshal([]byte(text), &h.settings); err != nil {
		return err
	}
	unix.Umask(0)
	unix.CloseOnExec(fdRequests) // no step is to talk with the build
	unix.CloseOnExec(fdReplies)
	flush := bufio.NewWriterSize(os.NewFile(fdReplies, "replies"), 64<<10)
	h.flush, h.out = flush, gob.NewEncoder(flush)
	h.in = gob.NewDecoder(bufio.NewReaderSize(os.NewFile(fdRequests, "requests"), 1<<20))
	go func() { // the build may end, however that is, while a step runs
		for {
			poll := []unix.PollFd{{Fd: fdRequests}}
			if n, err := unix.Poll(poll, -1); n > 0 && err == nil && poll[0].Revents&unix.POLLHUP != 0 {
				os.Exit(0)
			}
		}
	}()
	if err := h.mount(); err != nil {
		return h.answer(err)
	}
	if err := h.answer(nil); err != nil {
		return err
	}
	for {
		var r request
		if err := h.in.Decode(&r); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := h.answer(h.serve(&r)); err != nil {
			return err
		}
	}
}

// answer ends an answer.
func (h *helper) answer(err error) error {
	r := reply{Done: true}
	if err != nil {
		r.Err = err.Error()
	}
	return errors.Join(h.out.Encode(r), h.flush.Flush())
}

func (h *helper) serve(r *request) error {
	switch {
	case r.Lay != nil:
		return h.lay(r.Lay)
	case r.Run != nil:
		return h.runStep(r.Run)
	case r.Read != nil:
		return h.read(r.Read)
	case r.End:
		names, err := filepath.Glob("work/*")
		for _, name := range names {
			err = errors.Join(err, os.RemoveAll(name))
		}
		return err
	}
	return errors.New("an empty request")
}

// mount makes the places below base: work, caches, secrets.
func (h *helper) mount() error {
	for _, m := range []struct {
		from, to, kind, data string
		flags                uintptr
	}{
		{"", "/", "", "", unix.MS_REC | unix.MS_PRIVATE},
		{"imgpipe", base, "tmpfs", "mode=0755,size=64m", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.from, m.to, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.to, err)
		}
	}
	if err := os.Chdir(base); err != nil {
		return err
	}
	for _, dir := range []string{"work", "caches", "secrets"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if h.WorkFD < 0 {
		data := fmt.Sprintf("mode=0755,size=%d", h.Memory)
		if err := unix.Mount("imgpipe", "work", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
			return fmt.Errorf("mount the work directory: %w", err)
		}
	}
	for _, m := range []struct {
		fd int
		to string
	}{{h.WorkFD, "work"}, {h.CachesFD, "caches"}} {
		if m.fd < 0 {
			continue
		}
		if err := unix.MoveMount(m.fd, "", unix.AT_FDCWD, m.to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount %s: %w", m.to, err)
		}
		unix.Close(m.fd)
	}
	if err := os.Mkdir("work/root", 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	return nil
}

// rootDir is the tree, below base.
const rootDir = "work/root"

// read answers with a part of a file of the tree.
func (h *helper) read(r *readRequest) error {
	if r.Len < 0 || r.Len > 1<<20 {
		return errors.New("read: too much at once")
	}
	fd, err := unix.Open(rootDir+r.Path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Path, err)
	}
	f := os.NewFile(uintptr(fd), r.Path)
	defer f.Close()
	b := make([]byte, r.Len)
	n, err := f.ReadAt(b, r.Off)
	if err != nil && err != io.EOF {
		return err
	}
	return h.out.Encode(reply{Data: b[:n]})
}
