//go:build linux

package hw

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// maxIndex bounds a file of depmod's, in bytes: Debian's whole kernel has 2 MiB
// of aliases.
const maxIndex = 32 << 20

// index is what depmod says of one kernel's modules, in kmod's text formats
// (modules.dep(5)). Names have "_" for "-".
type index struct {
	dir     string              // /lib/modules/RELEASE
	files   map[string]string   // by name, below dir
	depends map[string][]string // names, as depmod ordered them
	pre     map[string][]string // softdep
	builtin map[string]bool
	aliases map[string][]alias // by what is before the first ":" or wildcard
}

type alias struct{ pattern, module string }

// modules reads the index. A file that is missing is empty, but modules.dep.
func (s System) modules(release string) (*index, error) {
	if release == "" || path.Base(release) != release || release[0] == '.' {
		return nil, fmt.Errorf("modules: %q is no kernel's release", release)
	}
	x := &index{dir: "/lib/modules/" + release, files: map[string]string{}, depends: map[string][]string{}, pre: map[string][]string{},
		builtin: map[string]bool{}, aliases: map[string][]alias{}}
	dep, err := s.indexFile(x.dir + "/modules.dep")
	if err != nil {
		return nil, fmt.Errorf("modules: %w", err)
	}
	for line := range strings.Lines(dep) {
		x.addDepends(line)
	}
	for name, add := range map[string]func(string){
		"modules.alias": x.addAlias, "modules.softdep": x.addSoftdep,
		"modules.builtin": func(line string) {
			if line != "" {
				x.builtin[moduleName(line)] = true
			}
		},
	} {
		text, _ := s.indexFile(x.dir + "/" + name)
		for line := range strings.Lines(text) {
			add(strings.TrimSpace(line))
		}
	}
	return x, nil
}

func (s System) indexFile(name string) (string, error) {
	f, err := os.Open(s.at(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err == nil && len(b) > maxIndex {
		err = fmt.Errorf("%s: more than %d bytes", name, maxIndex)
	}
	return string(b), err
}

// moduleName is a module's name by its file: kernel/drivers/net/virtio-net.ko.xz is virtio_net.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return underscored(name)
}

func underscored(name string) string { return strings.ReplaceAll(name, "-", "_") }

// addDepends reads "kernel/a.ko: kernel/b.ko kernel/c.ko": a needs b and c.
func (x *index) addDepends(line string) {
	file, needs, ok := strings.Cut(line, ":")
	file = strings.TrimSpace(file)
	if !ok || file == "" || strings.HasPrefix(line, "#") || !below(file) {
		return
	}
	name := moduleName(file)
	x.files[name] = file
	for _, f := range strings.Fields(needs) {
		x.depends[name] = append(x.depends[name], moduleName(f))
	}
}

// below reports whether a path stays in the modules' directory.
func below(file string) bool { return !path.IsAbs(file) && path.Join("/", file) == "/"+file }

// addAlias reads "alias PATTERN MODULE".
func (x *index) addAlias(line string) {
	f := strings.Fields(line)
	if len(f) != 3 || f[0] != "alias" {
		return
	}
	p := aliasName(f[1])
	x.aliases[bus(p)] = append(x.aliases[bus(p)], alias{p, underscored(f[2])})
}

// addSoftdep reads "softdep MODULE pre: A B post: C". What comes after is not
// loaded for it: that is for choice of drivers, which modalias makes here.
func (x *index) addSoftdep(line string) {
	f := strings.Fields(line)
	if len(f) < 3 || f[0] != "softdep" {
		return
	}
	name, in := underscored(f[1]), ""
	for _, w := range f[2:] {
		switch {
		case strings.HasSuffix(w, ":"):
			in = w
		case in == "pre:":
			x.pre[name] = append(x.pre[name], underscored(w))
		}
	}
}

// match returns the modules for a modalias, in the order of the index.
func (x *index) match(modalias string) (names []string) {
	m := aliasName(modalias)
	for _, key := range []string{bus(m), ""} {
		for _, a := range x.aliases[key] {
			if glob(a.pattern, m) {
				names = append(names, a.module)
			}
		}
	}
	return names
}

// order returns a module and all that it needs, each after what it needs itself. What
// the kernel has built in, or nobody has, is left out.
func (x *index) order(name string) (names []string) {
	seen := map[string]bool{}
	var add func(string)
	add = func(name string) {
		if seen[name] || x.builtin[name] || x.files[name] == "" {
			return
		}
		seen[name] = true
		for _, n := range x.pre[name] {
			add(n)
		}
		// modules.dep has the nearest first: the last needs the least.
		for i := len(x.depends[name]) - 1; i >= 0; i-- {
			add(x.depends[name][i])
		}
		names = append(names, name)
	}
	add(underscored(name))
	return names
}

// bus is the part of a modalias or pattern before ":", if it has no wildcards.
func bus(s string) string {
	i := strings.IndexAny(s, ":*?[")
	if i < 0 || s[i] != ':' {
		return ""
	}
	return s[:i]
}

// aliasName has "_" for "-" but inside of brackets, as libkmod's alias_normalize does.
func aliasName(s string) string {
	if !strings.Contains(s, "-") {
		return s
	}
	b, in := []byte(s), false
	for i, c := range b {
		switch {
		case c == '[':
			in = true
		case c == ']':
			in = false
		case c == '-' && !in:
			b[i] = '_'
		}
	}
	return string(b)
}

// glob is fnmatch(3) without flags, as libkmod matches: *, ?, [a-c], [!a] and \. Time
// is at most the product of both lengths.
func glob(pattern, s string) bool {
	star, back := -1, 0
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, back = p, i
			p++
			continue
		}
		if p < len(pattern) {
			if n, ok := one(pattern[p:], s[i]); ok {
				p, i = p+n, i+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		back++
		p, i = star+1, back
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// one matches a character against the start of a pattern, n bytes of it.
func one(pattern string, c byte) (n int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
	case '[':
		if n, ok, closed := class(pattern, c); closed {
			return n, ok
		}
	}
	return 1, pattern[0] == c
}

// class matches "[…]"; closed is false where no "]" ends it.
func class(pattern string, c byte) (n int, ok, closed bool) {
	i, not := 1, false
	if i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^') {
		i, not = i+1, true
	}
	for first := true; i < len(pattern); first = false {
		lo := pattern[i]
		if lo == ']' && !first {
			return i + 1, ok != not, true
		}
		hi := lo
		i++
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			hi = pattern[i+1]
			i += 2
		}
		ok = ok || lo <= c && c <= hi
	}
	return 0, false, false
}
