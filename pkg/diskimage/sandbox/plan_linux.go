package sandbox

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// own lists the folders that are a step's own, whatever the tree has there.
var own = []place{{"/dev", "dev"}, {"/proc", "proc"}, {"/run", "run"}, {"/sys", "sys"}, {"/tmp", "tmp"}}

// hidden reports whether a path of the tree lies in one of these folders.
func hidden(p string) bool {
	return slices.ContainsFunc(own, func(o place) bool { return strings.HasPrefix(p, o.Path+"/") })
}

// plan resolves what a step names in the tree.
func plan(t *tree.Tree, s Step, o Options) (*config, error) {
	if real, err := t.Resolve("/bin/sh"); !strings.HasPrefix(s.Script, "#!") && (err != nil || t.Get(real) == nil) {
		return nil, &StepError{"script", "the tree has no /bin/sh, and the script no #! line"}
	}
	a, err := account(t, s.User)
	if err != nil {
		return nil, err
	}
	c := &config{Name: s.Name, Script: s.Script, UID: a.uid, GID: a.gid, Groups: a.groups, Workdir: s.Workdir, Network: s.Network}
	if c.Workdir == "" {
		c.Workdir = "/"
	}
	c.Env = environment(s, a, o)
	for _, p := range own {
		if n := t.Get(p.Path); n != nil && n.Kind != tree.Dir {
			return nil, fmt.Errorf("step %s: %s of the tree is a %s: nothing can run in it", s.Name, p.Path, n.Kind)
		}
		c.Tmpfs = append(c.Tmpfs, p)
	}
	for i, cache := range s.Caches {
		if err := c.bind(t, bind{From: "caches/" + cache.Key, Path: cache.Path}); err != nil {
			return nil, fmt.Errorf("step %s: cache[%d]: %w", s.Name, i, err)
		}
	}
	for i, m := range s.Mounts {
		b := bind{From: fmt.Sprintf("work/mounts/%d", i), Path: m.Path, ReadOnly: true, File: m.File}
		if m.File {
			b.From += "/file"
		}
		if err := c.bind(t, b); err != nil {
			return nil, fmt.Errorf("step %s: mounts[%d]: %w", s.Name, i, err)
		}
	}
	for i, secret := range s.Secrets {
		name := fmt.Sprintf("secrets/%d", i)
		c.Secrets = append(c.Secrets, file{Path: name, Data: secret.Value, Mode: 0o400})
		if err := c.bind(t, bind{From: name, Path: secret.Path, ReadOnly: true, File: true}); err != nil {
			return nil, fmt.Errorf("step %s: secrets[%d]: %w", s.Name, i, err)
		}
	}
	return c, c.plant(t, s)
}

// bind adds a mount, at the place where the tree's links lead.
func (c *config) bind(t *tree.Tree, b bind) error {
	real, err := t.Resolve(b.Path)
	if err != nil {
		return err
	}
	n := t.Get(real)
	switch {
	case real == "/":
		return fmt.Errorf("%s is the root", b.Path)
	case hidden(real) || n == nil: // made
	case b.File && n.Kind != tree.Regular:
		return fmt.Errorf("%s is a %s in the tree, not a file", real, n.Kind)
	case !b.File && n.Kind != tree.Dir:
		return fmt.Errorf("%s is a %s in the tree, not a directory", real, n.Kind)
	}
	b.Path = real
	c.Binds = append(c.Binds, b)
	return nil
}

// plant adds files that are there while the step runs.
func (c *config) plant(t *tree.Tree, s Step) error {
	files := slices.Clone(s.Files)
	if has(t, "/usr/sbin/invoke-rc.d") {
		files = append(files, File{"/usr/sbin/policy-rc.d", []byte("#!/bin/sh\nexit 101\n"), 0o755})
	}
	files = append(files, File{"/etc/hosts", []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n"), 0o644})
	for _, f := range files {
		if !has(t, f.Path) {
			c.put(t, f, false)
		}
	}
	if s.Network {
		if names, err := os.ReadFile("/etc/resolv.conf"); err == nil {
			c.put(t, File{"/etc/resolv.conf", names, 0o644}, true)
		}
	}
	return nil
}

// put adds one of these, unless its folder is not there.
func (c *config) put(t *tree.Tree, f File, replace bool) {
	real, err := t.Resolve(f.Path)
	if err != nil {
		return
	}
	out := file{Path: real, Data: f.Data, Mode: uint32(f.Mode), Replace: replace}
	dir, here := t.Get(path.Dir(real)), t.Get(real)
	switch {
	case hidden(real):
		c.Files = append(c.Files, out)
	case dir != nil && dir.Kind == tree.Dir && (here == nil || here.Kind == tree.Regular):
		c.Planted = append(c.Planted, out)
	}
}

func has(t *tree.Tree, p string) bool {
	real, err := t.Resolve(p)
	return err == nil && t.Get(real) != nil
}

// environment is all of a step's environment, sorted.
func environment(s Step, a user, o Options) []string {
	env := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME": a.home, "USER": a.name, "LOGNAME": a.name, "SHELL": "/bin/sh",
		"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC",
		"SOURCE_DATE_EPOCH": strconv.FormatInt(o.Epoch.Unix(), 10), "PYTHONHASHSEED": "0", "DEBIAN_FRONTEND": "noninteractive",
	}
	if s.Network {
		for _, e := range o.Env {
			name, value, _ := strings.Cut(e, "=")
			env[name] = value
		}
	}
	maps.Copy(env, s.Env)
	var out []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, name+"="+env[name])
	}
	return out
}

// user is who runs a step.
type user struct {
	name, home string
	uid, gid   uint32
	groups     []uint32
}

// maxAccounts bounds the account files: a step's file may be anything.
const maxAccounts = 4 << 20

// account finds a user, a name or number, in the tree.
func account(t *tree.Tree, who string) (user, error) {
	if who == "" {
		who = "root"
	}
	for _, f := range records(t, "/etc/passwd", 7) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil || f[0] != who && f[2] != who {
			continue
		}
		a := user{name: f[0], home: f[5], uid: uint32(uid), gid: uint32(gid)}
		if a.home == "" {
			a.home = "/"
		}
		for _, g := range records(t, "/etc/group", 4) {
			id, err := strconv.ParseUint(g[2], 10, 32)
			if err == nil && slices.Contains(strings.Split(g[3], ","), a.name) {
				a.groups = append(a.groups, uint32(id))
			}
		}
		return a, nil
	}
	if who == "root" || who == "0" {
		return user{name: "root", home: "/root"}, nil
	}
	if n, err := strconv.ParseUint(who, 10, 32); err == nil {
		return user{name: who, home: "/", uid: uint32(n), gid: uint32(n)}, nil
	}
	return user{}, &StepError{"user", fmt.Sprintf("the tree has no user %q", who)}
}

// records returns the lines of an account file that have so many fields.
func records(t *tree.Tree, p string, fields int) (out [][]string) {
	b, err := t.ReadFile(p, maxAccounts)
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(b) {
		if f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":"); len(f) == fields {
			out = append(out, f)
		}
	}
	return out
}

func keysOf(caches []Cache) (keys []string) {
	for _, c := range caches {
		keys = append(keys, c.Key)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func trimmed(secret []byte) []byte { return bytes.TrimRight(secret, "\r\n") }

func indent(s string) string {
	return "\t" + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n\t")
}
