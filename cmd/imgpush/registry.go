package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

func registryCommand() *cli.Command {
	return &cli.Command{
		Name:      "registry",
		Usage:     "serve a directory of layouts as a registry",
		ArgsUsage: "DIR",
		Description: `Every layout below DIR is a repository: DIR/acme/server is HOST/acme/server, and
oci:DIR/acme/server at the same time. Any OCI client pushes and pulls; blobs that
repositories share are stored once. It is for laptops, labs and sites.

It listens on loopback unless --listen says otherwise, which then needs a certificate,
or --plain-http. Ctrl-C or SIGTERM lets running requests end, ten seconds at most.

Deleted and overwritten images take room until --gc removes them, while no registry runs.

  imgpush registry images
  imgpush registry images --listen :5000 --tls-cert a.crt --tls-key a.key --htpasswd users
  imgpush registry images --gc`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "listen on `ADDRESS`, HOST:PORT; port 0 is any free one", Value: "127.0.0.1:5000"},
			&cli.BoolFlag{Name: "read-only", Usage: "refuse whatever changes DIR"},
			&cli.StringFlag{Name: "tls-cert", Usage: "serve HTTPS with the certificate in `FILE` (PEM), and those that signed it"},
			&cli.StringFlag{Name: "tls-key", Usage: "the certificate's key in `FILE` (PEM)"},
			&cli.StringFlag{Name: "htpasswd", Usage: "ask for a name and a password of `FILE`, as htpasswd -B writes it"},
			&cli.BoolFlag{Name: "anonymous-pull", Usage: "with --htpasswd, ask only who pushes"},
			&cli.BoolFlag{Name: "plain-http", Usage: "listen beyond loopback without TLS: everybody on the way may read and change all"},
			&cli.Int64Flag{Name: "max-blob", Usage: "take blobs of at most `N` GiB", Value: 64},
			&cli.BoolFlag{Name: "gc", Usage: "delete what no tag names any more, and exit"},
		},
		Action: runRegistry,
	}
}

// stopTime is how long requests may go on after a signal.
const stopTime = 10 * time.Second

func runRegistry(c *cli.Context) error {
	if c.NArg() != 1 {
		return ui.Usagef(c, "registry needs one DIR, got %d arguments", c.NArg())
	}
	root := c.Args().First()
	if rest, ok := strings.CutPrefix(root, "oci:"); ok {
		return ui.Fail(ui.ExitUsage, fmt.Errorf("%s: want a directory, not a reference", root), "imgpush registry "+rest)
	}
	o := registry.Options{ReadOnly: c.Bool("read-only"), AnonymousPull: c.Bool("anonymous-pull"), MaxBlob: c.Int64("max-blob") << 30}
	switch {
	case c.Int64("max-blob") <= 0 || c.Int64("max-blob") > 1<<20:
		return ui.Usagef(c, "--max-blob %d: want 1 to 1048576 GiB", c.Int64("max-blob"))
	case (c.String("tls-cert") == "") != (c.String("tls-key") == ""):
		return ui.Usagef(c, "--tls-cert and --tls-key belong together")
	case c.Bool("gc") && o.ReadOnly:
		return ui.Usagef(c, "--gc changes DIR, --read-only forbids it")
	case o.AnonymousPull && c.String("htpasswd") == "":
		return ui.Usagef(c, "--anonymous-pull means something only with --htpasswd")
	}
	if c.Bool("gc") {
		return collect(c, root)
	}
	if path := c.String("htpasswd"); path != "" {
		var err error
		if o.Users, err = registry.LoadUsers(path); err != nil {
			return ui.Fail(ui.ExitUsage, fmt.Errorf("--htpasswd: %w", err), "htpasswd -B FILE NAME adds a user; with -c it makes the file")
		}
	}
	return serveRegistry(c, root, o)
}

func serveRegistry(c *cli.Context, root string, o registry.Options) (err error) {
	certificates, err := keyPair(c)
	if err != nil {
		return err
	}
	listener, url, err := listen(c)
	if err != nil {
		return err
	}
	defer listener.Close()
	logger := &accessLog{out: c.App.ErrWriter, json: c.Bool("json")}
	if !c.Bool("quiet") {
		o.Log = logger.request
	}
	reg, err := registry.New(root, o)
	if err != nil {
		return rootError(root, err)
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	server := &http.Server{
		Handler: reg, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog:  log.New(logger, "", 0), // handshakes that fail, handlers that panic
		TLSConfig: &tls.Config{Certificates: certificates, MinVersion: tls.VersionTLS12},
	}
	if err := ui.From(c).Result(map[string]any{"url": url, "directory": root, "readOnly": o.ReadOnly}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "serving %s at %s\n", root, url)
		return err
	}); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		if certificates != nil {
			ended <- server.ServeTLS(listener, "", "")
		} else {
			ended <- server.Serve(listener)
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-c.Context.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), stopTime)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		_ = server.Close() // who is still there has had its time
	}
	<-ended
	return nil // being told to stop is how a server ends
}

// rootError says what is wrong with the directory.
func rootError(root string, err error) error {
	if l, ok := errors.AsType[*registry.LayoutError](err); ok {
		parent := filepath.Dir(filepath.Clean(l.Path))
		return ui.Fail(ui.ExitUsage, err, fmt.Sprintf("imgpush registry %s serves it as repository %s", parent, filepath.Base(l.Path)))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ui.Fail(ui.ExitTarget, err, "mkdir "+root)
	case errors.Is(err, registry.ErrInUse):
		return ui.Fail(ui.ExitTarget, err, "garbage is being collected there; run it again after that")
	}
	return ui.Fail(ui.ExitTarget, err, "")
}

// keyPair reads the certificate, if there is one to be.
func keyPair(c *cli.Context) ([]tls.Certificate, error) {
	if c.String("tls-cert") == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.String("tls-cert"), c.String("tls-key"))
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--tls-cert %s, --tls-key %s: %w", c.String("tls-cert"), c.String("tls-key"), err), "")
	}
	return []tls.Certificate{pair}, nil
}

// listen opens the address, unless passwords and images would cross a network
// in the clear.
func listen(c *cli.Context) (net.Listener, string, error) {
	address, scheme := c.String("listen"), "http"
	if c.String("tls-cert") != "" {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, "", ui.Usagef(c, "--listen %s: want HOST:PORT, or :PORT for all addresses", address)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, "", ui.Fail(ui.ExitOther, fmt.Errorf("--listen %s: %w", address, err), "choose another port; 0 is any free one")
	}
	at := listener.Addr().(*net.TCPAddr)
	if scheme == "http" && !at.IP.IsLoopback() && !c.Bool("plain-http") {
		_ = listener.Close() // nobody was served
		return nil, "", ui.Fail(ui.ExitUsage, fmt.Errorf("--listen %s: without TLS, others on the network could read and change images and passwords", address),
			"give --tls-cert and --tls-key, or --plain-http where the network is trusted")
	}
	if at.IP.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			host = "localhost"
		}
	}
	if port == "" || port == "0" || host == "" {
		host = orHost(host, at)
	}
	return listener, scheme + "://" + net.JoinHostPort(host, fmt.Sprint(at.Port)), nil
}

func orHost(host string, at *net.TCPAddr) string {
	if host == "" {
		return at.IP.String()
	}
	return host
}

// collect is --gc.
func collect(c *cli.Context, root string) error {
	done, err := registry.Collect(c.Context, root)
	if done == nil && err != nil {
		if errors.Is(err, registry.ErrInUse) {
			return ui.Fail(ui.ExitTarget, err, "stop the registry that serves it, then run this again")
		}
		return rootError(root, err)
	}
	if rerr := ui.From(c).Result(map[string]any{"repositories": done}, func(w io.Writer) error { return writeCollected(w, done) }); rerr != nil {
		return errors.Join(err, rerr)
	}
	if errors.Is(err, registry.ErrInUse) {
		return ui.Fail(ui.ExitTarget, err, "run it again when no build or push uses the layout; the others are done")
	}
	return err
}

func writeCollected(w io.Writer, done []registry.Collected) error {
	var freed int64
	for _, r := range done {
		if r.Error != "" {
			continue // said as the error
		}
		freed += r.GC.Bytes
		if _, err := fmt.Fprintf(w, "%s: %d referrers, %d blobs and %d unfinished files deleted\n", r.Name, r.GC.Manifests, r.GC.Blobs, r.GC.Temps); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d repositories, %s freed\n", len(done), ui.Bytes(freed))
	return err
}

// accessLog writes a line for every request.
type accessLog struct {
	mu   sync.Mutex
	out  io.Writer
	json bool
}

// accessLine is a line with --json.
type accessLine struct {
	Remote string  `json:"remote"`
	User   string  `json:"user,omitempty"`
	Method string  `json:"method"`
	Path   string  `json:"path"`
	Status int     `json:"status"`
	Bytes  int64   `json:"bytes"`
	MS     float64 `json:"ms"`
	Error  string  `json:"error,omitempty"`
}

func (l *accessLog) request(a registry.Access) {
	line := accessLine{a.Remote, a.User, a.Method, a.Path, a.Status, a.Bytes, float64(a.Duration.Microseconds()) / 1000, ""}
	if a.Err != nil {
		line.Error = a.Err.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.json {
		_ = json.NewEncoder(l.out).Encode(line) // who reads the log is told by its absence
		return
	}
	text := fmt.Sprintf("%s %s %s %d %d B %.1f ms", line.Remote, line.Method, line.Path, line.Status, line.Bytes, line.MS)
	if line.User != "" {
		text += fmt.Sprintf(" by %q", line.User)
	}
	if line.Error != "" {
		text += ": " + strings.ReplaceAll(line.Error, "\n", "; ")
	}
	fmt.Fprintln(l.out, text)
}

// Write takes a line of net/http's own.
func (l *accessLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.json {
		return l.out.Write(p)
	}
	if err := json.NewEncoder(l.out).Encode(map[string]string{"error": strings.TrimSpace(string(p))}); err != nil {
		return 0, err
	}
	return len(p), nil
}
