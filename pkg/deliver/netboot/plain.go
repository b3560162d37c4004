package netboot

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Environment is what machines boot into memory.
type Environment struct {
	Name         string          `json:"name"`
	Version      string          `json:"version"`
	Digest       string          `json:"digest"`
	Architecture string          `json:"architecture"` // as GOARCH
	Cmdline      string          `json:"cmdline"`      // what kernel and initramfs are started with
	Files        map[string]File `json:"files"`
}

// File is one file of an environment. Open is called concurrently.
type File struct {
	Digest string                            `json:"digest"`
	Size   int64                             `json:"size"` // bytes
	Open   func() (io.ReadSeekCloser, error) `json:"-"`
}

// Names of an environment's files.
const (
	KernelFile    = "vmlinuz"
	InitramfsFile = "initramfs.zst"
	UKIFile       = "environment.efi"
	LocalFile     = "local.efi" // signed, for Secure Boot; it may be missing
)

// Plain returns the handler of the plain port. GET and HEAD change nothing;
// the only POST is an image's call home.
func (s *Server) Plain() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /boot.ipxe", s.bootScript)
	mux.HandleFunc("GET /autoexec.ipxe", func(w http.ResponseWriter, r *http.Request) {
		script(w, []byte(Autoexec("http://"+s.host(r, s.o.PlainPort))))
	})
	mux.HandleFunc("GET /env/{file}", s.envFile)
	mux.HandleFunc("GET /env/{dir}/{file}", s.envFile)
	mux.HandleFunc("POST /booted/{job}/{token}", s.booted)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /metrics", s.metrics)
	for name := range s.o.Programs {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/efi")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.Program(name)))
		})
	}
	return s.counted("plain", mux)
}

// maxProgram bounds what is read of an environment's local.efi, in bytes.
const maxProgram = 1 << 20

// Program returns one of Options.Programs; in the place of the local.efi for the
// environment's architecture that of the environment, which is signed, if it has
// one. The caller does not change the bytes.
func (s *Server) Program(name string) []byte {
	own := s.o.Programs[name]
	e := s.env.Load()
	if e == nil || name != LocalName(e.Architecture) {
		return own
	}
	f, ok := e.Files[LocalFile]
	if !ok {
		return own
	}
	in, err := f.Open()
	if err == nil {
		defer in.Close()
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(in, maxProgram)); err == nil {
			return b
		}
	}
	s.o.Log.Error("environment: machines with Secure Boot get a program that is not signed", "file", LocalFile, "error", err)
	return own
}

// LocalName is what firmware of an architecture (as GOARCH) asks for in order to go
// on to its disk.
func LocalName(arch string) string {
	if arch == "amd64" {
		return LocalFile
	}
	return "local-" + arch + ".efi"
}

// host is the address by which the client reached this server: an iPXE script
// and an URL in it then agree whichever interface it came by.
func (s *Server) host(r *http.Request, port int) string {
	name := s.o.Address
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if ap, err := netip.ParseAddrPort(local.String()); err == nil && !ap.Addr().IsUnspecified() {
			name = ap.Addr().Unmap().WithZone("").String()
		}
	}
	if port == 80 {
		if strings.Contains(name, ":") {
			return "[" + name + "]"
		}
		return name
	}
	return net.JoinHostPort(name, fmt.Sprint(port))
}

// Autoexec is the script by which iPXE introduces itself: newer ones ask for it
// as autoexec.ipxe. base is the plain port's URL.
func Autoexec(base string) string {
	return "#!ipxe\n" +
		"chain --autofree " + base + "/boot.ipxe?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch} ||\n" +
		"iseq ${platform} efi && exit 1 ||\n" +
		"sanboot --no-describe --drive 0x80 ||\n" +
		"exit 1\n"
}

// localScript goes on to the disk. Firmware tries its next boot entry when iPXE
// ends with an error (UEFI 2.10, section 3.1.1); a BIOS is not asked again.
const localScript = "#!ipxe\n" +
	"echo imgpipe: no job for this machine: its disk boots\n" +
	"iseq ${platform} efi && exit 1 ||\n" +
	"sanboot --no-describe --drive 0x80 ||\n" +
	"exit 1\n"

// environmentScript boots kernel and initramfs. The command line names the
// server and the interface: hints, which the agent does not believe.
func (s *Server) environmentScript(r *http.Request, machine string, e *Environment) string {
	base := "http://" + s.host(r, s.o.PlainPort) + "/env/"
	label := "unknown"
	if machine != "" {
		base, label = base+machine+"/", machine
	}
	cmdline := strings.Join(strings.Fields(e.Cmdline+" imgpipe.server=https://"+s.host(r, s.o.TLSPort)+" BOOTIF=01-${netX/mac:hexhyp}"), " ")
	return "#!ipxe\n" +
		"echo imgpipe: machine " + label + " starts the environment\n" +
		"kernel " + base + KernelFile + " initrd=" + InitramfsFile + " " + cmdline + " || goto failed\n" +
		"initrd --name " + InitramfsFile + " " + base + InitramfsFile + " || goto failed\n" +
		"boot || goto failed\n" +
		":failed\n" +
		"echo imgpipe: the environment did not start; again in 30 s\n" +
		"sleep 30\n" +
		"reboot\n"
}

func (s *Server) bootScript(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	d, name := s.Decide(wire.Identity{UUID: q.Get("uuid"), Serial: q.Get("serial"), MACs: q["mac"]})
	s.count.add("imgpipe_boots_total", fmt.Sprintf("by=\"ipxe\",answer=%q", d), 1)
	e := s.env.Load()
	switch {
	case d != Boot:
		script(w, []byte(localScript)) // who is ignored has asked us all the same
	case e == nil:
		w.Header().Set("Retry-After", "30")
		http.Error(w, "the environment is not there yet", http.StatusServiceUnavailable)
	case !fits(q.Get("arch"), e.Architecture):
		s.o.Log.Error("the environment is for another architecture", "machine", name, "arch", clean(q.Get("arch")), "environment", e.Architecture)
		script(w, []byte("#!ipxe\necho imgpipe: the environment is for "+e.Architecture+", this machine is ${buildarch}\nsleep 60\nreboot\n"))
	default:
		script(w, []byte(s.environmentScript(r, name, e)))
	}
}

// fits reports whether a machine that iPXE was built for can run an environment:
// i386 is what a BIOS starts on amd64 as well.
func fits(buildarch, arch string) bool {
	return buildarch == "" || strings.HasPrefix(buildarch, "arm") == strings.HasPrefix(arch, "arm")
}

func script(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(b) // who goes away asks again
}

// slowest is the rate in bytes a second below which a download is cut, so that
// connections that died hold nothing for ever.
const slowest = 8 << 10

func (s *Server) envFile(w http.ResponseWriter, r *http.Request) {
	e := s.env.Load()
	if e == nil {
		w.Header().Set("Retry-After", "30")
		http.Error(w, "the environment is not there yet", http.StatusServiceUnavailable)
		return
	}
	f, ok := e.Files[path.Base(r.PathValue("file"))]
	if !ok {
		http.NotFound(w, r)
		return
	}
	in, err := f.Open()
	if err != nil {
		s.o.Log.Error("environment", "file", r.PathValue("file"), "error", err)
		http.Error(w, "the file cannot be read", http.StatusInternalServerError)
		return
	}
	defer in.Close()
	conn := http.NewResponseController(w) // where a connection has no deadlines, it waits
	_ = conn.SetWriteDeadline(time.Now().Add(time.Minute + time.Duration(f.Size/slowest)*time.Second))
	defer func() { _ = conn.SetWriteDeadline(time.Time{}) }() // the next request's is its own
	w.Header().Set("Content-Type", "application/octet-stream")
	if strings.HasSuffix(r.PathValue("file"), ".efi") {
		w.Header().Set("Content-Type", "application/efi")
	}
	w.Header().Set("ETag", `"`+f.Digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, in)
}

func (s *Server) booted(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // where a connection has none, it waits
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, wire.MaxMessage))         // what cloud-init tells besides
	err := s.store.Booted(r.PathValue("job"), r.PathValue("token"), s.o.Now())
	if err != nil {
		s.o.Log.Warn("call home refused", "job", clean(r.PathValue("job")), "remote", r.RemoteAddr, "error", err)
		status, _ := statusOf(err)
		if status == http.StatusForbidden || status == http.StatusNotFound {
			status = http.StatusNotFound // which jobs there are, is not told
		}
		http.Error(w, http.StatusText(status), status)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	if p := s.sick.Load(); p != nil {
		http.Error(w, "the database cannot be written", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// clean makes what someone sent fit for a line of a log.
func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '.'
		}
		return c
	}, s[:min(len(s), 80)])
}
