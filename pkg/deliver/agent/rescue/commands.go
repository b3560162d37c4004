package rescue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxOutput bounds what one command prints, in bytes.
const maxOutput = 4 << 20

type builtin struct {
	name, args, help string
	run              func(m Machine, ctx context.Context, args []string, out io.Writer) error
	there            func(Machine) bool // nil: always
}

var builtins []builtin

func init() { // help refers to the list
	builtins = []builtin{
		{"help", "", "this list", Machine.help, nil},
		{"log", "", "the console's tail", say(func(m Machine) string { return m.Console() }), func(m Machine) bool { return m.Console != nil }},
		{"dmesg", "", "the kernel's log", Machine.dmesg, func(m Machine) bool { return m.Kernel != nil || m.Root == "" }},
		{"disks", "", "disks, and what is on them", func(m Machine, ctx context.Context, _ []string, out io.Writer) error {
			_, err := io.WriteString(out, m.Disks(ctx))
			return err
		}, func(m Machine) bool { return m.Disks != nil }},
		{"network", "", "what the agent knows of its network", say(func(m Machine) string { return m.Network() }), func(m Machine) bool { return m.Network != nil }},
		{"ip", "", "interfaces and addresses", Machine.interfaces, nil},
		{"lsmod", "", "modules", show("/proc/modules"), nil},
		{"mounts", "", "file systems", show("/proc/self/mounts"), nil},
		{"ps", "", "processes", Machine.processes, nil},
		{"ls", "PATH", "a directory below /proc, /sys or /dev", Machine.list, nil},
		{"cat", "PATH", "a file below /proc or /sys", Machine.cat, nil},
		{"reboot", "", "restart the machine", act(func(m Machine) func() error { return m.Restart }), func(m Machine) bool { return m.Restart != nil }},
		{"poweroff", "", "switch the machine off", act(func(m Machine) func() error { return m.PowerOff }), func(m Machine) bool { return m.PowerOff != nil }},
	}
}

// Run runs one command line: words at white space, no quotes, no more.
func (m Machine) Run(ctx context.Context, line string, out io.Writer) error {
	words := strings.Fields(line)
	if len(words) == 0 {
		return errors.New("no command; help lists them")
	}
	for _, b := range builtins {
		if b.name != words[0] || b.there != nil && !b.there(m) {
			continue
		}
		if want := len(strings.Fields(b.args)); len(words)-1 != want {
			return fmt.Errorf("usage: %s %s", b.name, b.args)
		}
		return b.run(m, ctx, words[1:], &limited{out, maxOutput})
	}
	return fmt.Errorf("no command %.40q; help lists them", words[0])
}

// limited ends what never ends.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, errors.New("more than 4 MiB; the rest is left out")
	}
	l.left -= len(p)
	return l.w.Write(p)
}

func say(f func(Machine) string) func(Machine, context.Context, []string, io.Writer) error {
	return func(m Machine, _ context.Context, _ []string, out io.Writer) error {
		_, err := io.WriteString(out, strings.TrimSuffix(f(m), "\n")+"\n")
		return err
	}
}

func act(f func(Machine) func() error) func(Machine, context.Context, []string, io.Writer) error {
	return func(m Machine, _ context.Context, _ []string, out io.Writer) error {
		fmt.Fprintln(out, "now")
		if m.Say != nil {
			m.Say("rescue: a visitor ends it")
		}
		return f(m)()
	}
}

func (m Machine) help(_ context.Context, _ []string, out io.Writer) error {
	for _, b := range builtins {
		if b.there == nil || b.there(m) {
			fmt.Fprintf(out, "%-12s %s\n", strings.TrimSpace(b.name+" "+b.args), b.help)
		}
	}
	return nil
}

// inside resolves a path, with all its links, and refuses what is not below one of the
// directories then: /proc/1/root and the like lead out.
func (m Machine) inside(name string, dirs ...string) (string, error) {
	root, err := filepath.EvalSymlinks(filepath.Join("/", m.Root))
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(filepath.Join(root, path.Join("/", name)))
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, bare(err))
	}
	for _, d := range dirs {
		dir := filepath.Join(root, d)
		if real == dir || strings.HasPrefix(real, dir+"/") {
			return real, nil
		}
	}
	return "", fmt.Errorf("%s is not below %s", name, strings.Join(dirs, " or "))
}

// bare is an error without the path that the visitor did not say.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func show(name string) func(Machine, context.Context, []string, io.Writer) error {
	return func(m Machine, ctx context.Context, _ []string, out io.Writer) error {
		return m.cat(ctx, []string{name}, out)
	}
}

// secret are files that hold more than a look: memory, and keys.
func secret(name string) bool {
	return slices.Contains([]string{"kcore", "kmsg", "mem", "environ", "pagemap", "kallsyms", "vmcore", "keys", "sysrq-trigger"}, path.Base(name)) ||
		strings.Contains(name, "/sys/kernel/security/") || strings.Contains(name, "/proc/self/task/") || hasFD(name)
}

func hasFD(name string) bool {
	for e := range strings.SplitSeq(name, "/") {
		if e == "fd" || e == "root" || e == "cwd" || e == "exe" || e == "map_files" {
			return true
		}
	}
	return false
}

func (m Machine) cat(ctx context.Context, args []string, out io.Writer) error {
	if secret(path.Join("/", args[0])) {
		return fmt.Errorf("%s is not shown", args[0])
	}
	real, err := m.inside(args[0], "/proc", "/sys")
	if err != nil {
		return err
	}
	if secret(real) {
		return fmt.Errorf("%s is not shown", args[0])
	}
	info, err := os.Stat(real)
	if err != nil || !info.Mode().IsRegular() { // a FIFO or device would block
		return fmt.Errorf("%s is no file", args[0])
	}
	f, err := os.OpenFile(real, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], bare(err))
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	if _, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{f}, make([]byte, 64<<10)); err != nil {
		return fmt.Errorf("%s: %w", args[0], bare(err))
	}
	return nil
}

func (m Machine) list(_ context.Context, args []string, out io.Writer) error {
	real, err := m.inside(args[0], "/proc", "/sys", "/dev")
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], bare(err))
	}
	for _, e := range entries {
		mark := ""
		if e.IsDir() {
			mark = "/"
		}
		if _, err := fmt.Fprintln(out, e.Name()+mark); err != nil {
			return err
		}
	}
	return nil
}

func (m Machine) processes(_ context.Context, _ []string, out io.Writer) error {
	entries, err := os.ReadDir(filepath.Join("/", m.Root, "proc"))
	if err != nil {
		return bare(err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/", m.Root, "proc", e.Name(), "stat"))
		name, rest := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
		if err != nil || name < 0 || rest < name { // it ended
			continue
		}
		state, _, _ := strings.Cut(strings.TrimSpace(string(b[rest+1:])), " ")
		fmt.Fprintf(out, "%7s %s %q\n", e.Name(), state, b[name+1:rest])
	}
	return nil
}

func (m Machine) interfaces(_ context.Context, _ []string, out io.Writer) error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		fmt.Fprintf(out, "%-15s %s mtu %d %s\n", i.Name, i.HardwareAddr, i.MTU, i.Flags)
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			fmt.Fprintf(out, "    %s\n", a)
		}
	}
	return nil
}

func (m Machine) dmesg(ctx context.Context, _ []string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	read := m.Kernel
	if read == nil {
		read = kernelLog
	}
	lines, err := read(ctx)
	for _, l := range lines {
		if _, err := fmt.Fprintln(out, l); err != nil {
			return err
		}
	}
	return err
}
