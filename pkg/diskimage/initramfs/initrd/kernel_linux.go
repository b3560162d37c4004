package initrd

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// insertModule hands a file to the kernel (finit_module(2)).
func insertModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var none [1]byte
	_, _, e := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&none[0])), 0)
	if e != 0 && e != syscall.EEXIST {
		return e
	}
	return nil
}

// release is what uname -r prints.
func release() (string, error) {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return "", err
	}
	var b []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b), nil
}

// dm asks the device mapper.
func dm(control *os.File, request int, b []byte) error {
	const readWrite, kind = 3, 0xfd
	number := uintptr(readWrite)<<30 | dmHeader<<16 | kind<<8 | uintptr(request)
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, control.Fd(), number, uintptr(unsafe.Pointer(&b[0]))); e != 0 {
		return e
	}
	return nil
}

// openVerity makes the device NAME of data and hashes that root stands for, and returns its node.
func openVerity(name string, s superblock, data, hash Block, v *Verity) (string, error) {
	control, err := openControl()
	if err != nil {
		return "", err
	}
	defer control.Close()
	uuid := "CRYPT-VERITY-" + s.uuid + "-" + name // as cryptsetup names it, so that veritysetup status knows it
	made := dmRequest(name, uuid, "", "", 0)
	if err := dm(control, dmCreate, made); err != nil {
		return "", errors.New("device mapper: create: " + err.Error())
	}
	table := s.target(data.Number, hash.Number, v.RootHash, v.Options)
	if err := dm(control, dmLoad, dmRequest(name, "", "verity", table, s.blocks*8)); err != nil {
		return "", errors.Join(errors.New("device mapper: table \"verity "+table+"\": "+err.Error()), dm(control, dmRemove, dmRequest(name, "", "", "", 0)))
	}
	if err := dm(control, dmSuspend, dmRequest(name, "", "", "", 0)); err != nil { // without the flag: resume
		return "", errors.New("device mapper: resume: " + err.Error())
	}
	node := "/dev/mapper/" + name
	if err := os.Symlink("../dm-"+strconv.Itoa(dmMinor(made)), node); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return node, nil
}

// openControl opens the device mapper's node, which devtmpfs has where it is no module.
func openControl() (*os.File, error) {
	const node, misc, minor = "/dev/mapper/control", 10, 236
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	if err := os.MkdirAll("/dev/mapper", 0o755); err != nil {
		return nil, err
	}
	if err := syscall.Mknod(node, syscall.S_IFCHR|0o600, misc<<8|minor&0xff|(minor&^0xff)<<12); err != nil {
		return nil, err
	}
	return os.OpenFile(node, os.O_RDWR, 0)
}

// uevents are the kernel's messages about devices (lib/kobject_uevent.c).
type uevents struct {
	fd  int
	buf [16 << 10]byte
}

func listen() (*uevents, error) {
	const kobject, force = 15, 33 // NETLINK_KOBJECT_UEVENT, SO_RCVBUFFORCE
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, kobject)
	if err != nil {
		return nil, err
	}
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, force, 4<<20) // else some are lost, and looked for
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1}); err != nil {
		return nil, err
	}
	return &uevents{fd: fd}, nil
}

// next waits for a message at most so long. "" is none: some may have been lost.
func (u *uevents) next(wait time.Duration) string {
	tv := syscall.NsecToTimeval(int64(max(wait, time.Millisecond)))
	if syscall.SetsockoptTimeval(u.fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv) != nil {
		time.Sleep(wait)
		return ""
	}
	n, from, err := syscall.Recvfrom(u.fd, u.buf[:], 0)
	if err != nil || n <= 0 {
		return ""
	}
	if a, ok := from.(*syscall.SockaddrNetlink); !ok || a.Pid != 0 {
		return "" // not the kernel's
	}
	return string(u.buf[:n])
}
