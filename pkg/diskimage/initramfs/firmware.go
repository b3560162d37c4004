package initramfs

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// firmwareDirs are where a tree has firmware; the initramfs has it in the first.
var firmwareDirs = []string{"/lib/firmware", "/usr/lib/firmware"}

// NoFirmwareError is an entry of firmware that nothing in the tree fits.
type NoFirmwareError struct{ Entry string }

func (e *NoFirmwareError) Error() string {
	return fmt.Sprintf("no firmware for %q in the packages", e.Entry)
}

// Firmware puts firmware from the tree of k into t. An entry that is the name of
// one of modules means what that module may ask for and the tree has; any other
// entry is a pattern (path.Match) of files below /lib/firmware. It returns the
// files, sorted, relative to there. An entry that gives nothing is a *NoFirmwareError.
func (k *Kernel) Firmware(t *tree.Tree, modules []*Module, entries []string) ([]string, error) {
	all := k.firmwareFiles()
	var out []string
	for _, entry := range entries {
		patterns := []string{entry}
		if i := slices.IndexFunc(modules, func(m *Module) bool { return m.Name == underscores(entry) }); i >= 0 {
			patterns = modules[i].Firmware
		}
		before := len(out)
		for _, pattern := range patterns {
			for name := range all {
				ok, err := path.Match(pattern, name)
				if err != nil {
					return nil, fmt.Errorf("firmware %q: %w", pattern, err)
				}
				if ok {
					out = append(out, name)
				}
			}
		}
		if len(out) == before {
			return nil, &NoFirmwareError{entry}
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	for _, name := range out {
		// A link and what it leads to are two files here, and next to nothing when compressed.
		if err := t.Put(firmwareDirs[0]+"/"+name, &tree.Inode{Mode: 0o644, Data: all[name]}); err != nil {
			return nil, fmt.Errorf("initramfs: %w", err)
		}
	}
	return out, nil
}

// Lacking returns the modules that name firmware of which none is in files.
func Lacking(modules []*Module, files []string) (names []string) {
	for _, m := range modules {
		if len(m.Firmware) > 0 && !slices.ContainsFunc(m.Firmware, func(pattern string) bool {
			return slices.ContainsFunc(files, func(name string) bool { ok, _ := path.Match(pattern, name); return ok })
		}) {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

// firmwareFiles returns the contents of all firmware in the tree, by name below
// its folder; links are followed within the tree.
func (k *Kernel) firmwareFiles() map[string]diskimage.Disk {
	out := map[string]diskimage.Disk{}
	var walk func(root, dir string)
	walk = func(root, dir string) {
		for _, name := range k.tree.Children(dir) {
			p := path.Join(dir, name)
			if k.tree.Get(p).Kind == tree.Dir {
				walk(root, p)
				continue
			}
			target, err := k.tree.Resolve(p)
			if err != nil {
				continue // a link whose package is not there
			}
			if n := k.tree.Get(target); n != nil && n.Kind == tree.Regular && n.Data != nil {
				out[strings.TrimPrefix(p, root+"/")] = n.Data
			}
		}
	}
	for _, dir := range firmwareDirs {
		if root, err := k.tree.Resolve(dir); err == nil {
			walk(root, root)
		}
	}
	return out
}
