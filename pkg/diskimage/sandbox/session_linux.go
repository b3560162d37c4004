package sandbox

import (
	"bufio"
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/internal/workdir"
)

const workPrefix = "imgpipe-step-"

// session is a helper, and what is known of its work directory.
type session struct {
	o      Options
	where  string // for people: the work directory
	cmd    *exec.Cmd
	in     *os.File // of the helper
	said   *bytes.Buffer
	userNS bool

	mu   sync.Mutex // of reads, which are one at a time
	uses uint64     // how often the tree may have changed
	lost bool       // what the helper's tree has is not known
	w    *bufio.Writer
	enc  *gob.Encoder
	dec  *gob.Decoder

	held  map[string]*tree.Inode // what the helper's tree has; nil for what only it knows
	ids   *ids
	dir   string // the host's work directory, "" for none
	lock  *os.File
	inUse *os.File // the folders that stay
}

// open starts a helper. Its work directory lies in parent, or takes so much memory.
func open(o Options, parent string, memory int64) (*session, error) {
	ids, err := hostIDs()
	if err != nil {
		return nil, err
	}
	caches, inUse, err := openCaches(o.CacheDir, ids)
	if err != nil {
		return nil, err
	}
	for _, p := range []string{o.WorkDir, workdir.VarTmp} {
		if p != "" {
			workdir.Left(p, workPrefix, func(dir string) { _ = clean(ids, dir) }) // the next build tries again
		}
	}
	s := &session{o: o, where: "memory", ids: ids, inUse: inUse, held: map[string]*tree.Inode{}, said: &bytes.Buffer{}}
	set := settings{Caches: caches, Memory: memory}
	if parent != "" {
		if s.dir, err = workdir.Make(parent, workPrefix, 0); err != nil {
			return nil, errors.Join(err, inUse.Close())
		}
		s.where = s.dir
		if s.lock, err = workdir.Hold(s.dir); err == nil {
			set.Work, err = openFolder(s.dir)
		}
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(s.dir), inUse.Close())
		}
	}
	if err := s.start(set, ids); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// openFolder makes a folder that the helper's ids can write to, in one that only
// this user can enter.
func openFolder(dir string) (string, error) {
	x := filepath.Join(dir, "x")
	if err := os.Chmod(dir, 0o700); err != nil {
		return "", err
	}
	if err := os.Mkdir(x, 0o777); err != nil && !os.IsExist(err) {
		return "", err
	}
	return x, os.Chmod(x, 0o777)
}

// clean removes a work directory, in which files may belong to the helper's ids.
func clean(ids *ids, dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	s := &session{said: &bytes.Buffer{}}
	err := s.start(settings{Work: filepath.Join(dir, "x")}, ids)
	if err == nil {
		if err = s.send(request{End: true}); err == nil {
			err = s.answer(nil)
		}
	}
	s.end()
	if rerr := os.RemoveAll(dir); rerr != nil {
		return fmt.Errorf("work directory is left behind; the next build tries again: %w", errors.Join(rerr, err))
	}
	return nil
}

// start starts the helper, gives it its ids, and waits for its first answer.
func (s *session) start(set settings, ids *ids) (err error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return errors.Join(err, theirIn.Close(), in.Close())
	}
	s.in, s.userNS, set.UserNS = in, ids.userNS, ids.userNS
	text, err := json.Marshal(set)
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	s.cmd = cmd
	cmd.Args = []string{arg0, "enter", string(text)}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdin = s.o.Terminal
	cmd.Stderr = s.said
	cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC}
	if s.o.Terminal == nil {
		cmd.Stdin = nil
		cmd.SysProcAttr.Setsid = true // a Ctrl-C is the build's to pass on
	}
	ids.before(cmd)
	err = cmd.Start()
	theirIn.Close()
	theirOut.Close()
	if err != nil {
		s.cmd = nil
		return errors.Join(fmt.Errorf("%w: %w; see imgbuild doctor", ErrRefused, err), out.Close())
	}
	if err := ids.after(cmd.Process.Pid); err != nil {
		s.kill()
		return errors.Join(err, cmd.Wait(), out.Close())
	}
	if _, err := in.Write([]byte("i")); err != nil {
		return s.broken(err)
	}
	s.w = bufio.NewWriterSize(in, 1<<20)
	s.enc, s.dec = gob.NewEncoder(s.w), gob.NewDecoder(bufio.NewReaderSize(out, 1<<20))
	if err := s.answer(nil); err != nil {
		return fmt.Errorf("%w: %w; see imgbuild doctor", ErrRefused, err)
	}
	return nil
}

// kill ends the helper and all that it has started.
func (s *session) kill() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Kill() // it may have ended
	}
}

// broken is the error for a helper that does not talk any more.
func (s *session) broken(err error) error {
	if s.cmd == nil {
		return errors.New("the sandbox is closed")
	}
	s.kill()
	werr := s.cmd.Wait()
	s.cmd = nil
	if text := bytes.TrimSpace(s.said.Bytes()); len(text) > 0 {
		return fmt.Errorf("the sandbox's helper: %s", text)
	}
	if errors.Is(err, io.EOF) || err == nil {
		err = werr
	}
	return fmt.Errorf("the sandbox's helper ended: %w", err)
}

// answer reads replies up to the last one.
func (s *session) answer(each func(*reply) error) error {
	var first error
	for {
		var r reply
		if err := s.dec.Decode(&r); err != nil {
			return s.broken(err)
		}
		if r.Done {
			if r.Err != "" {
				return hinted(r.Err)
			}
			return first
		}
		if each != nil && first == nil {
			first = each(&r)
		}
	}
}

// send sends a request.
func (s *session) send(r request) error {
	if s.cmd == nil {
		return errors.New("the sandbox is closed")
	}
	if err := s.enc.Encode(r); err != nil {
		return s.broken(err)
	}
	if err := s.w.Flush(); err != nil {
		return s.broken(err)
	}
	return nil
}

// end ends the helper, and with it all that it has started.
func (s *session) end() {
	if s.in != nil {
		s.in.Close()
	}
	if s.cmd != nil {
		s.kill()
		_ = s.cmd.Wait() // it was killed
		s.cmd = nil
	}
}

// close ends the helper and removes the work directory.
func (s *session) close() error {
	s.end()
	var err error
	if s.dir != "" {
		err = clean(s.ids, s.dir)
	}
	if s.lock != nil {
		s.lock.Close()
	}
	s.inUse.Close()
	return err
}
