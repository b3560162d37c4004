package initramfs

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Kernel is the modules of one kernel in a tree. It is not safe for concurrent use.
type Kernel struct {
	Release string
	Dir     string // /lib/modules/RELEASE, or below /usr

	tree    *tree.Tree
	paths   map[string]string // by module name
	builtin map[string]bool
	list    []byte             // modules.builtin
	parsed  map[string]*Module // by name
	aliases map[string][]string
}

// MissingError says which modules a kernel does not have.
type MissingError struct {
	Release string
	Names   []string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("kernel %s has no module %s", e.Release, strings.Join(e.Names, ", "))
}

// Bounds of the lists in a tree, in bytes.
const (
	maxBuiltin = 4 << 20  // modules.builtin
	maxAliases = 64 << 20 // modules.alias
)

// Open finds the modules of a kernel. Of a module that is there twice the one in
// updates/ or extra/ counts, as depmod.d(5) has it.
func Open(t *tree.Tree, release string) (*Kernel, error) {
	k := &Kernel{Release: release, tree: t, paths: map[string]string{}, builtin: map[string]bool{}, parsed: map[string]*Module{}}
	for _, dir := range []string{"/lib/modules/", "/usr/lib/modules/"} {
		if p, err := t.Resolve(dir + release); err == nil && len(t.Children(p)) > 0 {
			k.Dir = p
			break
		}
	}
	if k.Dir == "" {
		return nil, fmt.Errorf("initramfs: no /lib/modules/%s in the tree", release)
	}
	if t.Get(k.Dir+"/modules.builtin") != nil {
		b, err := t.ReadFile(k.Dir+"/modules.builtin", maxBuiltin)
		if err != nil {
			return nil, fmt.Errorf("initramfs: %w", err)
		}
		k.list = b
		for line := range strings.Lines(string(b)) {
			if name, ok := moduleName(strings.TrimSpace(line)); ok {
				k.builtin[name] = true
			}
		}
	}
	k.walk(k.Dir)
	if len(k.paths) == 0 {
		return nil, fmt.Errorf("initramfs: no modules in %s", k.Dir)
	}
	return k, nil
}

// walk finds modules below a folder.
func (k *Kernel) walk(dir string) {
	for _, name := range k.tree.Children(dir) {
		p := path.Join(dir, name)
		switch n := k.tree.Get(p); n.Kind {
		case tree.Dir:
			k.walk(p)
		case tree.Regular:
			module, ok := moduleName(name)
			if ok && (k.paths[module] == "" || k.rank(p) < k.rank(k.paths[module])) {
				k.paths[module] = p
			}
		}
	}
}

// rank orders modules of one name: depmod's default "search updates built-in",
// with extra, where packagers put theirs, before the kernel's own.
func (k *Kernel) rank(p string) int {
	for i, dir := range []string{"/updates/", "/extra/"} {
		if strings.HasPrefix(p, k.Dir+dir) {
			return i
		}
	}
	return 2
}

// Module reads what a module of the kernel says of itself; nil if it has none of
// that name.
func (k *Kernel) Module(name string) (*Module, error) {
	name = underscores(name)
	p, ok := k.paths[name]
	if !ok || k.parsed[name] != nil {
		return k.parsed[name], nil
	}
	b, err := plainModule(k.tree.Get(p).Data)
	if err == nil {
		var m *Module
		if m, err = ParseModule(b); err == nil {
			m.Name, m.Path = name, p // the file's, as depmod has it
			k.parsed[name] = m
			return m, nil
		}
	}
	return nil, fmt.Errorf("initramfs: %s: %w", p, err)
}

// Has reports whether the kernel has a module of that name, or it built in.
func (k *Kernel) Has(name string) bool {
	name = underscores(name)
	return k.paths[name] != "" || k.builtin[name]
}

// Closure returns the named modules and all that they need, by path: what they
// depend on, and what softdeps name and the kernel has. Names that are built in give nothing.
// All unknown names are reported at once, as a *MissingError.
func (k *Kernel) Closure(names ...string) ([]*Module, error) {
	c := closure{k: k, seen: map[string]bool{}}
	var missing []string
	for _, name := range names {
		if !k.Has(name) && !slices.Contains(missing, name) {
			missing = append(missing, name)
			continue
		}
		if err := c.add(underscores(name), ""); err != nil {
			return nil, err
		}
	}
	if missing != nil {
		return nil, &MissingError{k.Release, missing}
	}
	slices.SortFunc(c.out, func(a, b *Module) int { return strings.Compare(a.Path, b.Path) })
	return c.out, nil
}

type closure struct {
	k    *Kernel
	seen map[string]bool
	out  []*Module
}

// add takes a module and what it needs. by names who needs it, "" for the caller.
func (c *closure) add(name, by string) error {
	if c.seen[name] {
		return nil
	}
	c.seen[name] = true
	m, err := c.k.Module(name)
	if err != nil {
		return err
	}
	if m == nil {
		if by != "" && !c.k.builtin[name] {
			return fmt.Errorf("initramfs: module %s needs %s: %w", by, name, &MissingError{c.k.Release, []string{name}})
		}
		return nil
	}
	if release := m.Release; release != c.k.Release {
		return fmt.Errorf("initramfs: %s is for kernel %q, not %s", m.Path, release, c.k.Release)
	}
	c.out = append(c.out, m)
	for _, d := range m.Depends {
		if err := c.add(d, name); err != nil {
			return err
		}
	}
	for _, d := range slices.Concat(m.Pre, m.Post) {
		resolved, err := c.k.resolve(d)
		if err != nil {
			return err
		}
		for _, r := range resolved {
			if err := c.add(r, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolve returns the modules that a softdep's word means: one of that name, or
// those that have it as an alias.
func (k *Kernel) resolve(word string) ([]string, error) {
	if k.paths[word] != "" {
		return []string{word}, nil
	}
	if k.builtin[word] {
		return nil, nil
	}
	if k.aliases == nil {
		k.aliases = k.listedAliases()
	}
	if k.aliases == nil { // all of them are read: a softdep may mean any
		k.aliases = map[string][]string{}
		var errs []error
		for name := range k.paths {
			m, err := k.Module(name)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for _, a := range m.Aliases {
				if a = underscores(a); !strings.ContainsAny(a, "*?[") {
					k.aliases[a] = append(k.aliases[a], name)
				}
			}
		}
		if errs != nil {
			return nil, errors.Join(errs...)
		}
		for _, names := range k.aliases {
			slices.Sort(names)
		}
	}
	return k.aliases[word], nil
}

// listedAliases reads what depmod has listed in the tree, nil where it has not run: it saves
// reading all modules. Of aliases with wildcards no softdep is one.
func (k *Kernel) listedAliases() map[string][]string {
	b, err := k.tree.ReadFile(k.Dir+"/modules.alias", maxAliases)
	if err != nil {
		return nil
	}
	out := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "alias" || strings.ContainsAny(f[1], "*?[") {
			continue
		}
		if a, name := underscores(f[1]), underscores(f[2]); k.paths[name] != "" && !slices.Contains(out[a], name) {
			out[a] = append(out[a], name)
		}
	}
	for _, names := range out {
		slices.Sort(names)
	}
	return out
}

// Plain returns the bytes of a module as the kernel loads it, signature included.
func (k *Kernel) Plain(m *Module) ([]byte, error) {
	b, err := plainModule(k.tree.Get(m.Path).Data)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %s: %w", m.Path, err)
	}
	return b, nil
}

// put lays the modules and their indices into t, below /lib/modules/RELEASE.
func (k *Kernel) put(t *tree.Tree, modules []*Module, inode func(diskimage.Disk) *tree.Inode) error {
	for _, m := range modules {
		b, err := k.Plain(m)
		if err != nil {
			return err
		}
		if err := t.Put(k.target(m.Path), inode(diskimage.Bytes(b))); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	for name, text := range k.indices(modules) {
		if err := t.Put("/lib/modules/"+k.Release+"/"+name, inode(diskimage.Bytes(text))); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	return nil
}

// target is where a module lies in the initramfs: uncompressed, since all of it
// is compressed together.
func (k *Kernel) target(p string) string { return "/lib/modules/" + k.Release + "/" + k.relative(p) }

func (k *Kernel) relative(p string) string {
	return strings.TrimPrefix(p[:strings.LastIndex(p, ".ko")+3], k.Dir+"/")
}
