package customize

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func id(n uint32) *uint32 { return &n }

const (
	sha512 = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"
	key1   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJl3dIeudNqd0DPMRD6OIh65tjkxFNOtwGcWB2gCgPhk one"
	key2   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJl3dIeudNqd0DPMRD6OIh65tjkxFNOtwGcWB2gCgPhk two"
)

// What useradd and groupadd write, Apply writes, where both choose IDs alike.
func TestUseraddAgrees(t *testing.T) {
	if _, err := exec.LookPath("useradd"); err != nil || os.Geteuid() != 0 {
		t.Skip("no useradd, or not root")
	}
	r := &recipe.Recipe{
		Groups: []recipe.Group{{Name: "app", GID: id(990)}, {Name: "next"}},
		Users: []recipe.User{
			{Name: "ops", Groups: []string{"sudo", "users"}, Shell: "/bin/bash"},
			{Name: "daemon2", System: true, Shell: "/usr/sbin/nologin"},
			{Name: "fixed", UID: id(1500), Group: "users", Gecos: "Fixed, Inc."},
			{Name: "last", UID: id(1501), Groups: []string{"sudo", "app"}, PasswordHash: sha512, Home: "/srv/a/last"},
			{Name: "low", UID: id(500), Group: "users"},
		},
	}
	commands := []string{
		"groupadd -g 990 app", "groupadd next",
		"useradd -m -G sudo,users -s /bin/bash ops", "useradd -r -s /usr/sbin/nologin daemon2",
		"useradd -m -u 1500 -g users -s /bin/sh -c Fixed,#Inc. fixed",
		"useradd -m -u 1501 -G sudo,app -s /bin/sh -p " + sha512 + " -d /srv/a/last last", "useradd -m -u 500 -g users -s /bin/sh low",
	}
	for name, defs := range map[string]string{
		"Debian":       "",
		"home mode":    "HOME_MODE 0700\nSUB_UID_MIN 200000\nSUB_UID_COUNT 1000\nSUB_GID_MIN 300000\nSYS_UID_MAX 900\nSYS_GID_MAX 910\nPASS_MAX_DAYS 30\n",
		"umask":        "UMASK 027\nSUB_UID_COUNT 0\n",
		"other limits": "UID_MIN 2000\nGID_MIN 2000\nSYS_UID_MIN 100\nSYS_UID_MAX 949\nSYS_GID_MAX 949\n",
	} {
		t.Run(name, func(t *testing.T) {
			tr := base(t, nil)
			if defs != "" {
				if err := tr.Put("/etc/login.defs", &tree.Inode{Data: diskimage.Bytes([]byte(defs + "USERGROUPS_ENAB yes\nPASS_WARN_AGE 7\nPASS_MIN_DAYS 0\n"))}); err != nil {
					t.Fatal(err)
				}
			}
			dir := t.TempDir()
			materialize(t, tr, dir)
			for _, c := range commands {
				args := strings.Fields(c)
				for i := range args {
					args[i] = strings.ReplaceAll(args[i], "#", " ")
				}
				// The judge's "today" is SOURCE_DATE_EPOCH, and --prefix has it read
				// the prefix's login.defs.
				cmd := exec.Command(args[0], append([]string{"--prefix", dir}, args[1:]...)...)
				cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(epoch.Unix(), 10))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", c, err, out)
				}
			}
			apply(t, tr, r)
			for _, p := range []string{"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/subuid", "/etc/subgid"} {
				want, err := os.ReadFile(filepath.Join(dir, p))
				if err != nil {
					t.Fatal(err)
				}
				if got := readFile(t, tr, p); got != string(want) {
					t.Errorf("%s differs from useradd's:\n%s", p, diff(string(want), got))
				}
			}
			for _, home := range []string{"/home/ops", "/home/daemon2", "/home/fixed", "/srv/a/last", "/srv/a", "/home/low"} {
				want := "none"
				if info, err := os.Stat(filepath.Join(dir, home)); err == nil {
					want = info.Mode().Perm().String()
				}
				got := "none"
				if n := tr.Get(home); n != nil {
					got = os.FileMode(n.Mode).String()
				}
				if got != want {
					t.Errorf("%s is %s, useradd makes it %s", home, got, want)
				}
			}
		})
	}
}

func TestNewUser(t *testing.T) {
	tr := base(t, nil)
	apply(t, tr, &recipe.Recipe{Users: []recipe.User{{
		Name: "ops", Groups: []string{"sudo"}, Shell: "/bin/bash", PasswordHash: "!", AuthorizedKeys: []string{key1, key2 + " "},
	}}})
	for p, want := range map[string]string{
		"/home/ops":                      "directory 0755 1000:1000",
		"/home/ops/.bashrc":              "file 0644 1000:1000",
		"/home/ops/.d":                   "directory 0755 1000:1000",
		"/home/ops/.d/x":                 "file 0644 1000:1000",
		"/home/ops/.l":                   "-> .bashrc",
		"/home/ops/.ssh":                 "directory 0700 1000:1000",
		"/home/ops/.ssh/authorized_keys": "file 0600 1000:1000",
		"/etc/passwd":                    "file 0644 0:0",
	} {
		wantEntry(t, tr, p, want)
	}
	wantFile(t, tr, "/home/ops/.ssh/authorized_keys", key1+"\n"+key2+"\n")
	for _, p := range []string{"/home/ops/.bashrc", "/etc/passwd", "/home/ops/.ssh"} {
		if got := tr.Get(p).MTime; !got.Equal(epoch) {
			t.Errorf("%s has the time %v, want the epoch %v", p, got, epoch)
		}
	}
	if got := tr.Get("/etc/skel/.bashrc"); got.UID != 0 || !got.MTime.Equal(older) {
		t.Errorf("/etc/skel/.bashrc changed: %+v", got)
	}
}

// A user of the tree is changed in what the recipe says, and nowhere else.
func TestExistingUser(t *testing.T) {
	tr := base(t, map[string]string{"/root/.ssh/authorized_keys": "# mine\n" + key1})
	before := readFile(t, tr, "/etc/passwd")
	apply(t, tr, &recipe.Recipe{Users: []recipe.User{
		{Name: "root", UID: id(0), Home: "/root", Shell: "/bin/sh", PasswordHash: sha512, AuthorizedKeys: []string{key1, key2}},
		{Name: "daemon", Shell: "/bin/bash", Groups: []string{"sudo", "users"}, Home: "/home/daemon", PasswordHash: "!"},
	}})
	wantFile(t, tr, "/root/.ssh/authorized_keys", "# mine\n"+key1+"\n"+key2+"\n")
	wantEntry(t, tr, "/root/.ssh/authorized_keys", "file 0600 0:0")
	wantFile(t, tr, "/etc/passwd", strings.Replace(before, "/usr/sbin:/usr/sbin/nologin", "/usr/sbin:/bin/bash", 1))
	shadow := strings.Split(readFile(t, tr, "/etc/shadow"), "\n")
	if want := "root:" + sha512 + ":20758:0:99999:7:::"; shadow[0] != want {
		t.Errorf("got  %s\nwant %s", shadow[0], want)
	}
	if want := "daemon:*:20000:0:99999:7:::"; shadow[1] != want {
		t.Errorf("got  %s\nwant %s", shadow[1], want)
	}
	if got := readFile(t, tr, "/etc/group"); !strings.Contains(got, "sudo:x:27:daemon\nusers:x:100:daemon\n") {
		t.Errorf("groups:\n%s", got)
	}
	if got := readFile(t, tr, "/etc/gshadow"); !strings.Contains(got, "sudo:*::daemon\n") {
		t.Errorf("gshadow:\n%s", got)
	}
}

func TestSystemUserHomes(t *testing.T) {
	tr := base(t, nil)
	apply(t, tr, &recipe.Recipe{Users: []recipe.User{
		{Name: "a", System: true, Home: "/home/a"}, {Name: "b", System: true, Home: "/var/lib/b"},
		{Name: "c", System: true, Home: "/nonexistent"}, {Name: "d", System: true, AuthorizedKeys: []string{key1}},
	}})
	for _, p := range []string{"/home/a", "/nonexistent"} {
		if tr.Get(p) != nil {
			t.Errorf("%s was made", p)
		}
	}
	wantEntry(t, tr, "/var/lib/b", "directory 0755 996:996")
	wantEntry(t, tr, "/home/d/.ssh/authorized_keys", "file 0600 994:994")
	if got := readFile(t, tr, "/etc/subuid"); got != "" {
		t.Errorf("system users have subordinate IDs: %q", got)
	}
}

// Explicit IDs are set aside before any is chosen, and lines nobody touches
// stay, whatever they are.
func TestIDsAndForeignLines(t *testing.T) {
	odd := "# comment\nroot:x:0:0:root:/root:/bin/bash\nshort:x\n\n+nis::::::\n"
	tr := base(t, map[string]string{"/etc/passwd": odd, "/etc/subuid": "x:165536:65536\ny:100000:10\n"})
	apply(t, tr, &recipe.Recipe{
		Groups: []recipe.Group{{Name: "auto"}, {Name: "given", GID: id(1000)}, {Name: "sudo"}, {Name: "root", GID: id(0)}},
		Users:  []recipe.User{{Name: "auto1"}, {Name: "given1", UID: id(1000)}, {Name: "auto2", Group: "given"}},
	})
	wantFile(t, tr, "/etc/passwd", "# comment\nroot:x:0:0:root:/root:/bin/bash\nshort:x\n\n"+
		"auto1:x:1001:1002::/home/auto1:/bin/sh\ngiven1:x:1000:1003::/home/given1:/bin/sh\nauto2:x:1002:1000::/home/auto2:/bin/sh\n+nis::::::\n")
	wantFile(t, tr, "/etc/subuid", "x:165536:65536\ny:100000:10\n"+
		"auto1:231072:65536\ngiven1:296608:65536\nauto2:362144:65536\n")
}

func TestNoShadow(t *testing.T) {
	tr := base(t, nil)
	for _, p := range []string{"/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid", "/etc/login.defs", "/etc/skel"} {
		tr.Remove(p)
	}
	apply(t, tr, &recipe.Recipe{Users: []recipe.User{{Name: "ops", PasswordHash: sha512}, {Name: "root", PasswordHash: "$5$abc$" + strings.Repeat("x", 43)}}})
	if got := readFile(t, tr, "/etc/passwd"); !strings.Contains(got, "\nops:"+sha512+":1000:1000::/home/ops:/bin/sh\n") || !strings.HasPrefix(got, "root:$5$abc$xxx") {
		t.Errorf("passwd:\n%s", got)
	}
	for _, p := range []string{"/etc/shadow", "/etc/gshadow", "/etc/subuid"} {
		if tr.Get(p) != nil {
			t.Errorf("%s was made", p)
		}
	}
}

func TestAccountMistakes(t *testing.T) {
	r := &recipe.Recipe{
		Groups: []recipe.Group{{Name: "bad name"}, {Name: "sudo", GID: id(28)}, {Name: "mine", GID: id(27)}},
		Users: []recipe.User{
			{Name: "a:b"},
			{Name: "b", UID: id(998)},
			{Name: "c", Groups: []string{"sudp", "users"}},
			{Name: "d", Shell: "/bin/bsah"},
			{Name: "e", PasswordHash: "secret"},
			{Name: "f", PasswordHash: "$1$salt$aaaaaaaaaaaaaaaaaaaaaa"},
			{Name: "g", Gecos: "a:b", Home: "rel"},
			{Name: "h", AuthorizedKeys: []string{"two\nlines"}},
			{Name: "i", Group: "nogrp"},
			{Name: "nobody", AuthorizedKeys: []string{key1}},
			{Name: "daemon", UID: id(7), Group: "sudo", Home: "/x"},
			{Name: "k", Home: "/etc/passwd/k"},
			{Name: "l", UID: id(1234)}, {Name: "m", UID: id(1234)},
		},
		Files: []recipe.File{{Path: "/x", Content: "x", Owner: "opps:root"}, {Path: "/y", Owner: "root:sud"}},
	}
	wantMistakes(t, mistakes(t, base(t, nil), r),
		"groups[0].name: no name for a group", "groups[1].gid: group sudo exists with the ID 27", "groups[2].gid: 27 is the ID of group sudo",
		"users[0].name: no name for a user",
		"users[1].uid: 998 is the ID of user systemd-network",
		`users[2].groups[0]: no group "sudp"; did you mean "sudo"?`,
		`users[3].shell: /bin/bsah is not in the image; did you mean "bash"?`,
		"users[4].passwordHash: not a hash", "users[5].passwordHash: not a hash",
		"users[6].gecos: a colon", "users[6].home: not an absolute path",
		"users[7].authorizedKeys[0]: one line",
		`users[8].group: no group "nogrp"`,
		"users[9].authorizedKeys: give the user a home",
		"users[10].uid: exists with the ID 1", "users[10].group: exists with the primary group 1", "users[10].home: exists with the home /usr/sbin",
		"users[11].home: not a directory",
		"users[13].uid: 1234 is the ID of user l",
		`files[0].owner: no user "opps"`, `files[1].owner: no group "sud" in /etc/group; did you mean "sudo"?`,
	)
}

func TestHashes(t *testing.T) {
	for hash, want := range map[string]bool{
		"!": true, "*": true, "!!": true, sha512: true, "!" + sha512: true,
		"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7": true,
		"$2b$10$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":              true,
		"x": false, "": false, "$6$salt$short": false, "$y$j9T$x": false, sha512 + "\n": false, "!*": false, sha512 + ":0": false,
	} {
		if got := hashes.MatchString(hash); got != want {
			t.Errorf("hash %q accepted: %v, want %v", hash, got, want)
		}
	}
}

// A symlink in a home leads nowhere but into the tree.
func TestHomeThroughSymlinks(t *testing.T) {
	tr := base(t, map[string]string{"/srv/homes/": "", "/home2": "-> ../../../srv/homes"})
	apply(t, tr, &recipe.Recipe{Users: []recipe.User{{Name: "ops", Home: "/home2/ops", AuthorizedKeys: []string{key1}}}})
	wantEntry(t, tr, "/srv/homes/ops/.ssh/authorized_keys", "file 0600 1000:1000")
	wantEntry(t, tr, "/srv/homes/ops/.bashrc", "file 0644 1000:1000")
}
