// Package kexec starts the kernel of an image that was written, without the
// firmware: what a job's `after: kexec` asks for.
//
//	err := kexec.Load(disk, esp.Extent, kexec.Options{Arch: "amd64", Free: free})
//	…
//	err = system.Kexec()                     // in place of a restart
//
// The program is the one that firmware would start of the EFI system partition,
// which has to be a UKI: its kernel, initrd and command line are handed to
// kexec_file_load(2). Nothing is changed by Load but what the running kernel holds
// ready; where it cannot be done (lockdown, a kernel without the call, a boot
// loader in place of a UKI, a disk that cannot be read, too little memory), the
// error says so, and the machine is to be restarted.
//
// It guarantees that what the disk holds is bounded before it is read. It does not
// judge it: the disk was verified as it was written.
package kexec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/fatfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Options say how. The zero value is for the machine as it is.
type Options struct {
	Arch string // as GOARCH; "": this program's
	Free int64  // bytes of memory that may be used; 0: not looked at

	// load is kexec_file_load; tests have another.
	load func(kernel, initrd *os.File, cmdline string) error
}

// programs is what firmware starts of a disk (UEFI 2.10, section 3.5.1.1). Its
// names know no case.
var programs = map[string]string{"amd64": "/EFI/BOOT/BOOTX64.EFI", "arm64": "/EFI/BOOT/BOOTAA64.EFI"}

// spare is what is to be left of memory, in bytes, beside the contents, which are
// there twice: ours, and the kernel's.
const spare = 48 << 20

// Load holds the image's kernel ready. disk is the one that was written, esp its EFI
// system partition.
func Load(disk io.ReaderAt, esp diskimage.Extent, o Options) error {
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if o.load == nil {
		o.load = load
	}
	if err := o.find(disk, esp); err != nil {
		return fmt.Errorf("the image's kernel is not started directly: %w", err)
	}
	return nil
}

func (o Options) find(disk io.ReaderAt, esp diskimage.Extent) error {
	fs, err := fatfs.Open(io.NewSectionReader(disk, esp.Off, esp.Len))
	if err != nil {
		return fmt.Errorf("EFI system partition: %w", err)
	}
	files, err := fs.Tree()
	if err != nil {
		return fmt.Errorf("EFI system partition: %w", err)
	}
	path := programs[o.Arch]
	var program *tree.Inode
	for e := range files.All() {
		if path != "" && strings.EqualFold(e.Path, path) && e.Inode.Kind == tree.Regular {
			program, path = e.Inode, e.Path
		}
	}
	if program == nil || program.Data == nil {
		return fmt.Errorf("the EFI system partition has no %s", path)
	}
	c, err := boot.Open(program.Data, program.Data.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	total := c.Kernel.Size()
	for _, i := range c.Initrds {
		total += i.Size()
	}
	if o.Free > 0 && 2*total+spare > o.Free {
		return fmt.Errorf("%d MiB of memory are free, and holding kernel and initrd ready takes %d", o.Free>>20, (2*total+spare)>>20)
	}
	kernel, err := inMemory("kernel", c.Kernel)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer kernel.Close()
	var initrd *os.File
	if len(c.Initrds) > 0 {
		if initrd, err = inMemory("initrd", c.Initrds...); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		defer initrd.Close()
	}
	return explain(o.load(kernel, initrd, c.Cmdline))
}

// inMemory copies contents into a file that is nowhere: the call wants files.
func inMemory(name string, parts ...*io.SectionReader) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for the %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	for _, p := range parts {
		if n, err := io.Copy(f, p); err != nil || n < p.Size() {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return nil, errors.Join(fmt.Errorf("the %s: %w", name, err), f.Close())
		}
		if pad := -p.Size() & 3; len(parts) > 1 { // each archive begins at a multiple of four
			if _, err := f.Write(make([]byte, pad)); err != nil {
				return nil, errors.Join(fmt.Errorf("the %s: %w", name, err), f.Close())
			}
		}
	}
	return f, nil
}

func load(kernel, initrd *os.File, cmdline string) error {
	if initrd == nil {
		return unix.KexecFileLoad(int(kernel.Fd()), -1, cmdline, unix.KEXEC_FILE_NO_INITRAMFS)
	}
	return unix.KexecFileLoad(int(kernel.Fd()), int(initrd.Fd()), cmdline, 0)
}

// explain says what kexec_file_load(2) means by an error.
func explain(err error) error {
	why := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSYS):
		why = "the environment's kernel cannot do it"
	case errors.Is(err, unix.EPERM):
		why = "the environment's kernel is locked down, or kexec is switched off"
	case errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EKEYREJECTED), errors.Is(err, unix.EBADMSG), errors.Is(err, unix.ENODATA):
		why = "the environment's kernel does not believe who signed the image's"
	case errors.Is(err, unix.ENOEXEC):
		why = "the environment's kernel cannot start a kernel of that form"
	default:
		why = "the environment's kernel does not take it"
	}
	return fmt.Errorf("%s (kexec_file_load: %w)", why, err)
}
