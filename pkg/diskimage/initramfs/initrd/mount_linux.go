package initrd

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
)

const newRoot = "/sysroot"

// mountAPI mounts what the kernel shows itself by.
func mountAPI() error {
	for _, a := range []struct {
		kind, path string
		flags      uintptr
		data       string
	}{
		{"proc", "/proc", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, ""},
		{"sysfs", "/sys", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", syscall.MS_NOSUID, "mode=755"},
		{"tmpfs", "/run", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=755"},
	} {
		if err := os.MkdirAll(a.path, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(a.kind, a.path, a.kind, a.flags, a.data); err != nil && err != syscall.EBUSY {
			return errors.New(a.path + ": " + err.Error())
		}
	}
	return os.MkdirAll(newRoot, 0o755)
}

// mountRoot finds the root, opens it where it is sealed, and mounts it.
func (m *machine) mountRoot() error {
	c := &m.config
	flags := uintptr(syscall.MS_RDONLY)
	if c.Writable {
		flags = 0
	}
	if v := c.Verity; v != nil {
		node, err := m.openRoot(v)
		if err != nil {
			return err
		}
		m.doing = "mounting the sealed root"
		return m.mount(node, newRoot, c.RootTypes, syscall.MS_RDONLY, c.RootFlags)
	}
	b, err := m.await(c.Root)
	if err != nil {
		return err
	}
	m.doing = "mounting the root, " + b.Name + " (" + c.Root + ")"
	return m.mount("/dev/"+b.Name, newRoot, c.RootTypes, flags, c.RootFlags)
}

// openRoot makes /dev/mapper/root of the two devices of a sealed root.
func (m *machine) openRoot(v *Verity) (string, error) {
	data, err := m.await(v.Data)
	if err != nil {
		return "", err
	}
	hash, err := m.await(v.Hash)
	if err != nil {
		return "", err
	}
	m.doing = "opening the sealed root, " + data.Name + " with the hashes on " + hash.Name
	f, err := os.Open("/dev/" + hash.Name)
	if err != nil {
		return "", err
	}
	s, err := readSuperblock(f)
	f.Close()
	if err != nil {
		return "", err
	}
	if s.blocks > data.Size/4096 {
		return "", errors.New("the hashes are of more than there is on " + data.Name)
	}
	for _, name := range []string{"dm_mod", "dm_verity"} {
		if err := m.modules.Load(name); err != nil && !errors.Is(err, errNoModule) {
			return "", err
		}
	}
	return openVerity("root", s, data, hash, v)
}

// mount mounts a device as the first of some types that goes, or as what its superblock says.
func (m *machine) mount(node, to string, types []string, flags uintptr, options string) error {
	flags, data := mountOptions(flags, options)
	if len(types) == 0 || slices.Contains(types, "auto") || types[0] == "" {
		f, err := os.Open(node)
		if err != nil {
			return err
		}
		fs := Probe(f)
		_, err = f.ReadAt(make([]byte, 4096), 0)
		f.Close()
		if err != nil {
			return err
		}
		if fs.Type == "" {
			return errors.New(node + ": no filesystem that this initramfs knows; rootfstype= names one")
		}
		types = []string{fs.Type}
	}
	var errs []error
	for _, kind := range types {
		_ = m.modules.Load(kind) // mount says whether the kernel has it
		err := syscall.Mount(node, to, kind, flags, data)
		if err == nil {
			how := ", read-only"
			if flags&syscall.MS_RDONLY == 0 {
				how = ""
			}
			m.say(6, node+" ("+kind+how+") is mounted at "+strings.TrimPrefix(to, newRoot)+"/")
			return nil
		}
		errs = append(errs, errors.New(node+" as "+kind+": "+err.Error()))
	}
	return errors.Join(errs...)
}

// mountBelow mounts what imgpipe.mount names.
func (m *machine) mountBelow(w Mount) error {
	b, err := m.await(w.Spec)
	if err != nil {
		return err
	}
	m.doing = "mounting " + b.Name + " at " + w.Path
	to, err := inRoot(w.Path)
	if err != nil {
		return err
	}
	var types []string
	if w.Type != "" {
		types = []string{w.Type}
	}
	return m.mount("/dev/"+b.Name, to, types, 0, w.Options)
}

// inRoot is a path below the new root. Links are not followed: they would lead out
// of it.
func inRoot(path string) (string, error) {
	at := newRoot
	for name := range strings.SplitSeq(path[1:], "/") {
		at += "/" + name
		info, err := os.Lstat(at)
		if errors.Is(err, os.ErrNotExist) {
			return newRoot + path, nil
		}
		if err != nil {
			return "", err
		}
		if info.Mode()&os.ModeSymlink != 0 {
			return "", errors.New(strings.TrimPrefix(at, newRoot) + ": a symbolic link")
		}
	}
	return at, nil
}

// overlay lays what can be written over a folder of the root.
func (m *machine) overlay(o Overlay) error {
	m.doing = "laying an overlay over " + o.Path
	lower, err := inRoot(o.Path)
	if err != nil {
		return err
	}
	folder := "/run/imgpipe/overlay/" + strings.ReplaceAll(o.Path[1:], "/", "-")
	upper, work := folder+"/upper", folder+"/work"
	if o.Folder != "" {
		var errs [2]error
		upper, errs[0] = inRoot(o.Folder + "/upper")
		work, errs[1] = inRoot(o.Folder + "/work")
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
	}
	info, err := os.Stat(lower)
	if err != nil {
		return err
	}
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(upper, info.Mode().Perm()); err != nil {
		return err
	}
	_ = m.modules.Load("overlay")
	return mountError("overlay", syscall.Mount("overlay", lower, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work))
}

func mountError(what string, err error) error {
	if err != nil {
		return errors.New(what + ": " + err.Error())
	}
	return nil
}
