package customize

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Where the links of enabled units are, and what says that one is masked.
const (
	configDir = "/etc/systemd/system"
	devNull   = "/dev/null"
)

// unitState is what a lookup found.
type unitState uint8

const (
	unitMissing unitState = iota
	unitRegular
	unitMasked
	unitAlias // a symlink to a unit of another name, in a search directory
)

// unit is a unit of the tree as systemctl finds it.
type unit struct {
	name   unitName
	path   string // where it was found: what a link to it says
	state  unitState
	target string // of an alias: the name it stands for
	linked bool   // found through a symlink that leads out of the search path
	install
}

// install is the [Install] section of a unit and its drop-ins.
type install struct {
	alias, wantedBy, requiredBy, upheldBy, also []string
	defaultInstance                             string
}

// units looks units up in a tree.
type units struct {
	a      *applier
	dirs   []string // search path, first wins
	upheld bool     // this systemd knows UpheldBy=
	masks  []string // links that the recipe makes last, so are not looked at before
}

var sharedLibrary = regexp.MustCompile(`^libsystemd-shared-([0-9]+)`)

// newUnits finds out which systemd the tree has. Its search path is that of
// systemd.unit(5) without what exists only while it runs; before version 255
// Debian's looks into /lib first, so its links say /lib.
func (a *applier) newUnits() *units {
	version := 0
	dirs := []string{"/usr/lib/systemd", "/lib/systemd"}
	for _, triplet := range a.children("/usr/lib") {
		dirs = append(dirs, path.Join("/usr/lib", triplet, "systemd"))
	}
	for _, dir := range dirs {
		for _, name := range a.children(dir) {
			if m := sharedLibrary.FindStringSubmatch(name); m != nil {
				n, _ := strconv.Atoi(m[1]) // too large is as good as none
				version = max(version, n)
			}
		}
	}
	u := &units{a: a, upheld: version == 0 || version >= 254}
	u.dirs = []string{configDir, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
	if version < 255 && a.stat("/etc/debian_version") != nil {
		u.dirs[2], u.dirs[3] = u.dirs[3], u.dirs[2]
	}
	return u
}

// find looks a unit up, an instance also by its template, and reads its
// [Install] section. A unit that is not there has the state unitMissing.
func (u *units) find(name unitName) (*unit, error) {
	names := []unitName{name}
	if name.kind == instanceUnit {
		names = append(names, name.template())
	}
	for _, n := range names {
		for _, dir := range u.dirs {
			x := &unit{name: name, path: path.Join(dir, n.String())}
			if err := u.load(x); err != nil {
				return nil, err
			}
			if x.state != unitMissing {
				return x, nil
			}
		}
	}
	return &unit{name: name}, nil
}

// load says what is at x.path.
func (u *units) load(x *unit) error {
	inode := u.a.lstat(x.path)
	if inode != nil && inode.Kind == tree.Symlink {
		real, err := u.a.t.Resolve(x.path)
		if err != nil {
			return err
		}
		if real == devNull {
			if !slices.Contains(u.masks, x.path) {
				x.state = unitMasked
			}
			return nil
		}
		target := inode.Target
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(x.path), target)
		}
		if u.searched(path.Dir(target)) {
			x.state, x.target = unitAlias, path.Base(target)
			return nil
		}
		x.path, x.linked = path.Clean(target), true // its links say where it is
		inode = u.a.t.Get(real)
	}
	switch {
	case inode == nil:
		return nil
	case inode.Kind == tree.Dir:
		return fmt.Errorf("%s is a directory", x.path)
	case inode.Size() == 0:
		x.state = unitMasked // systemd reads an empty file as one
		return nil
	}
	x.state = unitRegular
	files := append([]string{x.path}, u.dropIns(x.name)...)
	for _, p := range files {
		text, err := u.a.t.ReadFile(p, maxText)
		if err == nil {
			err = x.parse(string(text), x.name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// searched reports whether a directory is in the search path, whatever the
// symlinks it is reached through.
func (u *units) searched(dir string) bool {
	real, err := u.a.t.Resolve(dir)
	return err == nil && slices.ContainsFunc(u.dirs, func(d string) bool {
		r, err := u.a.t.Resolve(d)
		return err == nil && r == real
	})
}

// dropIns returns the NAME.d/*.conf of a unit and its template in the order of
// their names; of equal names the first directory's counts. systemctl heeds no
// others for [Install] (no service.d, no foo-.service.d).
func (u *units) dropIns(name unitName) []string {
	of := []string{name.String()}
	if name.kind == instanceUnit {
		of = append(of, name.template().String())
	}
	found := map[string]string{}
	for _, n := range of {
		for _, dir := range u.dirs {
			for _, conf := range u.a.children(path.Join(dir, n+".d")) {
				p := path.Join(dir, n+".d", conf)
				if strings.HasSuffix(conf, ".conf") && found[conf] == "" {
					found[conf] = p
				}
			}
		}
	}
	var paths []string
	for _, p := range found {
		if inode := u.a.stat(p); inode != nil && inode.Kind == tree.Regular { // not masked by a link to /dev/null
			paths = append(paths, p)
		}
	}
	slices.SortFunc(paths, func(x, y string) int { return strings.Compare(path.Base(x), path.Base(y)) })
	return paths
}

// parse adds the [Install] section of a unit file (systemd.syntax(7)) to what
// was read before it. An empty assignment resets a list.
func (in *install) parse(text string, name unitName) error {
	section := ""
	for n, line := range joinLines(text) {
		if strings.HasPrefix(line, "[") {
			if !strings.HasSuffix(line, "]") {
				return fmt.Errorf("line %d: invalid section header %q", n, line)
			}
			section = line[1 : len(line)-1]
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section != "Install" {
			continue
		}
		if err := in.assign(strings.TrimSpace(key), strings.TrimSpace(value), name); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return nil
}

func (in *install) assign(key, value string, name unitName) error {
	list := map[string]*[]string{
		"Alias": &in.alias, "WantedBy": &in.wantedBy, "RequiredBy": &in.requiredBy, "UpheldBy": &in.upheldBy, "Also": &in.also,
	}[key]
	switch {
	case key == "DefaultInstance" && name.kind == templateUnit:
		in.defaultInstance = value
		return nil
	case list == nil, key == "Alias" && slices.Contains([]string{"mount", "automount", "swap", "slice"}, name.suffix):
		return nil // systemd warns about these and goes on
	case value == "":
		*list = nil
		return nil
	}
	words, err := splitWords(value)
	if err != nil {
		return fmt.Errorf("%s=%s: %w", key, value, err)
	}
	*list = append(*list, words...)
	return nil
}

// joinLines yields the lines that are no comments, with the number of each in
// the file, after joining those that end in a backslash; comments in between
// are left out.
func joinLines(text string) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		pending, start, n := "", 0, 0
		for line := range strings.SplitSeq(text, "\n") {
			n++
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") || line == "" && pending == "" {
				continue
			}
			if pending == "" {
				start = n
			}
			if rest, more := strings.CutSuffix(line, `\`); more {
				pending += rest + " "
				continue
			}
			if !yield(start, strings.TrimSpace(pending+line)) {
				return
			}
			pending = ""
		}
		if pending != "" {
			yield(start, strings.TrimSpace(pending))
		}
	}
}

// splitWords splits at white space, and takes quotes away. Backslashes are part
// of unit names and stay.
func splitWords(s string) (words []string, err error) {
	var word strings.Builder
	quote, inWord := rune(0), false
	for _, c := range s {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\r'):
			if inWord {
				words = append(words, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c is not closed", quote)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
