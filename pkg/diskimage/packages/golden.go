package packages

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Golden makes a tree one that any number of machines can start from: nothing
// in it is of the machine that built it, of the moment, or must differ between
// two machines. It applies the tables below, adds a unit that makes ssh host
// keys at first boot (see addHostKeyUnit), and lets no timestamp be later than
// epoch. Compiled Python whose source's time changes goes on being valid.
//
// It works on the tree alone, follows no symlink out of a directory, and is
// idempotent. Inodes are replaced, not changed, so trees that share them keep
// theirs.
func Golden(t *tree.Tree, epoch time.Time) error {
	for _, r := range goldenRules {
		if err := r.apply(t); err != nil {
			return fmt.Errorf("golden: %s: %w", r.path, err)
		}
	}
	if err := emptyMachineID(t, epoch); err != nil {
		return fmt.Errorf("golden: %w", err)
	}
	if err := addHostKeyUnit(t, epoch); err != nil {
		return fmt.Errorf("golden: %w", err)
	}
	if err := clampTimes(t, epoch); err != nil {
		return fmt.Errorf("golden: %w", err)
	}
	return nil
}

// action is what a rule does to what it matches.
type action uint8

const (
	removeAll   action = iota // the path and what is below it; a symlink stays
	removeFiles               // regular files and sockets below; directories and symlinks stay
	emptyDir                  // everything below; the directory stays
	emptyFile                 // the contents; owner and mode stay
)

// rule is one line of a table. The last element of path may be a pattern
// (path.Match).
type rule struct {
	path   string
	action action
}

// goldenRules are applied in order.
var goldenRules = []rule{
	// identity and secrets of one machine
	{"/etc/ssh/ssh_host_*", removeAll},
	{"/var/lib/dbus/machine-id", removeAll},
	{"/var/lib/systemd/random-seed", removeAll},
	{"/var/lib/systemd/credential.secret", removeAll},
	{"/var/lib/urandom/random-seed", removeAll},
	{"/var/lib/NetworkManager/secret_key", removeAll},
	{"/etc/nvme/host*", removeAll},
	{"/etc/ssl/private/ssl-cert-snakeoil.key", removeAll},
	{"/etc/ssl/certs/ssl-cert-snakeoil.pem", removeAll},
	{"/etc/udev/rules.d/70-persistent-*", removeAll},
	// the build host's network and name; a symlink is the distribution's choice
	{"/etc/resolv.conf", removeAll},
	{"/etc/hostname", removeAll},
	// what happened so far. The four are made with their owners by postinsts,
	// and login programs write them only where they exist
	{"/var/log/wtmp", emptyFile},
	{"/var/log/btmp", emptyFile},
	{"/var/log/lastlog", emptyFile},
	{"/var/log/faillog", emptyFile},
	{"/var/log/journal", emptyDir},
	{"/var/log", removeFiles},
	{"/var/lib/cloud", emptyDir},
	{"/var/lib/dhcp", emptyDir},
	{"/var/lib/systemd/timers", emptyDir},
	{"/root/.bash_history", removeAll},
	{"/root/.cache", removeAll},
	// what can be had again
	{"/var/lib/apt/lists", emptyDir},
	{"/var/lib/apt/periodic", emptyDir},
	{"/var/cache/apt", removeFiles},
	{"/var/cache/apt/archives/partial", removeAll}, // _apt's where it could reach the tree; apt makes it again
	{"/var/cache/ldconfig", emptyDir},
	{"/var/cache/debconf/*-old", removeAll},
	{"/var/lib/dpkg/*-old", removeAll},
	{"/etc/passwd-", removeAll},
	{"/etc/shadow-", removeAll},
	{"/etc/group-", removeAll},
	{"/etc/gshadow-", removeAll},
	{"/etc/subuid-", removeAll},
	{"/etc/subgid-", removeAll},
	{"/etc/.pwd.lock", removeAll},
	// what does not outlive a boot
	{"/tmp", emptyDir},
	{"/var/tmp", emptyDir},
	{"/run", emptyDir},
}

// apply does what the rule says to every path that it matches.
func (r rule) apply(t *tree.Tree) error {
	dir, pattern := path.Split(r.path)
	for _, name := range t.Children(dir) {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return err
		}
		if p := path.Join(dir, name); ok {
			if err := r.applyTo(t, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r rule) applyTo(t *tree.Tree, p string) error {
	n := t.Get(p)
	switch r.action {
	case removeAll:
		if n.Kind != tree.Symlink {
			t.Remove(p)
		}
	case emptyDir:
		for _, name := range t.Children(p) {
			t.Remove(path.Join(p, name))
		}
	case removeFiles:
		var files []string
		for e := range t.Below(p) {
			if k := e.Inode.Kind; k == tree.Socket || k == tree.Regular && !keptEmpty(e.Path) {
				files = append(files, e.Path)
			}
		}
		for _, f := range files {
			t.Remove(f)
		}
	case emptyFile:
		if n.Kind == tree.Regular && n.Size() > 0 {
			c := n.Clone()
			c.Data = nil
			return t.Put(p, c)
		}
	}
	return nil
}

// keptEmpty reports whether a rule keeps the file at p, without its contents.
func keptEmpty(p string) bool {
	for _, r := range goldenRules {
		if r.action == emptyFile && r.path == p {
			return true
		}
	}
	return false
}

// emptyMachineID makes /etc/machine-id empty, as machine-id(5) asks of an image:
// systemd fills it at boot. A tree without systemd that has none gets none.
func emptyMachineID(t *tree.Tree, epoch time.Time) error {
	const p = "/etc/machine-id"
	if t.Get(p) == nil && !has(t, "/lib/systemd/systemd") {
		return nil
	}
	return t.Put(p, &tree.Inode{Mode: 0o444, MTime: epoch})
}

// has reports whether a path names something, symlinks followed.
func has(t *tree.Tree, p string) bool {
	real, err := t.Resolve(p)
	return err == nil && t.Get(real) != nil
}

// hostLabels are extended attributes that the build host's kernel, not the
// distribution, puts on files.
var hostLabels = []string{"security.selinux", "security.SMACK64", "security.ima", "security.evm"}

// clampTimes makes no timestamp later than epoch, and drops host labels. What
// was one inode stays one.
func clampTimes(t *tree.Tree, epoch time.Time) error {
	fresh := map[*tree.Inode]*tree.Inode{}
	var changed []tree.Entry
	for e := range t.All() {
		c, seen := fresh[e.Inode]
		if !seen {
			var err error
			if c, err = goldenInode(t, e, epoch); err != nil {
				return fmt.Errorf("%s: %w", e.Path, err)
			}
			fresh[e.Inode] = c
		}
		if c != nil {
			changed = append(changed, tree.Entry{Path: e.Path, Inode: c})
		}
	}
	for _, e := range changed {
		if err := t.Put(e.Path, e.Inode); err != nil {
			return err
		}
	}
	return nil
}

// goldenInode returns what is to take the place of an entry's inode, nil if it
// may stay.
func goldenInode(t *tree.Tree, e tree.Entry, epoch time.Time) (*tree.Inode, error) {
	var c *tree.Inode
	edit := func() *tree.Inode {
		if c == nil {
			c = e.Inode.Clone()
		}
		return c
	}
	if strings.HasSuffix(e.Path, ".pyc") && e.Inode.Kind == tree.Regular {
		data, err := clampPyc(t, e, epoch)
		if err != nil {
			return nil, err
		}
		if data != nil {
			edit().Data = data
		}
	}
	for _, label := range hostLabels {
		if _, ok := e.Inode.Xattrs[label]; ok {
			delete(edit().Xattrs, label)
		}
	}
	if e.Inode.MTime.After(epoch) {
		edit().MTime = epoch
	}
	return c, nil
}
