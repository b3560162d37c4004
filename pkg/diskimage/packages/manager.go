package packages

import (
	"bytes"
	"errors"
	"regexp"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Installation is how a tree's own package manager is told to install: a script for
// a sandbox with the network.
type Installation struct {
	Manager string // apt, dnf, …
	Script  string
	Env     map[string]string
	Cache   string // the folder of its downloads
	Name    string // of that cache: what may share it
}

// ErrNoManager says that a tree has none of the known package managers.
var ErrNoManager = errors.New("the tree has no package manager that is known here: apt, dnf, zypper, apk, pacman")

// manager is one of them. In install, $@ are the packages.
type manager struct {
	name    string
	program string
	cache   string
	install string
}

// The scripts make no initramfs before all is configured, ask nothing, and install
// neither what is only recommended nor what is there. First come the managers that
// others are also found beside.
var managers = []manager{
	{"apt", "/usr/bin/apt-get", "/var/cache/apt/archives", `
bin=/run/imgpipe/bin
mkdir -p "$bin"
printf '#!/bin/sh\nexit 0\n' >"$bin/update-initramfs"
chmod 755 "$bin/update-initramfs"
apt-get -q -o Acquire::Languages=none update
apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Path="$bin:$PATH" -o APT::Keep-Downloaded-Packages=true \
	-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-unsafe-io install -- "$@"
if [ -x /usr/sbin/update-initramfs ]; then
	for kernel in /boot/vmlinuz-*; do
		version=${kernel#/boot/vmlinuz-}
		if [ -e "$kernel" ] && [ ! -e "/boot/initrd.img-$version" ]; then
			update-initramfs -c -k "$version"
		fi
	done
fi
rm -rf /var/lib/apt/lists
mkdir -p /var/lib/apt/lists/partial
`},
	{"dnf5", "/usr/bin/dnf5", "/var/cache/libdnf5", "dnf5 -y --setopt=install_weak_deps=False --setopt=keepcache=True install \"$@\"\n"},
	{"dnf", "/usr/bin/dnf", "/var/cache/dnf", "dnf -y --setopt=install_weak_deps=False --setopt=keepcache=True install -- \"$@\"\n"},
	{"microdnf", "/usr/bin/microdnf", "/var/cache/yum", "microdnf -y --setopt=install_weak_deps=0 --setopt=keepcache=1 install \"$@\"\n"},
	{"zypper", "/usr/bin/zypper", "/var/cache/zypp", "zypper --non-interactive refresh\nzypper --non-interactive install --no-recommends -- \"$@\"\n"},
	{"apk", "/sbin/apk", "/var/cache/apk", "apk --no-progress --update-cache --cache-dir /var/cache/apk add \"$@\"\n"},
	{"pacman", "/usr/bin/pacman", "/var/cache/pacman/pkg", "pacman -Syu --noconfirm --noprogressbar --needed -- \"$@\"\nrm -rf /var/lib/pacman/sync\n"},
}

// Install says how a tree's own package manager installs packages.
func Install(t *tree.Tree, names []string, arch string) (*Installation, error) {
	for _, m := range managers {
		if !has(t, m.program) {
			continue
		}
		var words []string
		for _, name := range names {
			words = append(words, "'"+strings.ReplaceAll(name, "'", `'\''`)+"'")
		}
		return &Installation{
			Manager: m.name, Script: "set -- " + strings.Join(words, " ") + "\n" + m.install, Cache: m.cache,
			Env:  map[string]string{"INITRD": "No"}, // Debian's kernel packages know it
			Name: strings.Join([]string{m.name, distribution(t), arch}, "-"),
		}, nil
	}
	return nil, ErrNoManager
}

var reNotWord = regexp.MustCompile(`[^A-Za-z0-9._]+`)

// distribution names what a tree is, by os-release(5).
func distribution(t *tree.Tree) string {
	b, err := t.ReadFile("/etc/os-release", 64<<10)
	if err != nil {
		b, _ = t.ReadFile("/usr/lib/os-release", 64<<10)
	}
	found := map[string]string{}
	for line := range bytes.Lines(b) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), "=")
		found[key] = reNotWord.ReplaceAllString(value, "")
	}
	return found["ID"] + found["VERSION_ID"]
}

// reNoPackage are the managers' words for a package that they do not know.
var reNoPackage = []*regexp.Regexp{
	regexp.MustCompile(`(?m)^E: Unable to locate package (\S+)`),                                       // apt
	regexp.MustCompile(`(?m)^E: Couldn't find any package by (?:glob|regex) '([^']+)'`),                // apt
	regexp.MustCompile(`(?m)^E: Package '([^']+)' has no installation candidate`),                      // apt
	regexp.MustCompile(`(?m)^E: Version '[^']+' for '([^']+)' was not found`),                          // apt
	regexp.MustCompile(`(?m)^(?:No match for argument|error: No package matches)[: ]+'?([^'\s]+)'?`),   // dnf, dnf5, microdnf
	regexp.MustCompile(`(?m)^\s*([^\s]+) \(no such package\):`),                                        // apk
	regexp.MustCompile(`(?m)^error: target not found: (\S+)`),                                          // pacman
	regexp.MustCompile(`(?m)^(?:No provider of '([^']+)' found|'([^']+)' not found in package names)`), // zypper
}

// Unknown finds in what a package manager printed which packages it does not know.
func Unknown(output string) (names []string) {
	for _, re := range reNoPackage {
		for _, m := range re.FindAllStringSubmatch(output, -1) {
			for _, name := range m[1:] {
				if name != "" {
					names = append(names, name)
				}
			}
		}
	}
	return names
}
