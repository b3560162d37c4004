package initramfs

import (
	"bytes"
	"fmt"
	"slices"
)

// indices returns what depmod would write beside the modules, in the text formats
// of kmod (modules.dep(5), depmod(8)), for these modules alone: modules.dep, with
// what a module needs in the order against which modprobe loads it;
// modules.alias; modules.softdep; and modules.builtin as the kernel's package has it.
func (k *Kernel) indices(modules []*Module) map[string][]byte {
	by := make(map[string]*Module, len(modules))
	for _, m := range modules {
		by[m.Name] = m
	}
	var dep, alias, soft bytes.Buffer
	soft.WriteString("# Soft dependencies extracted from modules themselves.\n")
	alias.WriteString("# Aliases extracted from modules themselves.\n")
	for _, m := range modules {
		fmt.Fprintf(&dep, "%s:", k.relative(m.Path))
		order := loadOrder(by, m)
		slices.Reverse(order)
		for _, d := range order[1:] {
			fmt.Fprintf(&dep, " %s", k.relative(d.Path))
		}
		dep.WriteByte('\n')
		for _, a := range m.Aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, m.Name)
		}
		for _, value := range m.Softdeps {
			fmt.Fprintf(&soft, "softdep %s %s\n", m.Name, value)
		}
	}
	return map[string][]byte{"modules.dep": dep.Bytes(), "modules.alias": alias.Bytes(),
		"modules.softdep": soft.Bytes(), "modules.builtin": k.list}
}

// loadOrder returns m and what it depends on, each after what it needs itself.
func loadOrder(by map[string]*Module, m *Module) (out []*Module) {
	seen := map[string]bool{}
	var add func(m *Module)
	add = func(m *Module) {
		if m == nil || seen[m.Name] {
			return // nil is built in
		}
		seen[m.Name] = true
		for _, d := range m.Depends {
			add(by[d])
		}
		out = append(out, m)
	}
	add(m)
	return out
}
