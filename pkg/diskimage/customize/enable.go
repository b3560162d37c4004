package customize

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// maxFollow bounds a chain of aliases, as systemd does.
const maxFollow = 64

// follow returns the unit that a name stands for. An alias of the distribution
// is followed. One in /etc, which enabling a unit made, is an error: a second
// Apply may not find it.
func (u *units) follow(name unitName) (*unit, error) {
	for range maxFollow {
		x, err := u.find(name)
		if err != nil || x.state != unitAlias {
			return x, err
		}
		target, ok := parseUnitName(x.target)
		if !ok {
			return nil, fmt.Errorf("%s is a link to %q, which is no unit", x.path, x.target)
		}
		if target.kind == templateUnit && name.kind == instanceUnit {
			target = target.with(name.instance)
		}
		if path.Dir(x.path) == configDir {
			return nil, fmt.Errorf("%s is a link to %s: name that instead", x.path, target)
		}
		name = target
	}
	return nil, fmt.Errorf("%s is an alias of an alias of itself", name)
}

// closure returns the units that a name and the Also= of each stand for, the
// named one first. What Also= names but is not there is left out, as systemctl
// leaves it.
func (u *units) closure(name unitName) ([]*unit, error) {
	first, err := u.follow(name)
	if err != nil {
		return nil, err
	}
	found := []*unit{first}
	seen := map[string]bool{name.String(): true, first.name.String(): true}
	for i := 0; i < len(found); i++ {
		x := found[i]
		if x.state != unitRegular {
			continue
		}
		instance, err := x.instance()
		if err != nil {
			return nil, err
		}
		for _, also := range x.also {
			expanded, err := x.name.expand(also, instance)
			if err != nil {
				return nil, fmt.Errorf("%s: Also=%w", x.path, err)
			}
			n, ok := parseUnitName(expanded)
			if !ok {
				return nil, fmt.Errorf("%s: Also=%s is no name of a unit", x.path, expanded)
			}
			if seen[n.String()] {
				continue
			}
			seen[n.String()] = true
			if y, err := u.follow(n); err == nil && y.state != unitMissing {
				found = append(found, y)
			}
		}
	}
	return found, nil
}

// instance returns the expanded DefaultInstance of a template.
func (x *unit) instance() (string, error) {
	s, err := x.name.expand(x.defaultInstance, "")
	if err != nil {
		return "", fmt.Errorf("%s: DefaultInstance=%w", x.path, err)
	}
	if _, ok := parseUnitName(x.name.with(s).String()); s != "" && !ok {
		return "", fmt.Errorf("%s: DefaultInstance=%s is no name of an instance", x.path, s)
	}
	return s, nil
}

// installs reports whether the [Install] section asks for any link.
func (x *unit) installs(upheld bool) bool {
	return len(x.alias)+len(x.wantedBy)+len(x.requiredBy) > 0 || upheld && len(x.upheldBy) > 0
}

// unitLink is a symlink that enabling a unit makes.
type unitLink struct {
	path, target string
	force        bool // replaces another link
}

// links returns what enabling one unit makes: a link for each Alias=, then one in
// the directory of each unit of WantedBy=, RequiredBy= and UpheldBy=.
func (u *units) links(x *unit) (links []unitLink, err error) {
	instance, err := x.instance()
	if err != nil {
		return nil, err
	}
	for _, s := range x.alias {
		name, err := x.aliasName(s, instance)
		if err != nil {
			return nil, err
		}
		if name != x.name {
			links = append(links, unitLink{path.Join(configDir, name.String()), x.path, false})
		}
	}
	as := x.name
	if as.kind == templateUnit && instance != "" {
		as = as.with(instance)
		if y, err := u.find(as); err != nil {
			return nil, err
		} else if y.state == unitMasked {
			return nil, fmt.Errorf("its default instance %s is masked", as)
		}
	}
	upheldBy := x.upheldBy
	if !u.upheld {
		upheldBy = nil
	}
	for _, d := range []struct {
		key, suffix string
		by          []string
	}{{"WantedBy", ".wants", x.wantedBy}, {"RequiredBy", ".requires", x.requiredBy}, {"UpheldBy", ".upholds", upheldBy}} {
		for _, s := range d.by {
			by, err := x.name.expand(s, instance)
			if err != nil {
				return nil, fmt.Errorf("%s: %s=%w", x.path, d.key, err)
			}
			name, ok := parseUnitName(by)
			switch {
			case !ok:
				return nil, fmt.Errorf("%s: %s=%s is no name of a unit", x.path, d.key, by)
			case as.kind == templateUnit && name.kind != templateUnit:
				return nil, fmt.Errorf("%s is a template without a DefaultInstance: name an instance, such as %s", as, as.with("NAME"))
			case as.kind != templateUnit && name.kind == templateUnit:
				return nil, fmt.Errorf("%s: %s=%s is a template, and %s is none", x.path, d.key, by, as)
			}
			links = append(links, unitLink{path.Join(configDir, name.String()+d.suffix, as.String()), x.path, true})
		}
	}
	return links, nil
}

// aliasName returns the name that an Alias= gives a unit, by the rules of
// systemd.unit(5): of the same type, and templates only for templates.
func (x *unit) aliasName(s, instance string) (unitName, error) {
	expanded, err := x.name.expand(s, instance)
	if err != nil {
		return unitName{}, fmt.Errorf("%s: Alias=%w", x.path, err)
	}
	name, ok := parseUnitName(expanded)
	if ok && name.kind == templateUnit && x.name.kind == instanceUnit {
		name = name.with(x.name.instance)
	}
	switch {
	case !ok:
		return name, fmt.Errorf("%s: Alias=%s is no name of a unit", x.path, expanded)
	case name.suffix != x.name.suffix,
		name.kind != x.name.kind && !(name.kind == instanceUnit && x.name.kind == templateUnit),
		name.kind == instanceUnit && x.name.kind == instanceUnit && name.instance != x.name.instance:
		return name, fmt.Errorf("%s: %s cannot be called %s", x.path, x.name, name)
	}
	return name, nil
}

// enable makes the links of a unit and of those in its Also=, and returns the
// units enabled and the links of the named one.
func (u *units) enable(name unitName) (enabled []*unit, own []string, err error) {
	all, err := u.closure(name)
	if err != nil {
		return nil, nil, err
	}
	if err := u.refuse(all[0]); err != nil {
		return nil, nil, err
	}
	for i, x := range all {
		if x.state != unitRegular || !x.installs(u.upheld) {
			continue
		}
		links, err := u.links(x)
		if err != nil {
			return nil, nil, err
		}
		for _, l := range links {
			if err := u.makeLink(l); err != nil {
				return nil, nil, err
			}
			if i == 0 {
				own = append(own, l.path)
			}
		}
		enabled = append(enabled, x)
	}
	if len(enabled) == 0 {
		return nil, nil, u.notInstallable(all[0])
	}
	return enabled, own, nil
}

// refuse says why a unit cannot be enabled or be the default target.
func (u *units) refuse(x *unit) error {
	switch {
	case x.state == unitMasked:
		return fmt.Errorf("%s is masked by %s", x.name, x.path)
	case x.state == unitMissing:
		return u.missing(x.name)
	}
	return nil
}

// missing says that the tree has no such unit, and why perhaps.
func (u *units) missing(name unitName) error {
	if name.suffix == "service" && u.a.stat("/etc/init.d/"+name.prefix) != nil {
		return fmt.Errorf("no unit %s in the image: it has only the init script /etc/init.d/%s, from which systemd generates a unit at boot", name, name.prefix)
	}
	var known []string
	for _, dir := range u.dirs {
		for _, n := range u.a.children(dir) {
			if _, ok := parseUnitName(n); ok {
				known = append(known, n)
			}
		}
	}
	return fmt.Errorf("no unit %s in the image%s", name, recipe.Nearest(name.String(), known))
}

// notInstallable says why there is nothing to enable or disable.
func (u *units) notInstallable(x *unit) error {
	switch {
	case len(x.upheldBy) > 0:
		return fmt.Errorf("%s says only UpheldBy=, which this systemd does not know (254 and later do)", x.path)
	case len(x.also) > 0:
		return fmt.Errorf("%s has nothing in [Install] but Also=, and no unit named there can be enabled", x.path)
	}
	return fmt.Errorf("%s has no [Install] section that says when to start it: other units or events do (mask keeps a unit from starting)", x.path)
}

// makeLink makes a link as systemctl does: one that leads to the same file stays.
func (u *units) makeLink(l unitLink) error {
	a := u.a
	old := a.lstat(l.path)
	switch {
	case old == nil:
	case old.Kind != tree.Symlink:
		return fmt.Errorf("%s is a %s, and a link does not replace it", l.path, old.Kind)
	default:
		have, err := a.t.Resolve(l.path)
		if err != nil && !errors.Is(err, tree.ErrTooManyLinks) {
			return err
		}
		want, err := a.t.Resolve(l.target)
		if err != nil {
			return err
		}
		if have == want {
			return nil
		}
		if !l.force {
			return fmt.Errorf("%s is a link to %s already", l.path, old.Target)
		}
	}
	return a.link(l.path, l.target)
}

// disable removes every link in /etc/systemd/system that leads to a unit or has
// its name, and those of its Also=; directories that are then empty go too. It
// returns the names it disabled.
func (u *units) disable(name unitName) ([]unitName, error) {
	all, err := u.closure(name)
	if err != nil {
		return nil, err
	}
	if all[0].state == unitMissing {
		return nil, u.missing(name)
	}
	if all[0].linked {
		return nil, fmt.Errorf("%s/%s is a link to %s, and disabling the unit would remove it: use remove", configDir, all[0].name, all[0].path)
	}
	var names []unitName
	installs := all[0].state == unitMasked
	for _, x := range all {
		if x.state == unitRegular {
			names = append(names, x.name)
			installs = installs || x.installs(u.upheld)
		}
	}
	if !installs {
		return nil, u.notInstallable(all[0])
	}
	return names, u.removeLinks(names)
}

func (u *units) removeLinks(names []unitName) error {
	marked := func(base string) bool {
		return slices.ContainsFunc(names, func(n unitName) bool { return n.String() == base })
	}
	root, err := u.a.t.Resolve(configDir)
	if err != nil {
		return err
	}
	var gone []string
	for e := range u.a.t.Below(root) {
		if _, ok := parseUnitName(e.Name()); !ok || e.Inode.Kind != tree.Symlink {
			continue
		}
		real, err := u.a.t.Resolve(e.Path)
		if err == nil && real != devNull && (marked(e.Name()) || marked(path.Base(real))) {
			gone = append(gone, e.Path)
		}
	}
	for _, p := range gone {
		u.a.t.Remove(p)
		for dir := path.Dir(p); strings.HasPrefix(dir, root+"/") && len(u.a.t.Children(dir)) == 0; dir = path.Dir(dir) {
			u.a.t.Remove(dir)
		}
	}
	return nil
}
