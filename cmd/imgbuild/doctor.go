package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/kvm"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "say what this host can do, and how to mend what it cannot",
		Description: `Tries what builds, steps and tests need, as the user who asks, and says of each whether
it is there; if not, why, and the line that mends it. What only some recipes need is
"optional". Exits with 1 if something that every build needs is missing.

  imgbuild doctor
  imgbuild doctor --json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "cache", Usage: "the cache `DIR` of builds", EnvVars: []string{"IMGPIPE_CACHE"}, DefaultText: "the user's cache"},
			&cli.StringFlag{Name: "scratch", Usage: "`DIR` for work directories", DefaultText: "memory where there is enough"},
		},
		Action: runDoctor,
	}
}

// finding is what doctor says of one thing.
type finding struct {
	Name  string `json:"name"`
	State string `json:"state"`         // ok, missing, optional: missing, but only some recipes need it
	Why   string `json:"why,omitempty"` // or what was found
	Fix   string `json:"fix,omitempty"` // one line
	For   string `json:"for"`           // what needs it
}

func runDoctor(c *cli.Context) error {
	cache, err := cacheDir(c)
	if err != nil {
		return err
	}
	d := &doctor{scratch: c.String("scratch"), cache: cache}
	d.all(c.Context)
	if err := c.Context.Err(); err != nil {
		return err
	}
	missing := 0
	for _, f := range d.found {
		if f.State == "missing" {
			missing++
		}
	}
	err = ui.From(c).Result(d.found, func(w io.Writer) error {
		for _, f := range d.found {
			line := fmt.Sprintf("%-9s %-20s %s", f.State, f.Name, f.Why)
			if f.State != "ok" {
				line += fmt.Sprintf(" (for %s)", f.For)
			}
			if f.Fix != "" {
				line += "\n" + strings.Repeat(" ", 31) + "try: " + f.Fix
			}
			if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && missing > 0 {
		err = ui.Fail(ui.ExitOther, fmt.Errorf("%d of what every build needs is missing", missing), "")
	}
	return err
}

type doctor struct {
	cache, scratch string
	found          []finding
}

func (d *doctor) say(f finding, why error) {
	if why != nil {
		f.Why = strings.ReplaceAll(why.Error(), "\n", " ")
	} else {
		f.State, f.Fix = "ok", ""
	}
	d.found = append(d.found, f)
}

const (
	needed   = "missing"
	optional = "optional"
)

func (d *doctor) all(ctx context.Context) {
	root := os.Geteuid() == 0
	d.program("mmdebstrap", "mmdebstrap", "a Debian base", needed)
	d.program("apt-get", "apt", "a Debian base", needed)
	d.file("archive keys", "/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring", "a Debian base", needed)
	if !root {
		d.program("newuidmap", "uidmap", "building as an ordinary user", needed)
		d.subordinate()
	}
	d.namespaces()
	d.box(ctx)
	d.room()
	d.kvm(ctx)
	d.program("qemu-system-x86_64", "qemu-system-x86", "imgbuild test and boot", optional)
	d.file("OVMF", "/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf", "imgbuild test and boot", optional)
	d.program("qemu-system-aarch64", "qemu-system-arm", "imgbuild test of arm64", optional)
	d.file("AAVMF", "/usr/share/AAVMF/AAVMF_CODE.fd", "qemu-efi-aarch64", "imgbuild test of arm64", optional)
	d.emulation()
}

func (d *doctor) program(name, pkg, purpose, state string) {
	path, err := exec.LookPath(name)
	if err != nil {
		err = errors.New("is not installed")
	}
	d.say(finding{Name: name, State: state, Why: path, Fix: "apt-get install " + pkg, For: purpose}, err)
}

func (d *doctor) file(name, path, pkg, purpose, state string) {
	_, err := os.Stat(path)
	d.say(finding{Name: name, State: state, Why: path, Fix: "apt-get install " + pkg, For: purpose}, err)
}

// subordinate looks for an ordinary user's ranges of ids.
func (d *doctor) subordinate() {
	why, err := sandbox.IDs()
	f := finding{Name: "subordinate ids", State: needed, For: "building as an ordinary user", Why: why}
	if err != nil {
		if problem, fix, ok := strings.Cut(err.Error(), ": as root, run: "); ok {
			err, f.Fix = errors.New(problem), fix
		}
	}
	d.say(f, err)
}

// namespaces reads what may forbid user namespaces; whether they work, box tries.
func (d *doctor) namespaces() {
	number := func(name string) string {
		b, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	f := finding{Name: "user namespaces", State: needed, For: "building as an ordinary user, run steps", Why: "allowed"}
	root := os.Geteuid() == 0
	switch {
	case number("user/max_user_namespaces") == "0":
		f.Fix = "sysctl -w user.max_user_namespaces=65536"
		if root {
			f.State = optional
		}
		d.say(f, errors.New("user.max_user_namespaces is 0"))
	case !root && number("kernel/unprivileged_userns_clone") == "0":
		f.Fix = "sysctl -w kernel.unprivileged_userns_clone=1"
		d.say(f, errors.New("kernel.unprivileged_userns_clone is 0"))
	case !root && number("kernel/apparmor_restrict_unprivileged_userns") == "1":
		f.Fix = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for imgbuild with 'userns,'"
		d.say(f, errors.New("AppArmor gives namespaces no rights (Ubuntu 23.10 and later)"))
	default:
		d.say(f, nil)
	}
}

// box runs a program in a sandbox.
func (d *doctor) box(ctx context.Context) {
	f := finding{Name: "sandbox", State: optional, For: "run steps, packages on other bases", Why: "a program ran in one"}
	err := os.MkdirAll(d.cache, 0o755)
	if err == nil {
		err = sandbox.Check(ctx, d.cache, d.scratch)
	}
	d.say(f, err)
}

// room says how much a work directory may take, and where.
func (d *doctor) room() {
	const least = 2 << 30
	memory, disk, dir := sandbox.Room(d.scratch)
	f := finding{Name: "room", State: needed, For: "any build", Why: fmt.Sprintf("%s of memory, %s in %s", ui.Bytes(memory), ui.Bytes(disk), dir),
		Fix: "free some, or name another folder: --scratch DIR"}
	var err error
	if memory < least+least/2 && disk < least {
		err = errors.New(f.Why)
	}
	d.say(f, err)
	f = finding{Name: "cache", State: needed, For: "any build", Fix: "--cache DIR, or imgbuild cache prune"}
	if err = os.MkdirAll(d.cache, 0o755); err == nil {
		_, disk, dir = sandbox.Room(d.cache)
		f.Why = fmt.Sprintf("%s free in %s", ui.Bytes(disk), dir)
		if disk < least {
			err = errors.New(f.Why)
		}
	}
	d.say(f, err)
}

// kvmTimeout is ample for one instruction.
const kvmTimeout = 5 * time.Second

func (d *doctor) kvm(ctx context.Context) {
	f := finding{Name: "kvm", State: optional, For: "imgbuild test and boot in seconds instead of minutes", Why: "a guest ran and halted"}
	ctx, cancel := context.WithTimeout(ctx, kvmTimeout)
	defer cancel()
	err := kvm.Check(ctx)
	switch {
	case errors.Is(err, os.ErrPermission):
		f.Fix = "usermod -aG kvm USER, and log in again"
	case errors.Is(err, os.ErrNotExist):
		f.Fix = "virtualization in the firmware, or nested virtualization on the host"
	}
	d.say(f, err)
}

// emulation tries programs of the other architectures.
func (d *doctor) emulation() {
	for _, arch := range []string{"amd64", "arm64"} {
		if arch == runtime.GOARCH {
			continue
		}
		f := finding{Name: arch + " programs", State: optional, For: "building " + arch + " images", Why: "one ran, slowly"}
		err := sandbox.Foreign(arch)
		if err != nil {
			if problem, fix, ok := strings.Cut(err.Error(), ": as root, run: "); ok {
				err, f.Fix = errors.New(problem), fix
			}
		}
		d.say(f, err)
		d.program("arch-test", "arch-test", "a Debian base of "+arch, optional)
	}
}
