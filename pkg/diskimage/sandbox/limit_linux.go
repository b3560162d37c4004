package sandbox

import (
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilities are what programs of root may have: what package managers need.
var capabilities = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SETFCAP, unix.CAP_SYS_CHROOT, unix.CAP_NET_BIND_SERVICE,
}

// limit takes from this thread, and so from what it starts, what a step may not do.
// The thread must be locked.
func limit() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if !slices.Contains(capabilities, c) {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL { // EINVAL: an older kernel
				return fmt.Errorf("capability %d: %w", c, err)
			}
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	caps[0].Inheritable, caps[1].Inheritable = 0, 0
	if err := unix.Capset(&head, &caps[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	for _, l := range []struct {
		what      int
		soft, max uint64
	}{{unix.RLIMIT_CORE, 0, 0}, {unix.RLIMIT_NOFILE, 1024, 1 << 19}, {unix.RLIMIT_NPROC, 1 << 12, 1 << 12}} {
		var is syscall.Rlimit
		if err := syscall.Getrlimit(l.what, &is); err != nil {
			return err
		}
		is.Max = min(is.Max, l.max)
		is.Cur = min(is.Max, l.soft)
		if err := syscall.Setrlimit(l.what, &is); err != nil {
			return fmt.Errorf("limit %d: %w", l.what, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	return filter()
}

// refused are system calls that nothing in a build needs and that reach what no
// namespace separates: keys, BPF, performance counters, kernels, swap, quotas.
var refused = []uint32{
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL, unix.SYS_SYSLOG,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_OPEN_BY_HANDLE_AT,
}

// idle are those that flush: what is kept is flushed by the build, once.
var idle = []uint32{unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC, unix.SYS_SYNCFS, unix.SYS_SYNC_FILE_RANGE, unix.SYS_MSYNC}

// architectures are the AUDIT_ARCH of this program's own system calls.
var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// filter installs a seccomp filter (seccomp(2)) on this thread. Programs of another
// call table, such as 32-bit ones, are not filtered: it is a second line, and a
// saving of time, and namespaces and capabilities hold without it.
func filter() error {
	arch, ok := architectures[runtime.GOARCH]
	if !ok {
		return nil
	}
	const (
		offNr, offArch = 0, 4 // of struct seccomp_data
		ret, jeq, load = unix.BPF_RET | unix.BPF_K, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		allow, errno   = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO
	)
	p := []unix.SockFilter{{Code: load, K: offArch}, {Code: jeq, Jt: 1, K: arch}, {Code: ret, K: allow}, {Code: load, K: offNr}}
	for _, list := range []struct {
		calls  []uint32
		answer uint32
	}{{refused, errno | uint32(unix.EPERM)}, {idle, errno}} {
		for _, nr := range list.calls {
			p = append(p, unix.SockFilter{Code: jeq, Jf: 1, K: nr}, unix.SockFilter{Code: ret, K: list.answer})
		}
	}
	p = append(p, unix.SockFilter{Code: ret, K: allow})
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 && e != unix.EINVAL && e != unix.ENOSYS {
		return fmt.Errorf("seccomp: %w", e)
	}
	return nil
}
