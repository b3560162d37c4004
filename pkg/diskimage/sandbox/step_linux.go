package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// runStep runs a step's program in the tree as it is, and answers with its output,
// how it ended, and what is another file now.
func (h *helper) runStep(c *config) error {
	p := &prepared{}
	err := p.prepare(c)
	var res *result
	if err == nil {
		res, err = h.start(c)
	}
	if res != nil && res.Status != "" {
		var fs unix.Statfs_t
		if unix.Statfs("work", &fs) == nil && int64(fs.Bavail)*int64(fs.Bsize) < 1<<20 {
			res.Full = true
		}
	}
	if err = errors.Join(err, p.restore()); err != nil {
		return err
	}
	if err := h.out.Encode(reply{Result: res}); err != nil || res.Status != "" || c.Terminal {
		return err
	}
	return h.scan()
}

// start runs the step's first process and waits until all of them have ended.
func (h *helper) start(c *config) (*result, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile("step.json", text, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove("step.json")
	report, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer report.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{arg0, "init", ""}
	cmd.Env = []string{}
	cmd.Dir = base
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP}
	if !c.Network {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if c.Terminal {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdin, os.Stdin
	} else {
		cmd.SysProcAttr.Setsid = true
		out := outputWriter{h}
		cmd.Stdout, cmd.Stderr = out, out
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("namespaces: %w", err), theirs.Close())
	}
	theirs.Close()
	said, err := io.ReadAll(io.LimitReader(report, 64<<10))
	if werr := cmd.Wait(); err == nil && len(said) == 0 {
		return nil, fmt.Errorf("the step's first process ended: %w", errors.Join(errors.New("it said nothing"), werr))
	}
	if err != nil {
		return nil, err
	}
	var r initReport
	if err := json.Unmarshal(said, &r); err != nil {
		return nil, err
	}
	if r.Err != "" {
		return nil, errors.New(r.Err)
	}
	return &result{Status: r.Status}, nil
}

// outputWriter passes on what a step prints. exec.Cmd calls it from one goroutine.
type outputWriter struct{ h *helper }

func (w outputWriter) Write(p []byte) (int, error) {
	if err := w.h.out.Encode(reply{Output: p}); err != nil {
		return 0, err
	}
	return len(p), w.h.flush.Flush()
}

// prepared undoes what was put into the tree for a step.
type prepared struct {
	undo []func() error
}

// prepare makes places to mount on, secrets and planted files.
func (p *prepared) prepare(c *config) error {
	for _, s := range c.Secrets {
		if err := os.WriteFile(s.Path, s.Data, 0o600); err != nil {
			return err
		}
		p.undo = append(p.undo, func() error { return os.Remove(s.Path) })
		if err := errors.Join(os.Chown(s.Path, int(c.UID), int(c.GID)), os.Chmod(s.Path, os.FileMode(s.Mode))); err != nil {
			return err
		}
	}
	for _, m := range c.Tmpfs {
		if err := p.dir(m.Path); err != nil {
			return err
		}
	}
	for _, b := range c.Binds {
		if err := p.bind(c, b); err != nil {
			return fmt.Errorf("%s: %w", b.Path, err)
		}
	}
	for _, f := range c.Planted {
		if err := p.plant(f); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

func (p *prepared) bind(c *config, b bind) error {
	if strings.HasPrefix(b.From, "caches/") {
		// no path of the tree: it is the build's own folder
		if err := os.Mkdir(b.From, 0o755); err == nil {
			if err := os.Chown(b.From, int(c.UID), int(c.GID)); err != nil {
				return err
			}
		} else if !os.IsExist(err) {
			return err
		}
	}
	if hidden(b.Path) {
		return nil // made in the tmpfs
	}
	if !b.File {
		return p.dir(b.Path)
	}
	if err := p.dir(path.Dir(b.Path)); err != nil {
		return err
	}
	return p.empty(b.Path, nil, 0o444)
}

// dir makes a folder that is not there, and those above it.
func (p *prepared) dir(d string) error {
	if d == "/" {
		return nil
	}
	name := rootDir + d
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	if err := p.dir(path.Dir(d)); err != nil {
		return err
	}
	if err := os.Mkdir(name, 0o755); err != nil {
		return err
	}
	p.undo = append(p.undo, func() error {
		err := os.Remove(name) // stays if the step has put something in it
		if errors.Is(err, unix.ENOTEMPTY) || os.IsNotExist(err) {
			return nil
		}
		return err
	})
	return nil
}

// empty makes a file that is not there, and removes it again unless it was changed.
func (p *prepared) empty(f string, data []byte, mode os.FileMode) error {
	name := rootDir + f
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	if err := errors.Join(os.WriteFile(name, data, mode), os.Chmod(name, mode)); err != nil {
		return err
	}
	was, err := os.Lstat(name)
	if err != nil {
		return err
	}
	p.undo = append(p.undo, func() error {
		if now, err := os.Lstat(name); err != nil || !unchanged(was, now) {
			return nil
		}
		return os.Remove(name)
	})
	return nil
}

// plant puts a file into the tree for the time of the step.
func (p *prepared) plant(f file) error {
	name, aside := rootDir+f.Path, "work/aside"+strings.ReplaceAll(f.Path, "/", "_")
	if f.Replace {
		err := os.Rename(name, aside)
		if err == nil {
			p.undo = append(p.undo, func() error {
				if _, err := os.Lstat(name); err == nil {
					return os.Remove(aside) // the step has made its own
				}
				return os.Rename(aside, name)
			})
		} else if !os.IsNotExist(err) {
			return err
		}
	}
	return p.empty(f.Path, f.Data, os.FileMode(f.Mode))
}

// unchanged says that a file was neither written nor replaced.
func unchanged(a, b os.FileInfo) bool {
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	return x.Ino == y.Ino && x.Ctim == y.Ctim
}

// restore undoes in the reverse order.
func (p *prepared) restore() error {
	var errs []error
	for i := len(p.undo) - 1; i >= 0; i-- {
		errs = append(errs, p.undo[i]())
	}
	return errors.Join(errs...)
}
