package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Mount is where Linux has its efivarfs.
const Mount = "/sys/firmware/efi/efivars"

// files is Vars on an efivarfs: a file a variable, its first four bytes the
// attributes (Linux, Documentation/filesystems/efivarfs.rst).
type files struct{ dir string }

// immutable is FS_IMMUTABLE_FL of Linux's <linux/fs.h>.
const immutable = 0x10

// Open returns the variables below an efivarfs; "" is Mount. It is ErrNone where
// that is not mounted, or has no variables.
func Open(dir string) (Vars, error) {
	if dir == "" {
		dir = Mount
	}
	v := files{dir}
	names, err := v.Names()
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
		return nil, fmt.Errorf("%s: %w", dir, ErrNone)
	}
	return v, err
}

func (v files) path(n Name) string { return filepath.Join(v.dir, n.String()) }

// Names implements Vars.
func (v files) Names() ([]Name, error) {
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		return nil, err
	}
	var names []Name
	for _, e := range entries {
		const guid = 36
		s := e.Name()
		if len(s) < guid+2 || s[len(s)-guid-1] != '-' {
			continue
		}
		if g, err := diskimage.ParseGUID(s[len(s)-guid:]); err == nil {
			names = append(names, Name{s[:len(s)-guid-1], g})
		}
	}
	return names, nil
}

// Get implements Vars.
func (v files) Get(n Name) (uint32, []byte, error) {
	f, err := os.Open(v.path(n))
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxVariable+4+1))
	if err != nil {
		return 0, nil, err
	}
	// A variable of no bytes is one that a failed write has left.
	if len(b) < 4 {
		return 0, nil, fs.ErrNotExist
	}
	return binary.LittleEndian.Uint32(b), b[4:], nil
}

// Set implements Vars.
func (v files) Set(n Name, attributes uint32, data []byte) error {
	if !validName(n) {
		return fmt.Errorf("variable %q: not a name", n.Name)
	}
	if err := v.mutable(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// One write is one SetVariable call. Truncating would delete the variable.
	f, err := os.OpenFile(v.path(n), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(binary.LittleEndian.AppendUint32(nil, attributes), data...))
	if info, statErr := f.Stat(); err != nil && statErr == nil && info.Size() == 0 {
		_ = os.Remove(v.path(n)) // made by the open, and still nothing
	}
	return errors.Join(err, f.Close())
}

// Delete implements Vars.
func (v files) Delete(n Name) error {
	if !validName(n) {
		return fmt.Errorf("variable %q: not a name", n.Name)
	}
	if err := v.mutable(n); err != nil {
		return err
	}
	return os.Remove(v.path(n))
}

func validName(n Name) bool { return n.Name != "" && !strings.ContainsAny(n.Name, "/\x00") }

// mutable takes the immutable flag off, which Linux puts on files whose loss
// breaks some firmware. A filesystem without such flags has none to take off.
func (v files) mutable(n Name) error {
	f, err := os.Open(v.path(n))
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^immutable)); err != nil {
		return fmt.Errorf("%s: its immutable flag stays: %w", n.Name, err)
	}
	return nil
}
