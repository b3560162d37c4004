package initrd

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/internal/modalias"
)

// Modules are those of the initramfs, by kmod's lists (modules.dep(5)).
type Modules struct {
	dir     string
	path    map[string]string   // of a module, below dir
	before  map[string][]string // what a module needs
	after   map[string][]string // softdeps
	aliases map[string][]alias  // by modalias.Bus
	builtin map[string]bool
	done    map[string]error

	// insert puts a file into the kernel; tests have another.
	insert func(file string) error
}

type alias struct{ pattern, module string }

// OpenModules reads the lists in a folder, /lib/modules/RELEASE. One that is not
// there is empty: all may be built in.
func OpenModules(dir string) (*Modules, error) {
	m := &Modules{dir: dir, path: map[string]string{}, before: map[string][]string{}, after: map[string][]string{},
		aliases: map[string][]alias{}, builtin: map[string]bool{}, done: map[string]error{}, insert: insertModule}
	for _, list := range []struct {
		name string
		line func([]string)
	}{{"modules.dep", m.dep}, {"modules.alias", m.alias}, {"modules.softdep", m.softdep}, {"modules.builtin", m.built}} {
		b, err := os.ReadFile(dir + "/" + list.name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return m, err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 0 && f[0][0] != '#' {
				list.line(f)
			}
		}
	}
	return m, nil
}

// moduleName is what a file is called in the kernel.
func moduleName(file string) string {
	name, _, _ := strings.Cut(file[strings.LastIndexByte(file, '/')+1:], ".ko")
	return underscores(name)
}

func underscores(s string) string { return strings.ReplaceAll(s, "-", "_") }

func (m *Modules) dep(f []string) {
	file, ok := strings.CutSuffix(f[0], ":")
	if !ok {
		return
	}
	name := moduleName(file)
	m.path[name] = file
	for _, d := range slices.Backward(f[1:]) { // the last is loaded first
		m.before[name] = append(m.before[name], moduleName(d))
	}
}

func (m *Modules) alias(f []string) {
	if len(f) == 3 && f[0] == "alias" {
		pattern := modalias.Normal(f[1])
		bus := modalias.Bus(pattern)
		m.aliases[bus] = append(m.aliases[bus], alias{pattern, underscores(f[2])})
	}
}

func (m *Modules) softdep(f []string) {
	if len(f) < 3 || f[0] != "softdep" {
		return
	}
	name, to := underscores(f[1]), m.before
	for _, w := range f[2:] {
		switch w {
		case "pre:":
			to = m.before
		case "post:":
			to = m.after
		default:
			to[name] = append(to[name], underscores(w))
		}
	}
}

func (m *Modules) built(f []string) { m.builtin[moduleName(f[0])] = true }

// For returns the modules that a modalias asks for.
func (m *Modules) For(device string) (out []string) {
	device = modalias.Normal(device)
	keys := []string{modalias.Bus(device), ""}
	if keys[0] == "" {
		keys = keys[1:]
	}
	for _, key := range keys {
		for _, a := range m.aliases[key] {
			if modalias.Match(a.pattern, device) && !slices.Contains(out, a.module) {
				out = append(out, a.module)
			}
		}
	}
	return out
}

var errNoModule = errors.New("no such module in the initramfs")

// Load loads a module, or those that have name as an alias, behind what they need.
// What is built in or loaded is loaded.
func (m *Modules) Load(name string) error {
	if n := underscores(name); m.path[n] != "" || m.builtin[n] {
		return m.load(n, map[string]bool{})
	}
	found := m.For(name)
	if len(found) == 0 {
		return errNoModule
	}
	var errs []error
	for _, n := range found {
		errs = append(errs, m.load(n, map[string]bool{}))
	}
	return errors.Join(errs...)
}

// load loads a module once. above are those that wait for it: softdeps may go round.
func (m *Modules) load(name string, above map[string]bool) error {
	if err, ok := m.done[name]; ok {
		return err
	}
	if above[name] || m.builtin[name] || m.path[name] == "" {
		return nil // a softdep on what the kernel has not is none
	}
	above[name] = true
	for _, d := range m.before[name] {
		if err := m.load(d, above); err != nil {
			m.done[name] = err
			return err
		}
	}
	err := m.insert(m.dir + "/" + m.path[name])
	if err != nil {
		err = errors.New("module " + name + ": " + err.Error())
	}
	m.done[name] = err
	for _, d := range m.after[name] {
		_ = m.load(d, above) // said where a device asks for it
	}
	return err
}

// Device loads what a device asks for, and returns what went wrong for the first time.
func (m *Modules) Device(device string) error {
	var errs []error
	for _, name := range m.For(device) {
		if _, tried := m.done[name]; !tried {
			errs = append(errs, m.load(name, map[string]bool{}))
		}
	}
	return errors.Join(errs...)
}
