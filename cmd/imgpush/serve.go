package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/localboot"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "boot machines from the network and have them write their disks",
		ArgsUsage: "[SITE.yaml]",
		Description: `Serves the machines of a site: DHCP beside the site's own server (or as the only one),
TFTP, HTTP, the jobs of the agents that machines boot into memory, and a cache of
images. Without a job a machine boots its own disk; imgpush deploy makes jobs.
Without an argument it is ./SITE.yaml, else /etc/imgpipe/SITE.yaml.

SIGHUP reads SITE.yaml again: wholly, or, with a mistake in it, not at all. SIGTERM
lets running requests end, ten seconds at most; agents find the server again.

  imgpush serve --init SITE.yaml     # makes the CA that environments have built in
  imgpush serve SITE.yaml
  imgpush serve --schema > site.schema.json`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "check", Usage: "read SITE.yaml, say what is wrong with it, and exit"},
			&cli.BoolFlag{Name: "schema", Usage: "print the JSON Schema of SITE.yaml, and exit"},
			&cli.BoolFlag{Name: "init", Usage: "make the site's CA if there is none, print the path of its certificate, and exit"},
			&cli.BoolFlag{Name: "verbose", Usage: "log each request"},
		}, refs.Flags()...),
		Action: runServe,
	}
}

// siteFiles are where SITE.yaml is looked for.
var siteFiles = []string{"SITE.yaml", "/etc/imgpipe/SITE.yaml"}

func runServe(c *cli.Context) error {
	if c.Bool("schema") {
		_, err := c.App.Writer.Write(site.Schema())
		return err
	}
	if c.NArg() > 1 {
		return ui.Usagef(c, "serve takes one SITE.yaml, got %d arguments", c.NArg())
	}
	file := c.Args().First()
	if file == "" {
		for _, file = range siteFiles {
			if _, err := os.Stat(file); err == nil {
				break
			}
		}
	}
	now, err := loadSite(file)
	if err != nil {
		return err
	}
	switch {
	case c.Bool("check"):
		return ui.From(c).Result(map[string]any{"site": file, "machines": len(now.Machines)}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s: %d machines, no mistakes\n", file, len(now.Machines))
			return err
		})
	case c.Bool("init"):
		path, err := netboot.Init(now.State, time.Now(), rand.Reader)
		if err != nil {
			return ui.Fail(ui.ExitTarget, err, "")
		}
		return ui.From(c).Result(map[string]any{"ca": path}, func(w io.Writer) error { _, err := fmt.Fprintln(w, path); return err })
	}
	return serveSite(c, file, now)
}

func loadSite(file string) (*site.Site, error) {
	s, err := site.Load(file, site.Options{Getenv: os.LookupEnv})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ui.Fail(ui.ExitUsage, err, "docs/site.md has an example")
	}
	return s, ui.Fail(ui.ExitUsage, err, "docs/site.md has the language")
}

func serveSite(c *cli.Context, file string, now *site.Site) (err error) {
	// The log goes to stderr, a line or a JSON object for each event.
	level := &slog.HandlerOptions{Level: slog.LevelInfo}
	if c.Bool("verbose") {
		level.Level = slog.LevelDebug
	}
	var handler slog.Handler = slog.NewTextHandler(c.App.ErrWriter, level)
	if c.Bool("json") {
		handler = slog.NewJSONHandler(c.App.ErrWriter, level)
	}
	log := slog.New(handler)
	way, err := siteWay(c, now)
	if err != nil {
		return err
	}
	src := &source{way: way, state: now.State}
	address, err := serverAddress(now)
	if err != nil {
		return err
	}
	l, err := listenSite(now)
	if err != nil {
		return err
	}
	defer func() { closeAll(l) }() // again, where Run did so
	kept, err := openBlobs(now, src, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	n := &network{log: log, site: now, address: address}
	o := netboot.Options{
		Site: now, Resolve: src.resolve, Address: address, PlainPort: port(l.Plain), TLSPort: port(l.TLS),
		Cache: kept, Staged: kept.StageHandler(kept.find), Metrics: []func(io.Writer){kept.WriteMetrics},
		Programs: localPrograms(), Power: runPower, Now: time.Now, Rand: rand.Reader, Log: log,
	}
	s, err := n.open(o, src)
	if err != nil {
		return ui.Fail(ui.ExitTarget, err, "")
	}
	kept.server.Store(s)
	ctx, cancel := context.WithCancelCause(c.Context)
	var works sync.WaitGroup
	defer works.Wait()
	defer cancel(nil)
	load := make(chan *site.Site, 1)
	load <- now
	works.Go(func() { src.follow(ctx, s, load, log) })
	works.Go(func() { kept.pin(ctx, s) })
	works.Go(func() { reload(ctx, file, s, load, log) })
	if err := n.start(ctx, s, &works, cancel); err != nil {
		return errors.Join(err, s.Close())
	}
	err = ui.From(c).Result(map[string]any{"plain": fmt.Sprintf("http://%s:%d", address, o.PlainPort), "tls": fmt.Sprintf("https://%s:%d", address, o.TLSPort),
		"socket": now.Admin.Socket, "ca": filepath.Join(now.State, "ca.crt"), "machines": len(now.Machines)}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "serving %d machines of %s at http://%s:%d and https://%s:%d\n", len(now.Machines), file, address, o.PlainPort, address, o.TLSPort)
		return err
	})
	if err != nil {
		return errors.Join(err, s.Close())
	}
	err = s.Run(ctx, l)
	if cause := context.Cause(ctx); c.Context.Err() == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err // being told to stop is how a server ends
}

// localPrograms send firmware on to its disk.
func localPrograms() map[string][]byte {
	out := map[string][]byte{}
	for _, arch := range []string{"amd64", "arm64"} {
		out[netboot.LocalName(arch)] = localboot.Program(arch)
	}
	return out
}

// siteWay is how the registries of a site are reached. A password on stdin is for
// the one that SITE.yaml names; one that is only an order's, or that a later
// SITE.yaml names, is reached as docker's configuration says.
func siteWay(c *cli.Context, now *site.Site) (*refs.Way, error) {
	for _, m := range now.Cache.Mirrors {
		if err := c.Set("mirror", m); err != nil {
			return nil, err
		}
	}
	named := []string{now.Environment.Ref, now.Defaults.Image}
	for _, m := range now.Machines {
		named = append(named, m.Image)
	}
	return refs.ReadWay(c, named...)
}

// follow fetches the environment, and again when a site is loaded.
func (s *source) follow(ctx context.Context, server *netboot.Server, sites <-chan *site.Site, log *slog.Logger) {
	var now *site.Site
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now = <-sites:
		case <-again:
		}
		limited, cancel := context.WithTimeout(ctx, environmentTime)
		env, fresh, err := s.environment(limited, now)
		cancel()
		again = nil
		switch {
		case ctx.Err() != nil:
			return
		case env == nil:
			log.Error("environment: machines get none until it is there", "ref", now.Environment.Ref, "error", err)
			again = time.After(environmentAgain)
		case !fresh:
			server.SetEnvironment(env) // before the log says that it is there
			log.Warn("environment: as it was verified before", "ref", now.Environment.Ref, "digest", env.Digest, "error", err)
			again = time.After(environmentAgain)
		default:
			server.SetEnvironment(env)
			log.Info("environment", "ref", now.Environment.Ref, "digest", env.Digest, "name", env.Name, "version", env.Version)
			if _, signed := env.Files[netboot.LocalFile]; !signed {
				for _, m := range now.Machines {
					if m.Level == "L2" {
						log.Warn("environment: not signed for Secure Boot; machines of level L2 do not start it", "machine", m.Name)
						break
					}
				}
			}
		}
	}
}

// reload reads SITE.yaml at SIGHUP.
func reload(ctx context.Context, file string, server *netboot.Server, sites chan *site.Site, log *slog.Logger) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		next, err := loadSite(file)
		if err == nil {
			err = server.Reload(next)
		}
		if err != nil {
			log.Error("reload: what was read before goes on", "file", file, "error", err)
			continue
		}
		log.Info("reload", "file", file, "machines", len(next.Machines))
		select {
		case <-sites: // nobody has looked at it yet
		default:
		}
		sites <- next
	}
}

// serverAddress is the address by which machines reach this server.
func serverAddress(s *site.Site) (string, error) {
	if s.Network.Address != "" {
		return s.Network.Address, nil
	}
	if len(s.Network.Interfaces) == 0 {
		return "", ui.Fail(ui.ExitUsage, errors.New("network.address is missing in SITE.yaml: by which address do machines reach this server?"), "network: {address: 10.1.0.2}")
	}
	i, err := net.InterfaceByName(s.Network.Interfaces[0])
	if err != nil {
		return "", ui.Fail(ui.ExitUsage, fmt.Errorf("network.interfaces: %s: %w", s.Network.Interfaces[0], err), "ip link lists them")
	}
	all, err := i.Addrs()
	if err != nil {
		return "", err
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			return n.IP.String(), nil
		}
	}
	return "", ui.Fail(ui.ExitUsage, fmt.Errorf("interface %s has no IPv4 address", i.Name), "give it one, or say network.address")
}

// listenSite opens the ports and the admin socket.
func listenSite(s *site.Site) (l netboot.Listeners, err error) {
	defer func() {
		if err != nil {
			closeAll(l)
		}
	}()
	for _, p := range []struct {
		name string
		port int
		to   *net.Listener
	}{{"http", s.Network.Ports.HTTP, &l.Plain}, {"https", s.Network.Ports.HTTPS, &l.TLS}} {
		if *p.to, err = net.Listen("tcp", net.JoinHostPort(s.Network.Listen, strconv.Itoa(p.port))); err != nil {
			return l, ui.Fail(ui.ExitOther, fmt.Errorf("network.ports.%s: %w", p.name, err), "stop what listens there, or choose another port in SITE.yaml")
		}
	}
	l.Admin, err = adminSocket(s.Admin)
	return l, err
}

// adminSocket makes the socket, where no other process serves it.
func adminSocket(a site.Admin) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(a.Socket), 0o755); err != nil {
		return nil, ui.Fail(ui.ExitTarget, fmt.Errorf("admin.socket: %w", err), "say another path in SITE.yaml")
	}
	if conn, err := net.Dial("unix", a.Socket); err == nil {
		_ = conn.Close() // it was only to see who is there
		return nil, ui.Fail(ui.ExitTarget, fmt.Errorf("admin.socket: %s is served by another process", a.Socket), "stop it, or say another path in SITE.yaml")
	}
	if info, err := os.Lstat(a.Socket); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(a.Socket); err != nil {
			return nil, ui.Fail(ui.ExitTarget, err, "")
		}
	}
	old := syscall.Umask(0o177) // it is nobody else's, not even for a moment
	l, err := net.Listen("unix", a.Socket)
	syscall.Umask(old)
	if err != nil {
		return nil, ui.Fail(ui.ExitTarget, fmt.Errorf("admin.socket: %w", err), "")
	}
	if a.Group == "" {
		return l, nil
	}
	g, err := user.LookupGroup(a.Group)
	if err == nil {
		var id int
		if id, err = strconv.Atoi(g.Gid); err == nil {
			err = os.Chown(a.Socket, -1, id)
		}
	}
	if err == nil {
		err = os.Chmod(a.Socket, 0o660)
	}
	if err != nil {
		return nil, ui.Fail(ui.ExitTarget, errors.Join(fmt.Errorf("admin.group: %w", err), l.Close()), "")
	}
	return l, nil
}

func closeAll(l netboot.Listeners) {
	for _, x := range []net.Listener{l.Plain, l.TLS, l.Admin} {
		if x != nil {
			_ = x.Close() // nobody was served, or Run closed it
		}
	}
}

func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// runPower runs a machine's power command. What it says is in the error.
func runPower(ctx context.Context, argv, env []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}, env...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		out = bytes.ToValidUTF8(bytes.TrimSpace(out[max(0, len(out)-500):]), []byte("?"))
		return fmt.Errorf("%s: %w: %s", argv[0], err, out)
	}
	return nil
}
