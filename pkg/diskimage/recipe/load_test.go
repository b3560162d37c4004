package recipe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// everyKey has every key there is.
const everyKey = `# every key
version: 1
kind: DiskImage
name: every-key
release: "2026.11.1"
arch: arm64
flavour: lab
epoch: 2026-11-01T00:00:00Z
vars: {console: ttyS0, size: 4GiB, n: 4096, yes_: true, text: "a $${b} \"c\" \\ é 😀\u2028\x01\n"}
base: {debian: {suite: bookworm, variant: apt, components: [main, contrib], mirrors: ["http://localhost/debian", "deb [trusted=yes] copy:///srv/debian bookworm main"], keyring: keys.gpg}}
packages: [vim, "g++", "libc6:amd64", "bash=5.2-1", "curl/bookworm-backports"]
files:
  - {path: /etc/motd, content: "golden\n", mode: "0644", owner: "root:root"}
  - {path: /opt/app, source: app/, owner: "0:0"}
  - {path: /etc/link, target: motd}
  - {path: /var/lib/x, directory: true, mode: "1777"}
  - {path: /etc/empty, content: ""}
  - path: /etc/script
    mode: "0755"
    content: |
      #!/bin/sh
      echo "$${HOME} $1 ${text}"
remove: ["/usr/share/doc/**", "/var/cache/*.[ab]"]
users:
  - name: ops
    uid: 1000
    group: ops
    groups: [sudo]
    gecos: "Ops, Team"
    home: /srv/ops
    shell: /bin/bash
    authorizedKeys: ["no-pty ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAID/uzJJYuTgoUkwucMa9VBK3WVWuLjyLbzo0syprk7uR ops"]
    passwordHash: "$6$salt$abcdefghijklmnop/."
    system: false
  - {name: daemon_, system: true}
groups: [{name: team, gid: 0, system: true}, {name: b}]
systemd: {enable: ["getty@${console}.service"], disable: [], mask: [x.timer], defaultTarget: multi-user.target}
hostname: golden.example
timezone: Europe/Berlin
locale: de_DE.UTF-8
boot: {firmware: uefi, loader: uki, cmdline: "console=${console}"}
disk:
  size: ${size}
  sectorSize: ${n}
  partitions:
    - {name: esp, type: esp, filesystem: fat32, size: 512MiB, label: EFI, mount: /boot/efi}
    - {name: config, type: config, size: 8388608, label: CIDATA}
    - {name: srv, type: data, filesystem: ext4, size: auto, free: 5%, mount: /srv}
    - {name: raw, type: data, size: 1MiB}
    - {name: root, type: root, filesystem: ext4, label: root, free: 50%, grow: "${yes_}", mount: /}
test: {timeout: 1h30m, expect: ["login:"], reject: ["Kernel panic", "Failed to start"]}
`

var everyFile = fstest.MapFS{
	"recipe.yaml": {Data: []byte(everyKey)}, "app/run": {Data: []byte("x")}, "keys.gpg": {Data: []byte("x")},
}

func TestEveryKeyIsDecoded(t *testing.T) {
	r, err := loadFS(everyFile, "recipe.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	id, gid, mode := uint32(1000), uint32(0), func(m uint16) *uint16 { return &m }
	text := "a ${b} \"c\" \\ é 😀\u2028\x01\n"
	want := &Recipe{
		Version: 1, Kind: KindDiskImage, Name: "every-key", Release: "2026.11.1", Arch: "arm64", Flavour: "lab",
		Epoch: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		Vars:  map[string]string{"console": "ttyS0", "size": "4GiB", "n": "4096", "yes_": "true", "text": text},
		Base: Base{Debian: &DebianBase{Suite: "bookworm", Variant: "apt", Components: []string{"main", "contrib"},
			Mirrors: []string{"http://localhost/debian", "deb [trusted=yes] copy:///srv/debian bookworm main"}, Keyring: "keys.gpg"}},
		Packages: []string{"vim", "g++", "libc6:amd64", "bash=5.2-1", "curl/bookworm-backports"},
		Files: []File{
			{Path: "/etc/motd", Content: "golden\n", Mode: mode(0o644), Owner: "root:root"},
			{Path: "/opt/app", Source: "app", Owner: "0:0"},
			{Path: "/etc/link", Target: "motd", Owner: "root:root"},
			{Path: "/var/lib/x", Directory: true, Mode: mode(0o1777), Owner: "root:root"},
			{Path: "/etc/empty", Owner: "root:root"},
			{Path: "/etc/script", Content: "#!/bin/sh\necho \"${HOME} $1 " + text + "\"\n", Mode: mode(0o755), Owner: "root:root"},
		},
		Remove: []string{"/usr/share/doc/**", "/var/cache/*.[ab]"},
		Users: []User{
			{Name: "ops", UID: &id, Group: "ops", Groups: []string{"sudo"}, Gecos: "Ops, Team", Home: "/srv/ops", Shell: "/bin/bash",
				AuthorizedKeys: []string{"no-pty ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAID/uzJJYuTgoUkwucMa9VBK3WVWuLjyLbzo0syprk7uR ops"},
				PasswordHash:   "$6$salt$abcdefghijklmnop/."},
			{Name: "daemon_", System: true, Home: "/home/daemon_", Shell: "/bin/sh", PasswordHash: "!"},
		},
		Groups: []Group{{Name: "team", GID: &gid, System: true}, {Name: "b"}},
		Systemd: Systemd{Enable: []string{"getty@ttyS0.service"}, Disable: []string{}, Mask: []string{"x.timer"},
			DefaultTarget: "multi-user.target"},
		Hostname: "golden.example", Timezone: "Europe/Berlin", Locale: "de_DE.UTF-8",
		Boot: Boot{Firmware: "uefi", Loader: "uki", Initramfs: "distribution", Cmdline: "console=ttyS0"},
		Disk: Disk{Size: 4 << 30, SectorSize: 4096, Partitions: []Partition{
			{Name: "esp", Type: "esp", Filesystem: "fat32", Label: "EFI", Size: 512 << 20, Mount: "/boot/efi"},
			{Name: "config", Type: "config", Label: "CIDATA", Size: 8 << 20},
			{Name: "srv", Type: "data", Filesystem: "ext4", FreePercent: 5, Mount: "/srv"},
			{Name: "raw", Type: "data", Size: 1 << 20},
			{Name: "root", Type: "root", Filesystem: "ext4", Label: "root", FreePercent: 50, Grow: true, Mount: "/"},
		}},
		Test: Test{Timeout: 90 * time.Minute, Expect: []string{"login:"}, Reject: []string{"Kernel panic", "Failed to start"}},
	}
	want.origins, want.sources, want.dir, want.inputs, want.given = r.origins, r.sources, r.dir, r.inputs, r.given
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got\n%+v\nwant\n%+v", r, want)
	}
}

func TestDefaults(t *testing.T) {
	r, err := loadText(okRecipe+"users: [{name: root}, {name: a}]\nfiles: [{path: /a, content: x}]\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &Recipe{
		Version: 1, Kind: KindDiskImage, Name: "ok", Release: "1", Arch: "amd64", Epoch: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		Base:  Base{Debian: &DebianBase{Suite: "bookworm", Variant: "minbase", Components: []string{"main"}}},
		Files: []File{{Path: "/a", Content: "x", Owner: "root:root"}},
		Users: []User{
			{Name: "root", Home: "/root", Shell: "/bin/sh", PasswordHash: "!"}, {Name: "a", Home: "/home/a", Shell: "/bin/sh", PasswordHash: "!"},
		},
		Hostname: "localhost", Timezone: "UTC", Locale: "C.UTF-8", Boot: Boot{Firmware: "uefi", Loader: "uki", Initramfs: "distribution"},
		Disk: Disk{SectorSize: 512, Partitions: []Partition{
			{Name: "esp", Type: "esp", Filesystem: "fat32", Size: 64 << 20},
			{Name: "root", Type: "root", Filesystem: "ext4", FreePercent: 100, Mount: "/"},
		}},
		Test: Test{Timeout: 5 * time.Minute},
	}
	want.origins, want.sources, want.dir, want.inputs, want.given = r.origins, r.sources, r.dir, r.inputs, r.given
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got\n%+v\nwant\n%+v", r, want)
	}
}

func TestPosIsWhereTheValueWasWritten(t *testing.T) {
	files := fstest.MapFS{
		"r/main.yaml": {Data: []byte("extends: [../base.yaml]\nsystemd:\n  enable:\n    - b.service\nfiles:\n- {path: /b, content: \"é\", mode: \"0600\"}\n")},
		"base.yaml":   {Data: []byte(okRecipe + "systemd: {enable: [a.service]}\nfiles:\n  - path: /a\n    content: x\n")},
	}
	r, err := loadFS(files, "r/main.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"":                        "r/main.yaml:1:1",
		"name":                    "base.yaml:3:7",
		"hostname":                "r/main.yaml:1:1", // a default: the recipe itself
		"systemd":                 "r/main.yaml:2:1",
		"systemd.enable":          "r/main.yaml:3:3",
		"systemd.enable[0]":       "base.yaml:12:20",
		"systemd.enable[1]":       "r/main.yaml:4:7",
		"systemd.mask[4]":         "r/main.yaml:2:1",
		"files":                   "r/main.yaml:5:1",
		"files[0]":                "base.yaml:14:5",
		"files[0].mode":           "base.yaml:14:5",
		"files[0].content":        "base.yaml:15:14",
		"files[1]":                "r/main.yaml:6:3",
		"files[1].mode":           "r/main.yaml:6:34",
		"files[1].owner":          "r/main.yaml:6:3",
		"disk.partitions[1]":      "base.yaml:11:7",
		"disk.partitions[1].size": "base.yaml:11:7",
		"disk.partitions[1].type": "base.yaml:11:26",
	} {
		if got := r.Pos(field).String(); got != want {
			t.Errorf("Pos(%q) is %s; want %s", field, got, want)
		}
	}
	e := r.Errorf("files[1].mode", "is %s", "odd")
	if got, want := e.Error(), `r/main.yaml:6:34: files[1].mode: is odd`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if want := "    6 | - {path: /b, content: \"é\", mode: \"0600\"}\n      | " + strings.Repeat(" ", 33) + "^"; e.Excerpt != want {
		t.Errorf("excerpt\n%s\nwant\n%s", e.Excerpt, want)
	}
	if got := (Pos{}).String(); got != "default" {
		t.Errorf("zero Pos is %q", got)
	}
}

func TestAnExcerptOfALongLineShowsThePlace(t *testing.T) {
	_, err := loadText("hostname: ["+strings.Repeat("abcdefghi,", 50)+"\"x\"]\nkinds: "+strings.Repeat("y", 900)+"\n"+okRecipe+"locale: "+strings.Repeat("x ", 200), nil)
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 3 {
		t.Fatalf("got %v", err)
	}
	for _, e := range errs {
		for line := range strings.Lines(e.Excerpt) {
			if len(line) > 120 {
				t.Errorf("%v: a line of %d characters", e, len(line))
			}
		}
	}
}

func TestBoundsOfAFile(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"size":      {okRecipe + strings.Repeat("# comment\n", 110000), "recipe.yaml:1:1: larger than 1 MiB"},
		"tokens":    {okRecipe + "packages: [" + strings.Repeat("a,", 40000) + "]", "recipe.yaml:1:1: 80061 YAML tokens; a recipe file has at most 32768"},
		"brackets":  {okRecipe + "packages: " + strings.Repeat("[", 30000), "recipe.yaml:12:43: nested deeper than 32"},
		"dashes":    {okRecipe + "packages:\n " + strings.Repeat("- ", 130) + "a", "recipe.yaml:13:258: a list item beyond column 256"},
		"indents":   {okRecipe + "packages:\n " + strings.Repeat("- ", 40) + "a", "recipe.yaml:13:66: nested deeper than 32"},
		"not UTF-8": {okRecipe + "# \xff", "recipe.yaml:12:3: this is not UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadText(c.text, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestManyMistakesAreCounted(t *testing.T) {
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "k%d: x\n", i)
	}
	_, err := loadText(okRecipe+text.String(), nil)
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != maxErrors+1 {
		t.Fatalf("%d mistakes; want %d and a count", len(errs), maxErrors)
	}
	if got, want := errs[maxErrors].Error(), "recipe.yaml: 900 more mistakes are not shown"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLinesMayEndAsOnWindows(t *testing.T) {
	r, err := loadText("\ufeff"+strings.ReplaceAll(okRecipe+"files:\n  - path: /a\n    content: |\n      x\n      y\n", "\n", "\r\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Files[0].Content != "x\ny\n" || r.Pos("files[0].path").String() != "recipe.yaml:13:11" {
		t.Errorf("content %q at %v", r.Files[0].Content, r.Pos("files[0].path"))
	}
}

func TestAMissingRecipeIsTheFileSystemsError(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"), Options{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestSourcesAreFoundBesideTheFileThatNamesThem(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"site/r.yaml":      "extends: ../common/base.yaml\nfiles: [{path: /r, source: r.yaml}]\n",
		"common/base.yaml": okRecipe + "files: [{path: /b, source: motd}, {path: /up, source: ../site}]\n",
		"common/motd":      "x",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Load(filepath.Join(dir, "site/r.yaml"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"common/motd", "site", "site/r.yaml"} {
		if got := r.Files[i].Source; got != filepath.Join(dir, want) {
			t.Errorf("source %d is %s, want %s beside its recipe", i, got, want)
		}
	}
	if !strings.Contains(string(r.Canonical()), `"source":"../common/motd"`) || strings.Contains(string(r.Canonical()), dir) {
		t.Errorf("canonical form depends on the folder: %s", r.Canonical())
	}
}

func TestInputsAreTheFilesThatWereRead(t *testing.T) {
	main, base := []byte("extends: [../base.yaml]\n"), []byte(okRecipe)
	files := fstest.MapFS{"r/main.yaml": {Data: main}, "base.yaml": {Data: base}}
	r, err := loadFS(files, "r/main.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []Input{{"../base.yaml", diskimage.DigestOf(base)}, {"main.yaml", diskimage.DigestOf(main)}}
	if got := r.Inputs(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
