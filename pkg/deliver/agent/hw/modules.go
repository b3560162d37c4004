//go:build linux

package hw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/internal/decompress"
)

// Times of looking for devices. A bus tells of what is on it after its driver
// is there: each pass may find more.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 400 * time.Millisecond
	quiet      = 3 // passes without anything new
)

const (
	maxModule  = 64 << 20 // bytes, unpacked
	maxDevices = 1 << 16  // modaliases of one pass
	maxAlias   = 4096     // bytes; the kernel has at most a page
)

// always are loaded whatever devices say: they have none.
var always = []string{"efivarfs", "af_packet", "virtio_rng", "ipv6"}

// LoadModules loads the drivers of all devices, by modalias, in the order that
// their dependencies want, until several looks found nothing new or ctx ends; the
// latter is no error. A module that cannot be loaded is told to log. It fails where the
// kernel has no modules.dep.
func LoadModules(ctx context.Context, log func(string)) error {
	d, err := OpenDrivers(log)
	if err == nil {
		d.Settle(ctx)
	}
	return err
}

// Drivers are the running kernel's modules, for who goes on looking. Not safe for
// concurrent use.
type Drivers struct{ l *loader }

// OpenDrivers reads depmod's lists.
func OpenDrivers(log func(string)) (*Drivers, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("modules: uname: %w", err)
	}
	l, err := System{}.loader(unix.ByteSliceToString(u.Release[:]), finit, log)
	return &Drivers{l}, err
}

// Settle is LoadModules; it returns how many modules it loaded.
func (d *Drivers) Settle(ctx context.Context) int { return d.l.settle(ctx) }

// Follow loads what devices ask for that come later, until ctx ends.
func (d *Drivers) Follow(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Second):
			_, _ = d.l.pass(ctx)
		}
	}
}

// insert puts a module's file into the kernel.
type insert func(file *os.File, parameters string) error

type loader struct {
	System
	x       *index
	cmdline Parameters
	insert  insert
	log     func(string)
	tried   map[string]bool
	aliases map[string]bool
}

func (s System) loader(release string, in insert, log func(string)) (*loader, error) {
	x, err := s.modules(release)
	if err != nil {
		return nil, err
	}
	l := &loader{s, x, s.Cmdline(), in, log, map[string]bool{}, map[string]bool{}}
	for _, list := range l.cmdline.All("modprobe.blacklist") {
		for name := range strings.SplitSeq(list, ",") {
			l.tried[underscored(name)] = true
		}
	}
	return l, nil
}

// settle loads what is always wanted, and then what devices ask for until no more is.
func (l *loader) settle(ctx context.Context) (loaded int) {
	for _, name := range always {
		loaded += l.load(name)
	}
	if l.cmdline.Has("vlan") {
		loaded += l.load("8021q")
	}
	if l.cmdline.Has("bond") {
		loaded += l.load("bonding")
	}
	pause := firstPause
	for still := 0; still < quiet; {
		n, err := l.pass(ctx)
		loaded += n
		if err != nil {
			return loaded // the time is over
		}
		if still++; n > 0 {
			still, pause = 0, firstPause
		}
		select {
		case <-ctx.Done():
			return loaded
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
	return loaded
}

// pass looks at all devices once, and says how many modules it loaded.
func (l *loader) pass(ctx context.Context) (n int, err error) {
	for _, a := range l.devices() {
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
		if l.aliases[a] {
			continue
		}
		l.aliases[a] = true
		for _, name := range l.x.match(a) {
			n += l.load(name)
		}
	}
	return n, nil
}

// devices are the modaliases of all devices, sorted. Links are not followed: each
// device is in /sys/devices once.
func (l *loader) devices() (out []string) {
	_ = filepath.WalkDir(l.at("/sys/devices"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "modalias" || !e.Type().IsRegular() {
			return nil // it may have gone meanwhile
		}
		if len(out) == maxDevices {
			return fs.SkipAll
		}
		b, err := readHead(path, maxAlias)
		if a := strings.TrimSpace(string(b)); err == nil && a != "" {
			out = append(out, a)
		}
		return nil
	})
	slices.Sort(out)
	return slices.Compact(out)
}

func readHead(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, n))
}

// load loads a module after what it needs, and says how many that were. Each is
// tried once.
func (l *loader) load(name string) (n int) {
	name = underscored(name)
	if l.tried[name] {
		return 0
	}
	for _, m := range l.x.order(name) {
		if l.tried[m] {
			continue
		}
		l.tried[m] = true
		if l.exists("/sys/module/" + m + "/initstate") { // it is in the kernel already
			continue
		}
		err := l.put(m)
		switch {
		case errors.Is(err, unix.EEXIST):
		case errors.Is(err, unix.ENODEV): // its device is another maker's after all
			l.log(fmt.Sprintf("module %s: it has no device here", m))
		case err != nil:
			l.log(fmt.Sprintf("module %s: %v", m, err))
		default:
			n++
		}
	}
	return n
}

func (l *loader) put(name string) error {
	f, err := os.Open(l.at(l.x.dir + "/" + l.x.files[name]))
	if err != nil {
		return err
	}
	defer f.Close()
	return l.insert(f, l.parameters(name))
}

// parameters are NAME.PARAMETER=VALUE of the command line, as modprobe takes them.
func (l *loader) parameters(name string) string {
	var words []string
	if name == "bonding" {
		words = append(words, "max_bonds=0") // none that nobody asked for
	}
	for _, p := range l.cmdline {
		m, key, ok := strings.Cut(p.Name, ".")
		if !ok || underscored(m) != name {
			continue
		}
		switch {
		case !p.Set:
			words = append(words, key)
		case strings.ContainsAny(p.Value, " \t"):
			words = append(words, key+`="`+p.Value+`"`)
		default:
			words = append(words, key+"="+p.Value)
		}
	}
	return strings.Join(words, " ")
}

// loadNamed loads one module of the running kernel, if it has it.
func (s System) loadNamed(name string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	l, err := s.loader(unix.ByteSliceToString(u.Release[:]), finit, func(string) {})
	if err != nil {
		return err
	}
	l.load(name)
	return nil
}

// finit gives the kernel a module's file as it is, or unpacked where it is
// compressed: not every kernel can do that itself.
func finit(f *os.File, parameters string) error {
	head := make([]byte, 6)
	if _, err := io.ReadFull(f, head); err != nil {
		return err
	}
	if decompress.Format(head) == "" {
		return unix.FinitModule(int(f.Fd()), parameters, 0)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r, err := decompress.NewReader(f)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return err
	}
	if len(b) > maxModule {
		return fmt.Errorf("more than %d bytes", maxModule)
	}
	return unix.InitModule(b, parameters)
}
