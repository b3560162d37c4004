package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/call"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/clock"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/hw"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/install"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/kexec"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/machine"
	agentnet "github.com/imgpipe/imgpipe/pkg/deliver/agent/network"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/rescue"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/system"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/identity"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/environment"
)

// pid1 is the agent as the first process of a machine.
type pid1 struct {
	console  *system.Console
	env      *environment.Config
	cmdline  string
	net      *agentnet.Network
	watched  chan struct{} // closed once nobody pings the watchdog, and it is stopped
	contact  atomic.Int64  // uptime in nanoseconds when the server answered last
	answered atomic.Bool   // it did
}

// runInit is main for PID 1. It never returns: a kernel whose first process ends
// panics.
func runInit() {
	system.Mount(func(format string, args ...any) { fmt.Fprintf(os.Stderr, "imgpipe: "+format+"\n", args...) })
	system.Reap()
	p := &pid1{console: system.OpenConsole()}
	for try := 1; ; try++ {
		ending := p.guarded()
		p.end(ending)
		// It did not work. To hold is never wrong: the disk is not touched.
		wait := time.Duration(min(try, 6)) * (5*time.Minute + rand.N(5*time.Minute))
		p.say("this machine holds, and restarts in %v", wait.Round(time.Second))
		time.Sleep(wait)
		p.end(agent.Restart)
	}
}

func (p *pid1) say(format string, args ...any) { p.console.Say(format, args...) }

// beside starts work that goes on beside the agent. A mistake in it ends it, and
// not the machine.
func (p *pid1) beside(work func()) {
	go func() {
		defer func() {
			if r := recover(); r != nil {
				p.say("this is a mistake in the agent: %v", r)
			}
		}()
		work()
	}()
}

// guarded runs the agent. Whatever goes wrong in it does not end PID 1.
func (p *pid1) guarded() (ending agent.Ending) {
	defer func() {
		if r := recover(); r != nil {
			p.say("this is a mistake in the agent: %v", r)
			for line := range strings.Lines(string(debug.Stack())) {
				p.say("%s", strings.TrimRight(line, "\n"))
			}
			ending = agent.Stopped
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ending, err := p.run(ctx)
	if err != nil {
		p.say("FAILED: %v", err)
		return agent.Stopped
	}
	return ending
}

// end ends the machine; it returns only if that fails.
func (p *pid1) end(e agent.Ending) {
	var err error
	switch e {
	case agent.Restart:
		p.say("restarting")
		err = system.Restart()
	case agent.PowerOff:
		p.say("switching off")
		err = system.PowerOff()
	case agent.Kexec:
		p.say("starting the image's kernel")
		select { // a watchdog that runs on would end it
		case <-p.watched:
		case <-time.After(2 * time.Second):
		}
		if err = system.Kexec(); err != nil {
			p.say("warning: %v; restarting", err)
			err = system.Restart()
		}
	default:
		return
	}
	p.say("%s: %v", e, err)
}

// run is the way from the kernel to the server's word how the machine goes on.
func (p *pid1) run(ctx context.Context) (agent.Ending, error) {
	p.say("imgpipe agent %s, process 1", agentVersion())
	p.beside(func() { p.console.Kernel(ctx) })
	p.watched = make(chan struct{})
	p.beside(func() {
		defer close(p.watched)
		system.Watchdog(ctx)
	})
	if err := p.believe(); err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	p.cmdline = string(b)
	p.hardware(ctx)
	config, problems := agentnet.ParseCmdline(p.cmdline)
	for _, err := range problems {
		p.say("%v", err)
	}
	p.clock(time.Time{}, time.Time{})
	options := agentnet.Options{UUID: p.uuid(), UEFI: machine.System{}.UEFI(), Reached: p.answered.Load}
	if p.net, err = agentnet.Up(ctx, config, p.say, options); err != nil {
		return "", fmt.Errorf("network: %w", err)
	}
	defer p.net.Close()
	p.sntp(ctx)
	return p.serve(ctx, config.BootMAC)
}

// uuid is the machine's, unless it is one that many machines have: to a DHCP server
// they would be one.
func (p *pid1) uuid() string {
	return identity.UUID(machine.System{}.UUID())
}

// believe reads what the environment says of itself, once its files are found to
// be whole: a kernel with too little memory boots on with files missing.
func (p *pid1) believe() error {
	root := os.DirFS("/")
	b, err := fs.ReadFile(root, strings.TrimPrefix(environment.ManifestPath, "/"))
	if err == nil {
		var m environment.Manifest
		if m, err = environment.ParseManifest(b); err == nil {
			var bad []environment.Problem
			if bad, err = m.Verify(root, 5); err == nil && len(bad) > 0 {
				for _, f := range bad {
					p.say("%s: %s", f.Path, f.What)
				}
				err = fmt.Errorf("the environment is not whole, probably because %d MB of memory are too few for it: nothing is done with any disk", machine.System{}.Memory("MemTotal")/1e6)
			}
		}
	}
	if err != nil {
		return err
	}
	if b, err = os.ReadFile(environment.ConfigPath); err != nil {
		return err
	}
	if p.env, err = environment.Parse(b); err != nil {
		return err
	}
	// Where memory is short, garbage is collected sooner: nothing else would give way.
	debug.SetMemoryLimit(max(available()*3/4, 64<<20))
	p.say("environment %s %s, kernel %s, %d MiB of memory, %d of them free", p.env.Name, p.env.Release, p.env.Kernel, machine.System{}.Memory("MemTotal")>>20, available()>>20)
	if p.env.Jobs == environment.Insecure {
		p.say("WARNING: this environment was built to take jobs from any server")
	}
	return nil
}

// driversTime is how long drivers are waited for: one whose device hangs is in
// nobody's way for ever.
const driversTime = 90 * time.Second

// hardware loads drivers until nothing asks for more, and goes on beside: what is
// plugged in later, or found late, is driven, too.
func (p *pid1) hardware(ctx context.Context) {
	m, err := hw.Open("/", p.env.Kernel)
	if err != nil {
		p.say("modules: %v", err)
		return
	}
	quiet := make(chan int, 1)
	p.beside(func() {
		for _, name := range []string{"efivarfs", "af_packet", "8021q", "bonding"} {
			if err := m.Load(name); err != nil && !errors.Is(err, hw.ErrNone) {
				p.say("module %v", err)
			}
		}
		quiet <- m.Coldplug(ctx, p.say)
		for ctx.Err() == nil {
			time.Sleep(2 * time.Second)
			m.Coldplug(ctx, p.say)
		}
	})
	select {
	case n := <-quiet:
		p.say("%d modules loaded", n)
	case <-time.After(driversTime):
		p.say("warning: a driver has not come back after %v; going on without", driversTime)
	}
	system.MountVariables(p.say)
}

// clock sets the clock to the server's time, else SNTP's, else the machine's own,
// else the environment's floor: the first that is plausible. No trust depends on it.
func (p *pid1) clock(sntp, server time.Time) {
	now := time.Now()
	t, why := clock.Choose(p.env.FloorTime(), now, sntp, server)
	if t.Sub(now).Abs() > 2*time.Second {
		p.say("clock: %s by %s, and was %s", t.UTC().Format(time.DateTime), why, now.UTC().Format(time.DateTime))
		if err := clock.Set(t); err != nil {
			p.say("clock: %v", err)
		}
	}
	if t.Equal(server) && p.env.Jobs != environment.Insecure { // the next system starts with it
		if set, err := clock.KeepRTC(t); err != nil {
			p.say("clock: %v", err)
		} else if set {
			p.say("clock: the machine's own is set, too")
		}
	}
}

// sntp asks the time servers that DHCP names, the first two of them.
func (p *pid1) sntp(ctx context.Context) {
	servers := p.net.NTP()
	for _, server := range servers[:min(2, len(servers))] {
		t, err := clock.SNTP(ctx, server)
		if err == nil {
			p.clock(t, time.Time{})
			return
		}
		p.say("clock: %v", err)
	}
}

// rescue lets a person with one of the keys look at this machine, or nobody for
// none. It is only called where the environment allows it.
func (p *pid1) rescue(ctx context.Context) func(keys []string) {
	var open []string
	stop := func() {}
	return func(keys []string) {
		if slices.Equal(keys, open) {
			return
		}
		stop()
		if open, stop = keys, func() {}; len(keys) == 0 {
			return
		}
		l, err := net.Listen("tcp", ":22")
		if err != nil {
			p.say("rescue: %v", err)
			open = nil
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		stop = func() { cancel(); <-done }
		p.beside(func() {
			defer close(done)
			err := rescue.Serve(ctx, l, keys, rescue.Machine{
				Say: func(line string) { p.say("%s", line) }, Console: func() string { return p.console.Tail(wire.MaxLog) },
				Disks: describeDisks, Restart: system.Restart, PowerOff: system.PowerOff,
			})
			if err != nil {
				p.say("rescue: %v", err)
			}
		})
	}
}

// describeDisks is a table of the machine's disks, for people.
func describeDisks(ctx context.Context) string {
	var b strings.Builder
	for _, d := range inventory(ctx).Disks {
		fmt.Fprintf(&b, "%s\t%.1f GB\t%s %s\t%s\n", d.Name, float64(d.Size)/1e9, d.Model, d.Serial, d.Holds)
	}
	return b.String()
}

// serve asks for jobs and does them.
func (p *pid1) serve(ctx context.Context, booted string) (agent.Ending, error) {
	client, err := serverClient(p.env, p.net.Servers, p.say)
	if err != nil {
		return "", err
	}
	defer client.Close()
	t, err := trustOf(p.env.Trust)
	if err != nil {
		return "", fmt.Errorf("the environment's trust: %w", err)
	}
	p.say("boot key %s; servers: %s", client.Key(), strings.Join(append([]string{p.env.Server.URL}, p.net.Servers()...), " "))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.contact.Store(int64(system.Uptime()))
	p.beside(func() { p.lonely(ctx, cancel) })
	a := &agent.Agent{
		Server: heard{client, p},
		Installer: &install.Installer{Open: opener{client, t}.open, Architecture: runtime.GOARCH, Entries: entries, Memory: available,
			Kexec: func(disk io.ReaderAt, esp diskimage.Extent) error {
				return kexec.Load(disk, esp, kexec.Options{Free: available()})
			}},
		Describe: func(ctx context.Context) (wire.Identity, wire.Inventory) {
			return machine.System{}.Identity(booted), inventory(ctx)
		},
		Environment: wire.Environment{Name: p.env.Name, Version: p.env.Release, Kernel: p.env.Kernel, Agent: agentVersion(),
			Insecure: p.env.Jobs == environment.Insecure, UKI: stubbed()},
		Say: p.say, Log: p.console.Tail, Uptime: system.Uptime, Clock: func(t time.Time) { p.clock(time.Time{}, t) },
	}
	if p.env.Rescue {
		a.Rescue = p.rescue(ctx)
	}
	ending := a.Run(ctx)
	p.say("memory: this program had %d MiB at most, %d are free", machine.System{}.Peak()>>20, available()>>20)
	if ending == agent.Stopped && ctx.Err() != nil {
		return agent.Restart, nil
	}
	return ending, nil
}

// available is how many bytes of memory may still be used.
func available() int64 { return machine.System{}.Memory("MemAvailable") }

// lonely ends the agent where no server answered for an hour or so: its network
// card may be stuck, or the environment older than the server's CA.
func (p *pid1) lonely(ctx context.Context, end func()) {
	limit := time.Hour + rand.N(time.Hour)
	for ctx.Err() == nil {
		time.Sleep(10 * time.Second)
		if alone := system.Uptime() - time.Duration(p.contact.Load()); alone > limit {
			p.say("no server has answered for %v", alone.Round(time.Minute))
			end()
		}
	}
}

// heard notes when the server answers.
type heard struct {
	*call.Client
	p *pid1
}

func (h heard) note() {
	h.p.contact.Store(int64(system.Uptime()))
	h.p.answered.Store(true)
}

func (h heard) Claim(ctx context.Context, m *wire.Claim) (*wire.Answer, error) {
	a, err := h.Client.Claim(ctx, m)
	h.noteUnless(err)
	return a, err
}

func (h heard) Events(ctx context.Context, job string, m *wire.Events) (*wire.Ack, error) {
	a, err := h.Client.Events(ctx, job, m)
	h.noteUnless(err)
	return a, err
}

func (h heard) noteUnless(err error) {
	if _, refused := errors.AsType[*call.Refused](err); err == nil || refused {
		h.note()
	}
}

// inventory describes the machine, its disks included.
func inventory(ctx context.Context) wire.Inventory {
	inv := machine.System{}.Inventory()
	devices, err := blockdev.System{}.List(ctx, blockdev.ListOptions{Read: true, Probe: probe})
	if err != nil {
		return inv
	}
	for i := range devices {
		if d := &devices[i]; d.Kind == blockdev.KindDisk {
			inv.Disks = append(inv.Disks, install.WireDisk(d))
		}
	}
	inv.Disks = inv.Disks[:min(len(inv.Disks), 1024)]
	return inv
}

// stubbed reports whether the kernel came out of a UKI: its stub leaves a
// variable that says so (systemd-stub(7)).
func stubbed() bool {
	found, _ := os.ReadDir("/sys/firmware/efi/efivars") // none: no firmware that knows
	return slices.ContainsFunc(found, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "StubInfo-") })
}
