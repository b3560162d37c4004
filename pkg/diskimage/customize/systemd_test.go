package customize

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

const u = "/usr/lib/systemd/system/"

// unitFiles is a tree of units with every kind of [Install].
func unitFiles(more map[string]string) map[string]string {
	files := map[string]string{
		"/lib":                 "-> usr/lib",
		"/etc/debian_version":  "12.11\n",
		"/etc/systemd/system/": "",
		"/usr/lib/systemd/libsystemd-shared-252.so": "ELF",
		u + "ssh.service":                                "[Unit]\nDescription=x\n[Install]\nWantedBy=multi-user.target\nAlias=sshd.service\n",
		u + "multi-user.target":                          "[Unit]\n",
		u + "graphical.target":                           "[Unit]\n",
		u + "default.target":                             "-> graphical.target",
		u + "runlevel3.target":                           "-> multi-user.target",
		u + "tmpl@.service":                              "[Install]\nWantedBy=multi-user.target\nDefaultInstance=def\n",
		u + "inst@.service":                              "[Install]\nWantedBy=dev-%i.device %p-%j-%N.target\nRequiredBy=%n.d.target 100%%.target\n",
		u + "dash-a-b@.service":                          "[Install]\nWantedBy=x-%i-%j.target\n",
		u + "noinst@.service":                            "[Install]\nWantedBy=multi-user.target\n",
		u + "onlydef@.service":                           "[Install]\nDefaultInstance=foo\n",
		u + "specdef@.service":                           "[Install]\nDefaultInstance=%p-x\nWantedBy=%i.target %n\n",
		u + "totmpl@.service":                            "[Install]\nWantedBy=foo@.service\n",
		u + "aliast@.service":                            "[Install]\nWantedBy=multi-user.target\nAlias=other@.service\n",
		u + "aliasi@.service":                            "[Install]\nAlias=second@%i.service\nDefaultInstance=q\n",
		u + "static.service":                             "[Unit]\n",
		u + "also.service":                               "[Install]\nAlso=ssh.service static.service gone.service\n",
		u + "also2.service":                              "[Install]\nWantedBy=a.target\nAlso=also3.service\n",
		u + "also3.service":                              "[Install]\nWantedBy=b.target\nAlso=also2.service %p.service\n",
		u + "alsostatic.service":                         "[Install]\nAlso=static.service\n",
		u + "vendor.service":                             "-> ssh.service",
		u + "auto@.service":                              "-> tmpl@.service",
		u + "self.service":                               "[Install]\nAlias=self.service other.service\nWantedBy=a.target\n",
		u + "badalias.service":                           "[Install]\nAlias=foo.socket\n",
		u + "badalias2.service":                          "[Install]\nAlias=foo@x.service\n",
		u + "badwants.service":                           "[Install]\nWantedBy=nosuffix\n",
		u + "am.mount":                                   "[Install]\nAlias=other.mount\nWantedBy=local-fs.target\n",
		u + "masked.service":                             "[Install]\nWantedBy=a.target\n",
		"/etc/systemd/system/masked.service":             "-> /dev/null",
		u + "alsomasked.service":                         "[Install]\nWantedBy=a.target\nAlso=masked.service\n",
		u + "up.service":                                 "[Install]\nUpheldBy=a.target\n",
		u + "up2.service":                                "[Install]\nUpheldBy=a.target\nWantedBy=b.target\n",
		u + "syntax.service":                             "[Install]\nWantedBy=\"q a.target\"\nWantedBy=\nWantedBy = d.target\\\n# comment\n  'e.target'\n; c\n[Service]\nWantedBy=no.target\n[Install]\nWantedBy=g\\x2dh.target\r\nwantedby=l.target\nrubbish\n",
		u + "drop.service":                               "[Unit]\n",
		u + "drop.service.d/10-a.conf":                   "[Install]\nWantedBy=hidden.target\n",
		"/etc/systemd/system/drop.service.d/10-a.conf":   "[Install]\nWantedBy=c.target\n",
		"/etc/systemd/system/drop.service.d/20-b.conf":   "[Install]\nWantedBy=b.target\n",
		"/etc/systemd/system/drop.service.d/note.txt":    "[Install]\nWantedBy=txt.target\n",
		"/etc/systemd/system/service.d/x.conf":           "[Install]\nWantedBy=type.target\n",
		u + "reset.service":                              "[Install]\nWantedBy=a.target\n",
		"/etc/systemd/system/reset.service.d/x.conf":     "[Install]\nWantedBy=\nWantedBy=z.target\n",
		"/etc/systemd/system/tmpl@one.service.d/x.conf":  "[Install]\nWantedBy=one.target\nDefaultInstance=no\n",
		"/etc/systemd/system/tmpl@.service.d/y.conf":     "[Install]\nWantedBy=all.target\n",
		"/etc/systemd/system/local.service":              "[Install]\nWantedBy=a.target\n",
		"/usr/local/lib/systemd/system/usrlocal.service": "[Install]\nWantedBy=a.target\n",
		"/opt/linked.service":                            "[Install]\nWantedBy=a.target\n",
		"/etc/systemd/system/linked.service":             "-> /opt/linked.service",
		"/etc/init.d/sysv":                               "#!/bin/sh\n",
		"/usr/lib/systemd/system/escaped@.service":       "[Install]\nWantedBy=%i.target\n",
	}
	maps.Copy(files, more)
	return files
}

// systemctl runs the real one on the tree's files, for each list of arguments.
func systemctl(t *testing.T, files map[string]string, commands ...[]string) (links []string, ok bool) {
	t.Helper()
	dir := t.TempDir()
	materialize(t, newTree(t, files), dir)
	ok = true
	for _, c := range commands {
		ok = accepts(t, dir, c...) && ok
	}
	return linksOf(t, dir, "/etc/systemd/system"), ok
}

// accepts reports whether systemctl does what it is told, and all of it: a unit
// without [Install], or a failure beside a success, exits 0.
func accepts(t *testing.T, dir string, args ...string) bool {
	t.Helper()
	out, err := exec.Command("systemctl", append([]string{"--root=" + dir}, args...)...).CombinedOutput()
	t.Logf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	return err == nil && !strings.Contains(string(out), "no installation config") && !strings.Contains(string(out), "Failed to enable unit, ")
}

func needSystemd252(t *testing.T) {
	t.Helper()
	out, err := exec.Command("systemctl", "--version").Output()
	if err != nil || !strings.HasPrefix(string(out), "systemd 252 ") {
		t.Skipf("the judge is Debian 12's systemctl 252: %v %.20s", err, out)
	}
}

// What systemctl --root does to a tree is what Apply does.
func TestSystemctlAgrees(t *testing.T) {
	needSystemd252(t)
	link := func(target string) map[string]string {
		return map[string]string{"/etc/systemd/system/" + target: "-> /lib/systemd/system/ssh.service"}
	}
	for _, c := range []struct {
		name            string
		more            map[string]string
		enable, disable []string
		mask            []string
		target          string
	}{
		{name: "plain", enable: []string{"ssh.service"}},
		{name: "no suffix", enable: []string{"ssh"}},
		{name: "several", enable: []string{"ssh.service", "tmpl@.service", "tmpl@b.service", "am.mount"}},
		{name: "default instance", enable: []string{"tmpl@.service"}},
		{name: "instance and its drop-ins", enable: []string{"tmpl@one.service"}},
		{name: "specifiers", enable: []string{"inst@sda1.service"}, more: map[string]string{u + "inst@.service": "[Install]\nWantedBy=dev-%i.device %p-%j-%N.target\nRequiredBy=%n.d.target\n"}},
		{name: "last component", enable: []string{"dash-a-b@foo.service"}},
		{name: "escaped instance", enable: []string{`escaped@a\x2db-c.service`}},
		{name: "specifiers of a default instance", enable: []string{"specdef@.service"}},
		{name: "template wanted by a template", enable: []string{"totmpl@.service"}},
		{name: "alias of an instance", enable: []string{"aliast@x.service"}},
		{name: "alias with the instance", enable: []string{"aliasi@.service"}},
		{name: "alias of an instance by specifier", enable: []string{"aliasi@z.service"}},
		{name: "Also", enable: []string{"also.service"}},
		{name: "Also in circles", enable: []string{"also2.service"}},
		{name: "alias of the distribution", enable: []string{"vendor.service"}},
		{name: "template alias of the distribution", enable: []string{"auto@z.service"}},
		{name: "alias of itself", enable: []string{"self.service"}},
		{name: "Also of a masked one", enable: []string{"alsomasked.service"}},
		{name: "UpheldBy beside WantedBy", enable: []string{"up2.service"}},
		{name: "syntax", enable: []string{"syntax.service"}},
		{name: "drop-ins", enable: []string{"drop.service"}},
		{name: "drop-in that resets", enable: []string{"reset.service"}},
		{name: "unit in /etc", enable: []string{"local.service"}},
		{name: "unit in /usr/local", enable: []string{"usrlocal.service"}},
		{name: "linked unit", enable: []string{"linked.service"}},
		{name: "same link otherwise", enable: []string{"ssh.service"}, more: map[string]string{
			"/etc/systemd/system/multi-user.target.wants/ssh.service": "-> ../../../../lib/systemd/system/ssh.service"}},
		{name: "other link is replaced", enable: []string{"ssh.service"}, more: map[string]string{
			"/etc/systemd/system/multi-user.target.wants/ssh.service": "-> /usr/lib/systemd/system/static.service"}},

		{name: "disable", disable: []string{"ssh.service"}, more: link("multi-user.target.wants/ssh.service")},
		{name: "disable what is not enabled", disable: []string{"ssh.service"}},
		{name: "disable by all links", disable: []string{"ssh.service"}, more: map[string]string{
			"/etc/systemd/system/sshd.service":               "-> /lib/systemd/system/ssh.service",
			"/etc/systemd/system/x.target.wants/al.service":  "-> /usr/lib/systemd/system/ssh.service",
			"/etc/systemd/system/y.target.wants/ssh.service": "-> /nowhere",
			"/etc/systemd/system/z.target.wants/two.service": "-> ../sshd.service",
			"/etc/systemd/system/z.target.wants/not.service": "-> /lib/systemd/system/also2.service",
		}},
		{name: "disable an instance", disable: []string{"tmpl@a.service"}, more: map[string]string{
			"/etc/systemd/system/multi-user.target.wants/tmpl@a.service": "-> /lib/systemd/system/tmpl@.service",
			"/etc/systemd/system/multi-user.target.wants/tmpl@b.service": "-> /lib/systemd/system/tmpl@.service"}},
		{name: "disable all instances", disable: []string{"tmpl@.service"}, more: map[string]string{
			"/etc/systemd/system/multi-user.target.wants/tmpl@a.service": "-> /lib/systemd/system/tmpl@.service",
			"/etc/systemd/system/multi-user.target.wants/tmpl@b.service": "-> /lib/systemd/system/tmpl@.service"}},
		{name: "disable with Also", disable: []string{"also3.service"}, more: map[string]string{
			"/etc/systemd/system/a.target.wants/also2.service": "-> /lib/systemd/system/also2.service",
			"/etc/systemd/system/b.target.wants/also3.service": "-> /lib/systemd/system/also3.service"}},
		{name: "disable by the distribution's alias", disable: []string{"vendor.service"}, more: link("multi-user.target.wants/ssh.service")},

		{name: "mask", mask: []string{"ssh.service", "tmpl@.service", "tmpl@a.service", "vendor.service", "masked.service", "boot.mount", "sysv.service"}},
		{name: "disable and mask", disable: []string{"ssh.service"}, mask: []string{"ssh.service"}, more: link("multi-user.target.wants/ssh.service")},
		{name: "default target", target: "multi-user.target"},
		{name: "default target by alias", target: "runlevel3.target"},
		{name: "another default target", target: "graphical.target", more: map[string]string{
			"/etc/systemd/system/default.target": "-> /lib/systemd/system/multi-user.target"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			files := unitFiles(c.more)
			var commands [][]string
			for _, x := range []struct {
				verb  string
				units []string
			}{{"enable", c.enable}, {"disable", c.disable}, {"mask", c.mask}} {
				for _, unit := range x.units {
					commands = append(commands, []string{x.verb, unit})
				}
			}
			if c.target != "" {
				commands = append(commands, []string{"set-default", c.target})
			}
			want, ok := systemctl(t, files, commands...)
			if !ok {
				t.Fatal("systemctl refuses this case")
			}
			tr := newTree(t, files)
			apply(t, tr, &recipe.Recipe{Systemd: recipe.Systemd{Enable: c.enable, Disable: c.disable, Mask: c.mask, DefaultTarget: c.target}})
			got := treeLinks(tr, "/etc/systemd/system")
			if !slices.Equal(got, want) {
				t.Errorf("links differ from systemctl's:\n%s", diff(strings.Join(want, "\n")+"\n", strings.Join(got, "\n")+"\n"))
			}
		})
	}
}

// What systemctl refuses, or says cannot be enabled, is a mistake at its line.
func TestSystemctlRefuses(t *testing.T) {
	needSystemd252(t)
	files := unitFiles(map[string]string{
		"/etc/systemd/system/mine.service":  "-> /lib/systemd/system/ssh.service",
		u + "taken.service":                 "[Install]\nAlias=mine.service\n",
		u + "broken.service":                "[Install\nWantedBy=a.target\n",
		"/etc/systemd/system/empty.service": "",
		u + "empty.service":                 "[Install]\nWantedBy=a.target\n",
	})
	dir := t.TempDir()
	materialize(t, newTree(t, files), dir)
	for unit, want := range map[string]string{
		"gone.service":       "no unit gone.service in the image",
		"shs.service":        `did you mean "ssh.service"?`,
		"static.service":     "no [Install] section",
		"alsostatic.service": "nothing in [Install] but Also=",
		"onlydef@.service":   "no [Install] section",
		"noinst@.service":    "name an instance, such as noinst@NAME.service",
		"masked.service":     "masked.service is masked by /etc/systemd/system/masked.service",
		"mine.service":       "is a link to ssh.service: name that instead",
		"badalias.service":   "badalias.service cannot be called foo.socket",
		"badalias2.service":  "cannot be called foo@x.service",
		"badwants.service":   "WantedBy=nosuffix is no name of a unit",
		"up.service":         "only UpheldBy=",
		"taken.service":      "/etc/systemd/system/mine.service is a link to",
		"sysv.service":       "only the init script /etc/init.d/sysv",
		"inst@x.service":     "100%.target is no name",
		"broken.service":     "line 1: invalid section header",
		"empty.service":      "empty.service is masked",
	} {
		t.Run(unit, func(t *testing.T) {
			if accepts(t, dir, "enable", unit) {
				t.Error("systemctl accepts this")
			}
			r := &recipe.Recipe{Systemd: recipe.Systemd{Enable: []string{unit}}}
			wantMistakes(t, mistakes(t, newTree(t, files), r), "systemd.enable[0]: "+want)
		})
	}
}

// preset-all, which systemd runs on a first boot, agrees with the recipe.
func TestPresetAllAgrees(t *testing.T) {
	needSystemd252(t)
	files := map[string]string{
		"/lib": "-> usr/lib", "/etc/debian_version": "12\n", "/etc/systemd/system/": "",
		u + "on.service":     "[Install]\nWantedBy=a.target\n",
		u + "off.service":    "[Install]\nWantedBy=a.target\n",
		u + "getty@.service": "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n",
		u + "t@.service":     "[Install]\nWantedBy=t.target\nDefaultInstance=def\n",
		u + "with.service":   "[Install]\nWantedBy=a.target\nAlso=with.socket\n",
		u + "with.socket":    "[Install]\nWantedBy=sockets.target\n",
		u + "no.service":     "[Install]\nWantedBy=a.target\nAlso=no.socket\n",
		u + "no.socket":      "[Install]\nWantedBy=sockets.target\n",
		u + "masked.service": "[Install]\nWantedBy=a.target\n",
		"/etc/systemd/system/a.target.wants/off.service":            "-> /lib/systemd/system/off.service",
		"/etc/systemd/system/getty.target.wants/getty@tty1.service": "-> /lib/systemd/system/getty@.service",
	}
	for name, policy := range map[string]string{"all off": "disable *\n", "all on": "enable *\n"} {
		t.Run(name, func(t *testing.T) {
			files := maps.Clone(files)
			files["/usr/lib/systemd/system-preset/99-default.preset"] = policy
			tr := newTree(t, files)
			apply(t, tr, &recipe.Recipe{Systemd: recipe.Systemd{
				Enable:  []string{"on.service", "t@x.service", "t@y.service", "with.service"},
				Disable: []string{"off.service", "getty@tty1.service", "no.service"},
				Mask:    []string{"masked.service"},
			}})
			dir := t.TempDir()
			materialize(t, tr, dir)
			if out, err := exec.Command("systemctl", "--root="+dir, "preset-all").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got, want := linksOf(t, dir, "/etc/systemd/system"), treeLinks(tr, "/etc/systemd/system")
			if !slices.Equal(got, want) {
				t.Errorf("preset-all changes:\n%s\nwith\n%s", diff(strings.Join(want, "\n")+"\n", strings.Join(got, "\n")+"\n"), readFile(t, tr, presetFile))
			}
		})
	}
}

// A package's maintainer script, run by an upgrade, leaves what the recipe said:
// these are the calls that debhelper puts into postinst.
func TestPackageUpgradeAgrees(t *testing.T) {
	needSystemd252(t)
	if _, err := exec.LookPath("deb-systemd-helper"); err != nil {
		t.Skip("no deb-systemd-helper to judge")
	}
	const state = "/var/lib/systemd/deb-systemd-helper-"
	files := map[string]string{
		"/lib": "-> usr/lib", "/bin": "-> usr/bin", "/usr/bin/": "", "/etc/debian_version": "12\n", "/etc/systemd/system/": "",
	}
	names := []string{"on.service", "off.service", "new.service", "fresh.service", "masked.service", "kept.service"}
	for _, name := range names {
		link := "/a.target.wants/" + name
		files[u+name] = "[Install]\nWantedBy=a.target\n"
		if name != "fresh.service" { // is the first to come with this helper
			files[state+"enabled/"+name+".dsh-also"] = "/etc/systemd/system" + link + "\n"
			files[state+"enabled"+link] = ""
		}
		if name != "new.service" && name != "fresh.service" {
			files["/etc/systemd/system"+link] = "-> /lib/systemd/system/" + name
		}
	}
	// The helper masked this one when its package was removed, and would undo that.
	files[state+"masked/masked.service"] = ""
	files["/etc/systemd/system/masked.service"] = "-> /dev/null"
	tr := newTree(t, files)
	apply(t, tr, &recipe.Recipe{Systemd: recipe.Systemd{
		Enable: []string{"on.service", "new.service"}, Disable: []string{"off.service", "fresh.service"}, Mask: []string{"masked.service"},
	}})
	dir := t.TempDir()
	materialize(t, tr, dir)
	if err := os.WriteFile(dir+"/usr/bin/systemctl", nil, 0o755); err != nil { // that there is one
		t.Fatal(err)
	}
	helper := func(args ...string) bool {
		cmd := exec.Command("deb-systemd-helper", args...)
		cmd.Env = append(os.Environ(), "DPKG_ROOT="+dir, "DPKG_MAINTSCRIPT_PACKAGE=test")
		out, err := cmd.CombinedOutput()
		t.Logf("deb-systemd-helper %s: %v\n%s", strings.Join(args, " "), err, out)
		return err == nil
	}
	for _, name := range names {
		helper("unmask", name)
		if helper("--quiet", "was-enabled", name) {
			helper("enable", name)
		} else {
			helper("update-state", name)
		}
	}
	got, want := linksOf(t, dir, "/etc/systemd/system"), []string{
		"/etc/systemd/system/",
		"/etc/systemd/system/a.target.wants/",
		"/etc/systemd/system/a.target.wants/kept.service -> /lib/systemd/system/kept.service",
		"/etc/systemd/system/a.target.wants/masked.service -> /lib/systemd/system/masked.service",
		"/etc/systemd/system/a.target.wants/new.service -> /lib/systemd/system/new.service",
		"/etc/systemd/system/a.target.wants/on.service -> /lib/systemd/system/on.service",
		"/etc/systemd/system/masked.service -> /dev/null",
	}
	if !slices.Equal(got, want) {
		t.Errorf("after the upgrade:\n%s", diff(strings.Join(want, "\n")+"\n", strings.Join(got, "\n")+"\n"))
	}
}

func TestSystemdConflicts(t *testing.T) {
	r := &recipe.Recipe{Systemd: recipe.Systemd{
		Enable:        []string{"ssh", "tmpl@a.service", "also2.service", "no such"},
		Disable:       []string{"ssh.service", "sysv.service", "static.service", "also3.service", "mine.service", "linked.service"},
		Mask:          []string{"tmpl@a.service", "nonsense.service", "local.service", "mine.service"},
		DefaultTarget: "mutli-user.target",
	}}
	tr := newTree(t, unitFiles(map[string]string{"/etc/systemd/system/mine.service": "-> /lib/systemd/system/ssh.service"}))
	wantMistakes(t, mistakes(t, tr, r),
		"systemd.enable[0]: ssh.service is in disable too",
		"systemd.enable[1]: tmpl@a.service is in mask too",
		`systemd.enable[3]: "no such" is no name of a unit`,
		"systemd.disable[1]: only the init script",
		"systemd.disable[2]: no [Install] section",
		"systemd.disable[3]: this disables also2.service too",
		"systemd.disable[4]: name that instead",
		"systemd.disable[5]: disabling the unit would remove it",
		"systemd.mask[1]: no unit nonsense.service",
		"systemd.mask[2]: a mask does not replace it",
		"systemd.mask[3]: mask that instead",
		`systemd.defaultTarget: did you mean "multi-user.target"?`,
	)
}

func TestUpheldByNeeds254(t *testing.T) {
	files := unitFiles(map[string]string{"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so": "ELF"})
	tr := newTree(t, files)
	apply(t, tr, &recipe.Recipe{Systemd: recipe.Systemd{Enable: []string{"up.service"}}})
	wantEntry(t, tr, "/etc/systemd/system/a.target.upholds/up.service", "-> /usr/lib/systemd/system/up.service")
}

func TestSpecifierOfAMachine(t *testing.T) {
	tr := newTree(t, unitFiles(map[string]string{u + "m.service": "[Install]\nWantedBy=%m.target\n"}))
	r := &recipe.Recipe{Systemd: recipe.Systemd{Enable: []string{"m.service"}}}
	wantMistakes(t, mistakes(t, tr, r), "systemd.enable[0]: uses %m, which only a running machine knows")
}
