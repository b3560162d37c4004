// Package boot makes what firmware starts: a unified kernel image (UKI) of the
// kernel, initramfs and command line of a file tree.
//
//	k, err := boot.Find(t, "amd64")              // paths in the tree
//	uki, err := k.UKI(t, "root=PARTUUID=… ro console=ttyS0")
//	image, err := uki.Build()                    // a Disk: nothing is copied
//	err = esp.Put("/EFI/BOOT/BOOTX64.EFI", &tree.Inode{Mode: 0o644, Data: image})
//	for _, p := range k.Paths() {
//		t.Remove(p)                          // they are in the UKI
//	}
//
// A UKI is the systemd stub with sections appended, as the UAPI group's
// Unified Kernel Image specification names them. The format is that of
// Microsoft's "PE Format" (learn.microsoft.com/windows/win32/debug/pe-format),
// cited here by section.
//
// It guarantees that the sections of the stub stay where they are, in the file
// and in memory; that alignments are the stub's own; that appended contents are
// the inputs byte for byte; that
// another initramfs leaves the kernel's bytes where they were; and that the same inputs give the same bytes. It
// does not sign, and takes no signed stub, since a signature would not survive.
package boot

import (
	"errors"
	"fmt"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// UKI is what a unified kernel image is made of. Stub and Kernel are needed.
// Text goes in as it is: no byte is added to it.
type UKI struct {
	Stub      []byte         // linux….efi.stub: a PE32+ program
	Kernel    diskimage.Disk // a PE32+ program too: CONFIG_EFI_STUB
	Initrd    diskimage.Disk // cpio archives, compressed or not; nil is none
	OSRelease string         // contents of os-release; names the image in boot menus
	Cmdline   string         // "" lets the firmware's caller say it
	Uname     string         // the kernel's version, as `uname -r` prints it
}

// Build returns the UKI. The contents are read once for the checksum, and then
// served from where they lie: Kernel and Initrd must stay as they are.
func (u UKI) Build() (diskimage.Disk, error) {
	d, err := u.build()
	if err != nil {
		return nil, fmt.Errorf("uki: %w", err)
	}
	return d, nil
}

func (u UKI) build() (diskimage.Disk, error) {
	stub, err := parsePE(u.Stub)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	if u.Kernel == nil {
		return nil, errors.New("no kernel")
	}
	kernel, err := kernelPE(u.Kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if kernel.machine() != stub.machine() {
		return nil, fmt.Errorf("kernel: for machine %#x, the stub is for %#x", kernel.machine(), stub.machine())
	}
	if strings.ContainsAny(u.Cmdline, "\x00\n") {
		return nil, fmt.Errorf("command line %q: a NUL byte or line feed in it", u.Cmdline)
	}
	// In memory the kernel comes last, with room behind it for all of its own image: a
	// stub that starts it in place lets it unpack there, over what follows.
	// Where others put it at a fixed address, a large initrd has met it.
	for _, s := range []section{
		{".osrel", text(u.OSRelease)},
		{".cmdline", text(u.Cmdline)},
		{".uname", text(u.Uname)},
		{".initrd", u.Initrd},
		{".linux", u.Kernel},
	} {
		if s.data == nil || s.data.Size() == 0 {
			continue
		}
		if err := stub.add(s); err != nil {
			return nil, fmt.Errorf("section %s: %w", s.name, err)
		}
	}
	// In the file the initramfs comes last: it changes more often than the
	// kernel, which then stays where it is, at a whole chunk.
	return stub.finish(int64(kernel.u32(kernel.optional+optImageSize)), ".linux", ".initrd")
}

func text(s string) diskimage.Disk { return diskimage.Bytes([]byte(s)) }

// section is contents to append under a name of at most eight bytes.
type section struct {
	name string
	data diskimage.Disk
}

// kernelPE parses the start of a kernel: its headers, but not its sections.
func kernelPE(d diskimage.Disk) (*pe, error) {
	b := make([]byte, min(d.Size(), 4096))
	if n, err := d.ReadAt(b, 0); n < len(b) {
		return nil, err
	}
	p, err := parseHeaders(b)
	if err != nil {
		return nil, fmt.Errorf("not an EFI program (a kernel built with CONFIG_EFI_STUB, not compressed as a whole): %w", err)
	}
	return p, nil
}
