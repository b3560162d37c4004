package customize

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// presetFile comes before any other (systemd.preset(5)), so that a preset-all,
// or a package's first configuration, agrees with the recipe.
const presetFile = "/etc/systemd/system-preset/00-imgpipe.preset"

// maskedState is where deb-systemd-helper(1p) notes which masks are its own.
const maskedState = "/var/lib/systemd/deb-systemd-helper-masked"

// systemd enables, disables and masks units and sets the default target, as
// systemctl(1) --root would.
func (a *applier) systemd() {
	s := a.r.Systemd
	if len(s.Enable)+len(s.Disable)+len(s.Mask) == 0 && s.DefaultTarget == "" {
		return
	}
	u := a.newUnits()
	for _, name := range s.Mask {
		u.masks = append(u.masks, path.Join(configDir, mangle(name)))
	}
	p := &presets{}
	links := make([][]string, len(s.Enable)) // of each unit enabled
	a.each("enable", s.Enable, func(i int, name unitName) error {
		for _, list := range []struct {
			word  string
			names []string
		}{{"disable", s.Disable}, {"mask", s.Mask}} {
			if slices.ContainsFunc(list.names, func(other string) bool { return mangle(other) == name.String() }) {
				return fmt.Errorf("%s is in %s too", name, list.word)
			}
		}
		units, own, err := u.enable(name)
		links[i] = own
		for _, x := range units {
			p.enable(x)
		}
		return err
	})
	a.each("disable", s.Disable, func(_ int, name unitName) error {
		if slices.ContainsFunc(s.Enable, func(other string) bool { return mangle(other) == name.String() }) {
			return nil // said above
		}
		names, err := u.disable(name)
		if err != nil {
			return err
		}
		for _, n := range names {
			p.disable(n)
		}
		for i, own := range links {
			if slices.ContainsFunc(own, func(l string) bool { return a.lstat(l) == nil }) {
				links[i] = nil
				return fmt.Errorf("this disables %s too (by Also=, or because it is the same unit), which enable[%d] names", s.Enable[i], i)
			}
		}
		return nil
	})
	a.each("mask", s.Mask, func(_ int, name unitName) error { return u.mask(name) })
	if s.DefaultTarget != "" {
		if err := u.setDefault(mangleAs(s.DefaultTarget, "target")); err != nil {
			a.fail("systemd.defaultTarget", "%v", err)
		}
	}
	if text := p.text(u); text != "" {
		if err := a.write(presetFile, []byte(text), 0o644); err != nil {
			a.fail("systemd", "%v", err)
		}
	}
}

// each runs f for each unit of a list, and records its errors.
func (a *applier) each(list string, names []string, f func(int, unitName) error) {
	for i, s := range names {
		field := fmt.Sprintf("systemd.%s[%d]", list, i)
		name, ok := parseUnitName(mangle(s))
		if !ok {
			a.fail(field, "%q is no name of a unit, such as ssh.service", s)
		} else if err := f(i, name); err != nil {
			a.fail(field, "%v", err)
		}
	}
}

// mangle adds ".service" to a name without a type, as systemctl does.
func mangle(s string) string { return mangleAs(s, "service") }

func mangleAs(s, suffix string) string {
	if i := strings.LastIndexByte(s, '.'); i >= 0 && slices.Contains(unitTypes, s[i+1:]) {
		return s
	}
	return s + "." + suffix
}

// mask links a unit to /dev/null. The note of deb-systemd-helper(1p) that such
// a link is its own goes, or installing the package again would remove it.
func (u *units) mask(name unitName) error {
	p := path.Join(configDir, name.String())
	if old := u.a.lstat(p); old != nil {
		switch {
		case old.Kind == tree.Symlink && old.Target == devNull:
		case old.Kind == tree.Symlink:
			return fmt.Errorf("%s is a link to %s: mask that instead", p, old.Target)
		default:
			return fmt.Errorf("%s is a %s of the image, and a mask does not replace it: remove it", p, old.Kind)
		}
	} else if err := u.exists(name); err != nil {
		return err
	}
	if state := path.Join(maskedState, name.String()); u.a.lstat(state) != nil {
		real, err := u.a.t.ResolveParent(state)
		if err != nil {
			return err
		}
		u.a.t.Remove(real)
	}
	return u.a.link(p, devNull)
}

// exists says what is wrong with masking a unit that is not in the tree: most
// likely its name. Units that systemd makes at boot may be masked all the same.
func (u *units) exists(name unitName) error {
	x, err := u.find(name)
	generated := slices.Contains([]string{"mount", "automount", "swap", "device", "scope"}, name.suffix) ||
		name.suffix == "service" && u.a.stat("/etc/init.d/"+name.prefix) != nil
	if err != nil || x.state != unitMissing || generated {
		return err
	}
	return u.missing(name)
}

// setDefault links default.target to a target.
func (u *units) setDefault(s string) error {
	name, ok := parseUnitName(s)
	if !ok || name.suffix != "target" || s == "default.target" {
		return fmt.Errorf("%q is no target, such as multi-user.target", s)
	}
	x, err := u.follow(name)
	if err == nil {
		err = u.refuse(x)
	}
	if slices.Contains(u.masks, path.Join(configDir, name.String())) {
		err = fmt.Errorf("%s is in mask too", name)
	}
	if err != nil {
		return err
	}
	return u.makeLink(unitLink{path.Join(configDir, "default.target"), x.path, true})
}

// presets are the lines of the preset file.
type presets struct {
	units     []unitName            // enabled, templates without instances, in order
	instances map[unitName][]string // of a template
	off       []unitName            // disabled
}

func (p *presets) enable(x *unit) {
	name := x.name
	if name.kind == instanceUnit {
		if p.instances == nil {
			p.instances = map[unitName][]string{}
		}
		t := name.template()
		if !slices.Contains(p.instances[t], name.instance) {
			p.instances[t] = append(p.instances[t], name.instance)
		}
		name = t
	}
	if !slices.Contains(p.units, name) {
		p.units = append(p.units, name)
	}
}

func (p *presets) disable(name unitName) {
	p.units = slices.DeleteFunc(p.units, func(n unitName) bool { return n == name })
	if !slices.Contains(p.off, name) {
		p.off = append(p.off, name)
	}
}

// text returns the file, "" for none. Of an instance that is disabled the
// template has to say which other instances are not, or preset-all would enable
// its default instance again.
func (p *presets) text(u *units) string {
	var b strings.Builder
	for _, n := range p.units {
		fmt.Fprintf(&b, "enable %s", n)
		for _, instance := range p.instances[n] {
			fmt.Fprintf(&b, " %s", instance)
		}
		b.WriteByte('\n')
	}
	for _, n := range p.off {
		fmt.Fprintf(&b, "disable %s\n", n)
		if t := n.template(); n.kind == instanceUnit && !slices.Contains(p.units, t) && !slices.Contains(p.off, t) {
			if rest := u.enabledInstances(t); len(rest) > 0 {
				fmt.Fprintf(&b, "enable %s %s\n", t, strings.Join(rest, " "))
			} else {
				fmt.Fprintf(&b, "disable %s\n", t)
			}
			p.off = append(p.off, t)
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return "# From the recipe of this image, so that presets agree with it.\n" + b.String()
}

// enabledInstances returns the instances of a template that have a link.
func (u *units) enabledInstances(t unitName) (instances []string) {
	root, err := u.a.t.Resolve(configDir)
	if err != nil {
		return nil
	}
	for e := range u.a.t.Below(root) {
		n, ok := parseUnitName(e.Name())
		if ok && e.Inode.Kind == tree.Symlink && n.kind == instanceUnit && n.template() == t && path.Dir(e.Path) != root &&
			!slices.Contains(instances, n.instance) {
			instances = append(instances, n.instance)
		}
	}
	slices.Sort(instances)
	return instances
}
