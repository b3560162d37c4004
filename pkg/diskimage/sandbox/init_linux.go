package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// initReport is what a step's first process says of it.
type initReport struct {
	Status string `json:",omitempty"` // of the step; "" is success
	Err    string `json:",omitempty"` // it was not started
}

// initMain is the step's first process, in the namespaces that are its own: it makes
// what the step sees, starts it, and reaps. When it ends, the kernel kills the rest.
func initMain() error {
	runtime.LockOSThread()
	report := os.NewFile(3, "report")
	seal(3)
	status, err := runInit()
	r := initReport{Status: status}
	if err != nil {
		r.Err = err.Error()
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = report.Write(b)
	return err
}

func runInit() (string, error) {
	text, err := os.ReadFile("step.json")
	if err != nil {
		return "", err
	}
	var c config
	if err := json.Unmarshal(text, &c); err != nil {
		return "", err
	}
	if err := c.mounts(); err != nil {
		return "", err
	}
	unix.Umask(0o022)
	if err := unix.Sethostname([]byte("localhost")); err != nil {
		return "", fmt.Errorf("host name: %w", err)
	}
	if !c.Network {
		if err := loopback(); err != nil {
			return "", fmt.Errorf("loopback: %w", err)
		}
	}
	return c.exec()
}

// mounts makes the step's view, and leaves no other.
func (c *config) mounts() error {
	mount := func(from, to, kind string, flags uintptr, data string) error {
		if err := unix.Mount(from, to, kind, flags, data); err != nil {
			return fmt.Errorf("mount %s: %w", strings.TrimPrefix(to, rootDir), err)
		}
		return nil
	}
	if err := errors.Join(mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), mount(rootDir, rootDir, "", unix.MS_BIND, "")); err != nil {
		return err
	}
	for _, m := range c.Tmpfs {
		if err := c.place(m, mount); err != nil {
			return err
		}
	}
	for _, f := range c.Files {
		if err := writeNew(rootDir+f.Path, f.Data, os.FileMode(f.Mode)); err != nil {
			return err
		}
	}
	for _, b := range c.Binds {
		to := rootDir + b.Path
		if hidden(b.Path) {
			if err := makePlace(to, b.File); err != nil {
				return err
			}
		}
		if err := mount(b.From, to, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV)
		if b.ReadOnly {
			flags |= unix.MS_RDONLY
		}
		if err := mount("", to, "", flags, ""); err != nil {
			return err
		}
	}
	// the new root over the old one, which then goes (pivot_root(2), NOTES)
	if err := os.Chdir(rootDir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	return os.Chdir("/")
}

// place mounts a folder that is a step's own.
func (c *config) place(m place, mount func(from, to, kind string, flags uintptr, data string) error) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV
	to := rootDir + m.Path
	switch m.Kind {
	case "proc":
		if err := mount("proc", to, "proc", safe|unix.MS_NOEXEC, "subset=pid"); err != nil {
			return fmt.Errorf("%w (Linux 5.8 is needed; in a container, an unmasked /proc)", err)
		}
		return nil
	case "dev":
		return c.devices(to, mount)
	case "sys":
		if err := mount("imgpipe", to, "tmpfs", safe|unix.MS_NOEXEC, "mode=0555,size=64k"); err != nil {
			return err
		}
		for _, name := range []string{"block", "bus", "class", "dev", "devices", "firmware", "fs", "kernel", "module", "power"} {
			if err := os.Mkdir(to+"/"+name, 0o555); err != nil {
				return err
			}
		}
		return mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|safe|unix.MS_NOEXEC, "")
	case "tmp":
		return mount("imgpipe", to, "tmpfs", safe, "mode=1777")
	}
	if err := mount("imgpipe", to, "tmpfs", safe, "mode=0755"); err != nil {
		return err
	}
	if err := os.Mkdir(to+"/lock", 0o700); err != nil {
		return err
	}
	return unix.Chmod(to+"/lock", 0o1777)
}

// devices makes /dev. No node can be made here; those of the host are shown.
func (c *config) devices(to string, mount func(from, to, kind string, flags uintptr, data string) error) error {
	if err := mount("imgpipe", to, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := makePlace(to+"/"+name, true); err != nil {
			return err
		}
		if err := mount("/dev/"+name, to+"/"+name, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(target, to+"/"+name); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Mkdir(to+"/pts", 0o755), os.Mkdir(to+"/shm", 0o755)); err != nil {
		return err
	}
	if err := mount("devpts", to+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return err
	}
	return mount("imgpipe", to+"/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
}

// makePlace makes an empty file or folder to mount on, and the folders above it.
func makePlace(name string, isFile bool) error {
	if !isFile {
		return os.MkdirAll(name, 0o755)
	}
	return writeNew(name, nil, 0o444)
}

func writeNew(name string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(name, data, mode), os.Chmod(name, mode))
}

// loopback brings lo up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// exec runs the step's program and reaps what it leaves.
func (c *config) exec() (string, error) {
	args := []string{"/bin/sh", "-eu", "/run/imgpipe/" + c.Name}
	if c.Terminal {
		args = []string{"/bin/sh", "-i"}
	} else if err := writeNew(args[2], []byte(c.Script), 0o555); err != nil {
		return "", err
	}
	if strings.HasPrefix(c.Script, "#!") && !c.Terminal {
		args = args[2:]
	}
	if err := os.Chdir(c.Workdir); err != nil {
		return "", fmt.Errorf("workdir: %w", err)
	}
	if err := limit(); err != nil {
		return "", err
	}
	attr := &os.ProcAttr{Env: c.Env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}}}
	if !c.Terminal {
		null, err := os.Open("/dev/null")
		if err != nil {
			return "", err
		}
		defer null.Close()
		attr.Files[0] = null
		attr.Sys.Setsid = true
	}
	proc, err := os.StartProcess(args[0], args, attr)
	if err != nil {
		return "", startError(args[0], err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return "", fmt.Errorf("wait: %w", err)
		case pid == proc.Pid && status.Signaled():
			return "signal: " + status.Signal().String(), nil
		case pid == proc.Pid && status.Exited() && status.ExitStatus() != 0:
			return fmt.Sprintf("exit status %d", status.ExitStatus()), nil
		case pid == proc.Pid && status.Exited():
			return "", nil
		}
	}
}

// startError says what it may mean that a program does not start.
func startError(name string, err error) error {
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("%s: %w: is the tree of another architecture? This needs qemu-user-static and binfmt-support", name, err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s: %w: the program, or the interpreter that it names, is not in the tree", name, err)
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%s: %w", name, err)
	}
	return err
}
