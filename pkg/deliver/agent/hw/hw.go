//go:build linux

// Package hw loads the kernel modules that a machine's hardware asks for, as
// udev would: every device tells by a modalias what drives it.
//
//	m, err := hw.Open("/", release)             // modules.dep, modules.alias, …
//	loaded := m.Coldplug(ctx, say)              // until no device asks for more
//	err = m.Load("efivarfs")
//
// A module that does not load is told and not fatal: it may be for hardware that
// this machine can do without. Files are read in kmod's text formats
// (modules.dep(5), kmod's modules.alias, modules.softdep).
package hw

import (
	"bufio"
	"bytes"
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
	"github.com/imgpipe/imgpipe/pkg/internal/modalias"
)

// Modules are those of one kernel. It is not safe for concurrent use.
type Modules struct {
	root    string
	dir     string
	path    map[string]string   // of a module, below dir
	depends map[string][]string // modules that are loaded before
	after   map[string][]string // softdeps, loaded behind
	aliases map[string][]alias  // by what is before the colon
	builtin map[string]bool
	done    map[string]error

	// insert puts a module into the kernel; tests have another.
	insert func(file, parameters string) error
}

type alias struct{ pattern, module string }

// maxList bounds each of the lists, in bytes.
const maxList = 64 << 20

// Open reads the lists of the kernel with that release. Without modules there is
// nothing to load, which is no error: they may all be built in.
func Open(root, release string) (*Modules, error) {
	m := &Modules{root: root, dir: filepath.Join(root, "lib/modules", release), path: map[string]string{}, depends: map[string][]string{},
		after: map[string][]string{}, aliases: map[string][]alias{}, builtin: map[string]bool{}, done: map[string]error{}, insert: insert}
	for name, line := range map[string]func([]string){"modules.dep": m.depLine, "modules.alias": m.aliasLine, "modules.softdep": m.softdepLine, "modules.builtin": m.builtinLine} {
		b, err := readBounded(filepath.Join(m.dir, name), maxList)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s := bufio.NewScanner(bytes.NewReader(b))
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			if f := strings.Fields(s.Text()); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
				line(f)
			}
		}
		if err := s.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return m, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return b, err
}

// moduleName is what a file is called in the kernel: - and _ are the same.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func (m *Modules) depLine(f []string) {
	file, ok := strings.CutSuffix(f[0], ":")
	if !ok {
		return
	}
	name := moduleName(file)
	m.path[name] = file
	for _, d := range f[1:] {
		m.depends[name] = append(m.depends[name], moduleName(d))
	}
}

func (m *Modules) aliasLine(f []string) {
	if len(f) == 3 && f[0] == "alias" {
		pattern := modalias.Normal(f[1])
		m.aliases[modalias.Bus(pattern)] = append(m.aliases[modalias.Bus(pattern)], alias{pattern, strings.ReplaceAll(f[2], "-", "_")})
	}
}

func (m *Modules) softdepLine(f []string) {
	if len(f) < 3 || f[0] != "softdep" {
		return
	}
	name, to := strings.ReplaceAll(f[1], "-", "_"), ""
	for _, w := range f[2:] {
		switch d := strings.ReplaceAll(w, "-", "_"); {
		case w == "pre:" || w == "post:":
			to = w
		case to == "pre:":
			m.depends[name] = append(m.depends[name], d)
		case to == "post:":
			m.after[name] = append(m.after[name], d)
		}
	}
}

func (m *Modules) builtinLine(f []string) { m.builtin[moduleName(f[0])] = true }

// For returns the modules that a modalias asks for.
func (m *Modules) For(name string) (out []string) {
	name = modalias.Normal(name)
	keys := []string{modalias.Bus(name), ""}
	if keys[0] == "" {
		keys = keys[:1]
	}
	for _, key := range keys {
		for _, a := range m.aliases[key] {
			if modalias.Match(a.pattern, name) && !slices.Contains(out, a.module) {
				out = append(out, a.module)
			}
		}
	}
	return out
}

// ErrNone is that the kernel has no such module.
var ErrNone = errors.New("no such module")

// Load loads a module, and before it what it depends on. One that is built in,
// or loaded already, is loaded.
func (m *Modules) Load(name string) error {
	name = strings.ReplaceAll(name, "-", "_")
	return m.load(name, map[string]bool{})
}

func (m *Modules) load(name string, above map[string]bool) error {
	if err, ok := m.done[name]; ok {
		return err
	}
	if above[name] || m.builtin[name] { // softdeps may go round
		return nil
	}
	file, ok := m.path[name]
	if !ok {
		return fmt.Errorf("%s: %w", name, ErrNone)
	}
	above[name] = true
	for _, d := range m.depends[name] {
		if err := m.load(d, above); err != nil && !errors.Is(err, ErrNone) {
			m.done[name] = fmt.Errorf("%s needs %w", name, err)
			return m.done[name]
		}
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(m.dir, file)
	} else {
		file = filepath.Join(m.root, file)
	}
	err := m.insert(file, parameters[name])
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	m.done[name] = err
	for _, d := range m.after[name] {
		_ = m.load(d, above) // told where it matters: a device asks for it
	}
	return err
}

// maxModule bounds a module, in bytes, plain.
const maxModule = 256 << 20

// parameters that modules get: bonding would make a bond0 of its own, in the way
// of the one that the command line asks for.
var parameters = map[string]string{"bonding": "max_bonds=0"}

// insert hands a file to the kernel; where it is compressed, and the kernel does
// not take it so, its plain bytes.
func insert(file, parameters string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if strings.HasSuffix(file, ".ko") {
		err = unix.FinitModule(int(f.Fd()), parameters, 0)
	} else if err = unix.FinitModule(int(f.Fd()), parameters, unix.MODULE_INIT_COMPRESSED_FILE); err != nil && !errors.Is(err, unix.EEXIST) {
		err = insertPlain(f, parameters)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func insertPlain(f *os.File, parameters string) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	plain, err := decompress.NewReader(f)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(plain, maxModule+1))
	if err = errors.Join(err, plain.Close()); err != nil {
		return err
	}
	if len(b) > maxModule {
		return fmt.Errorf("more than %d bytes", maxModule)
	}
	return unix.InitModule(b, parameters)
}

// Coldplug loads what the devices in sysfs ask for until none asks for more: a
// bus driver brings devices to light that have modaliases of their own. It
// returns how many modules were loaded.
func (m *Modules) Coldplug(ctx context.Context, say func(format string, args ...any)) (loaded int) {
	quiet := 0
	for quiet < 3 && ctx.Err() == nil {
		n := 0
		for _, wanted := range m.modaliases() {
			for _, name := range m.For(wanted) {
				if _, tried := m.done[name]; tried || m.builtin[name] {
					continue
				}
				n++
				if err := m.load(name, map[string]bool{}); err != nil {
					say("module %v", err)
					m.done[name] = err
					continue
				}
				loaded++
			}
		}
		if quiet++; n > 0 {
			quiet = 0
		}
		select { // some buses are looked through in the background
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return loaded
}

func (m *Modules) modaliases() (out []string) {
	seen := map[string]bool{}
	_ = filepath.WalkDir(filepath.Join(m.root, "sys/devices"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "modalias" {
			return nil // a device that has just gone
		}
		b, err := readBounded(p, 4096)
		if s := strings.TrimSpace(string(b)); err == nil && s != "" && !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
		return nil
	})
	return out
}
