package customize

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func mode(m uint16) *uint16 { return &m }

func TestFiles(t *testing.T) {
	tr := base(t, map[string]string{"/etc/motd": "old\n", "/var/tmp/": "", "/etc/alternatives/x": "-> /usr/bin/sh", "/opt/keep": "-> /nowhere"})
	tr.Get("/var/tmp").Mode = 0o1777
	apply(t, tr, &recipe.Recipe{
		Users: []recipe.User{{Name: "app"}},
		Files: []recipe.File{
			{Path: "/etc/motd", Content: "golden\n"},
			{Path: "/bin/tool", Content: "#!\n", Mode: mode(0o4755)},
			{Path: "/srv/new/deep/secret", Content: "s", Mode: mode(0o600), Owner: "app:sudo"},
			{Path: "/srv/numbers", Owner: "12:34"},
			{Path: "/srv/own", Content: "x", Owner: "app"},
			{Path: "/etc/alternatives/x", Target: "../../usr/bin/bash"},
			{Path: "/var/tmp", Directory: true},
			{Path: "/var/log/app", Directory: true, Owner: "app:app", Mode: mode(0o750)},
			{Path: "/home/app", Directory: true, Mode: mode(0o700)},
			{Path: "/opt/keep", Content: "a file now"},
		},
	})
	for p, want := range map[string]string{
		"/etc/motd":            "file 0644 0:0",
		"/usr/bin/tool":        "file 4755 0:0",
		"/srv/new":             "directory 0755 0:0",
		"/srv/new/deep/secret": "file 0600 1000:27",
		"/srv/numbers":         "file 0644 12:34",
		"/srv/own":             "file 0644 1000:1000",
		"/etc/alternatives/x":  "-> ../../usr/bin/bash",
		"/var/tmp":             "directory 1777 0:0",
		"/var/log/app":         "directory 0750 1000:1000",
		"/home/app":            "directory 0700 1000:1000",
		"/opt/keep":            "file 0644 0:0",
		"/bin":                 "-> usr/bin",
	} {
		wantEntry(t, tr, p, want)
	}
	wantFile(t, tr, "/etc/motd", "golden\n")
	for _, p := range []string{"/etc/motd", "/srv/new", "/srv/new/deep", "/etc/alternatives/x", "/var/log/app"} {
		if got := tr.Get(p).MTime; !got.Equal(epoch) {
			t.Errorf("%s has the time %v, want the epoch", p, got)
		}
	}
	if got := tr.Get("/var/tmp").MTime; !got.Equal(older) {
		t.Error("/var/tmp was touched")
	}
}

// A source is taken without what a checkout does not keep.
func TestSources(t *testing.T) {
	host := t.TempDir()
	write := func(name string, perm os.FileMode) {
		t.Helper()
		p := filepath.Join(host, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(name), perm); err != nil {
			t.Fatal(err)
		}
	}
	write("tool", 0o700)
	write("app/run", 0o711)
	write("app/conf/a.conf", 0o600)
	write("app/lib/x.so", 0o664)
	write("big", 0o644)
	if err := os.Truncate(filepath.Join(host, "big"), 1<<20); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"app/link": "conf/a.conf", "totool": "tool"} {
		if err := os.Symlink(target, filepath.Join(host, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(host, "app/run"), filepath.Join(host, "app/run2")); err != nil {
		t.Fatal(err)
	}
	src := func(name string) string { return filepath.Join(host, name) }
	tr := base(t, map[string]string{"/opt/app/conf/old": "old", "/opt/app/lib": "-> ../lib"})
	tr.Get("/opt/app/conf").Mode = 0o2750
	apply(t, tr, &recipe.Recipe{Files: []recipe.File{
		{Path: "/usr/local/bin/tool", Source: src("tool")},
		{Path: "/usr/local/bin/tool2", Source: src("totool"), Mode: mode(0o500), Owner: "daemon:daemon"},
		{Path: "/opt/app", Source: src("app"), Owner: "daemon:daemon"},
		{Path: "/opt/new", Source: src("app"), Owner: "daemon:daemon", Mode: mode(0o700)},
		{Path: "/opt/big", Source: src("big")},
	}})
	for p, want := range map[string]string{
		"/usr/local/bin/tool":  "file 0755 0:0",
		"/usr/local/bin/tool2": "file 0500 1:1",
		"/opt/app":             "directory 0755 0:0",
		"/opt/app/run":         "file 0755 1:1",
		"/opt/app/link":        "-> conf/a.conf",
		"/opt/app/conf":        "directory 2750 0:0",
		"/opt/app/conf/a.conf": "file 0644 1:1",
		"/opt/app/conf/old":    "file 0644 0:0",
		"/opt/app/lib":         "-> ../lib",
		"/opt/lib/x.so":        "file 0644 1:1",
		"/opt/new":             "directory 0700 1:1",
		"/opt/new/conf":        "directory 0755 1:1",
	} {
		wantEntry(t, tr, p, want)
	}
	wantFile(t, tr, "/opt/new/conf/a.conf", "app/conf/a.conf")
	if tr.Get("/opt/new/run") == tr.Get("/opt/new/run2") {
		t.Error("hard links of the host became hard links")
	}
	if got := tr.Get("/opt/big").Data.Extents(); len(got) != 1 || got[0] != (diskimage.Extent{Off: 0, Len: 1 << 20}) {
		t.Errorf("extents %v follow the host's filesystem", got)
	}
	for e := range tr.Below("/opt/new") {
		if !e.Inode.MTime.Equal(epoch) {
			t.Errorf("%s has the time %v", e.Path, e.Inode.MTime)
		}
	}
}

func TestFileMistakes(t *testing.T) {
	host := t.TempDir()
	if err := os.MkdirAll(filepath.Join(host, "d/etc/passwd"), 0o755); err != nil {
		t.Fatal(err)
	}
	tr := base(t, map[string]string{"/loop": "-> loop", "/alias": "-> srv"})
	wantMistakes(t, mistakes(t, tr, &recipe.Recipe{
		Remove: []string{"relative/*", "/nothing/like/it"},
		Files: []recipe.File{
			{Path: "/etc", Content: "x"},
			{Path: "/etc/passwd", Directory: true},
			{Path: "/home", Target: "/srv"},
			{Path: "/etc/passwd/x", Content: "x"},
			{Path: "/loop/x", Content: "x"},
			{Path: "/x", Source: filepath.Join(host, "gone")},
			{Path: "/", Source: filepath.Join(host, "d")},
			{Path: "/x", Source: os.DevNull},
			{Path: "/etc/fstab", Content: "x"},
		},
		Disk: recipe.Disk{Partitions: []recipe.Partition{{Mount: "/"}, {Mount: "/etc/passwd"}, {Mount: "data"}, {Mount: "/alias/x"}}},
	}),
		"remove[0]: not absolute",
		"files[0].path: /etc is a directory, and a file does not replace it",
		"files[1].path: is a file, and a directory does not replace it",
		"files[2].path: /home is a directory, and a symlink does not replace it",
		"files[3].path: not a directory",
		"files[4].path: too many levels of symbolic links",
		"files[5].source: no such file",
		"files[6].source: /etc/passwd is a file, and a directory does not replace it",
		"files[7].source: is a character device",
		"files[8].path: /etc/fstab follows from disk.partitions",
		"disk.partitions[1].mount: not a directory",
		"disk.partitions[2].mount: not an absolute clean path",
		"disk.partitions[3].mount: /srv/x in this image",
	)
}

// What remove matches is neither used nor left behind, and what the recipe puts
// there stays.
func TestRemove(t *testing.T) {
	tr := base(t, map[string]string{
		"/usr/share/doc/a/copyright": "c", "/usr/share/doc/b": "b", "/etc/x.d/1": "1", "/usr/lib/y": "y",
		"/usr/share/zoneinfo/UTC": "TZif", "/etc/skel/.logout": "l",
	})
	apply(t, tr, &recipe.Recipe{
		Remove:   []string{"/usr/share/doc/**", "/etc/x.d", "/lib/y", "/usr/share/zoneinfo", "/home/*/.bashrc", "/etc/skel/.logout"},
		Files:    []recipe.File{{Path: "/etc/x.d/2", Content: "2"}, {Path: "/usr/share/doc/README", Content: "r"}},
		Users:    []recipe.User{{Name: "ops"}},
		Timezone: "UTC",
	})
	for dir, want := range map[string]string{"/usr/share/doc": "README", "/etc/x.d": "2", "/home/ops": ".d .l", "/usr/lib": ""} {
		if got := strings.Join(tr.Children(dir), " "); got != want {
			t.Errorf("%s holds %q, want %q", dir, got, want)
		}
	}
	if tr.Get("/etc/localtime") != nil {
		t.Error("/etc/localtime leads to a zone that was removed")
	}
}

// A file shared by hard links is edited under its own name only.
func TestSharedInode(t *testing.T) {
	tr := base(t, nil)
	shared := tr.Get("/etc/group")
	if err := tr.Put("/backup/group", shared); err != nil {
		t.Fatal(err)
	}
	before := readFile(t, tr, "/backup/group")
	apply(t, tr, &recipe.Recipe{Groups: []recipe.Group{{Name: "new"}}})
	wantFile(t, tr, "/backup/group", before)
	wantFile(t, tr, "/etc/group", before+"new:x:1000:\n")
	if tr.Get("/backup/group") != (*tree.Inode)(shared) {
		t.Error("the other name has another inode")
	}
}

// A unit and a shell may come from the recipe's own files.
func TestFilesComeBeforeUnitsAndShells(t *testing.T) {
	tr := base(t, map[string]string{"/usr/lib/systemd/system/multi-user.target": "[Unit]\n"})
	apply(t, tr, &recipe.Recipe{
		Files: []recipe.File{
			{Path: "/etc/systemd/system/app.service", Content: "[Install]\nWantedBy=multi-user.target\n"},
			{Path: "/opt/app/shell", Content: "#!/bin/sh\n", Mode: mode(0o755)},
		},
		Users:   []recipe.User{{Name: "app", Shell: "/opt/app/shell"}},
		Systemd: recipe.Systemd{Enable: []string{"app.service"}},
	})
	wantEntry(t, tr, "/etc/systemd/system/multi-user.target.wants/app.service", "-> /etc/systemd/system/app.service")
	wantFile(t, tr, presetFile, "# From the recipe of this image, so that presets agree with it.\nenable app.service\n")
	wantEntry(t, tr, presetFile, "file 0644 0:0")
}
