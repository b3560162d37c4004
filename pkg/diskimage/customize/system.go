package customize

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// blankHosts is what Debian's installer writes besides the name of the host.
const blankHosts = "127.0.0.1\tlocalhost\n" +
	"\n" +
	"# The following lines are desirable for IPv6 capable hosts\n" +
	"::1     localhost ip6-localhost ip6-loopback\n" +
	"ff02::1 ip6-allnodes\n" +
	"ff02::2 ip6-allrouters\n"

// hostname writes /etc/hostname (hostname(5)) and the 127.0.1.1 line of
// /etc/hosts (hosts(5)), with the short name after a name with a domain.
func (a *applier) hostname() {
	name := a.r.Hostname
	if name == "" {
		return
	}
	if err := a.write("/etc/hostname", []byte(name+"\n"), 0o644); err != nil {
		a.fail("hostname", "%v", err)
	}
	old, err := a.read("/etc/hosts")
	if err != nil {
		a.fail("hostname", "%v", err)
		return
	}
	if len(old) == 0 {
		old = []byte(blankHosts)
	}
	line := "127.0.1.1\t" + name
	if short, _, ok := strings.Cut(name, "."); ok {
		line += "\t" + short
	}
	if name == "localhost" {
		line = ""
	}
	if err := a.write("/etc/hosts", setHost(old, line), 0o644); err != nil {
		a.fail("hostname", "%v", err)
	}
}

// setHost replaces the lines of 127.0.1.1 by one, which without any goes after
// the first of 127.0.0.1. An empty line removes them.
func setHost(hosts []byte, line string) []byte {
	var lines []string
	mine, local := -1, 0
	for l := range strings.SplitSeq(strings.TrimSuffix(string(hosts), "\n"), "\n") {
		address, _, _ := strings.Cut(strings.Join(strings.Fields(l), " "), " ")
		if address == "127.0.1.1" {
			if mine < 0 {
				mine = len(lines)
			}
			continue
		}
		lines = append(lines, l)
		if address == "127.0.0.1" && local == 0 {
			local = len(lines)
		}
	}
	if mine < 0 {
		mine = local
	}
	if line != "" {
		lines = slices.Insert(lines, mine, line)
	}
	return []byte(strings.Join(lines, "\n") + "\n")
}

const zoneinfo = "/usr/share/zoneinfo"

// timezone writes the link /etc/localtime (localtime(5)) and Debian's
// /etc/timezone. Without package tzdata there is UTC only, which is what a
// system without /etc/localtime has.
func (a *applier) timezone() {
	zone := a.r.Timezone
	if zone == "" {
		return
	}
	if path.IsAbs(zone) || path.Clean(zone) != zone || strings.HasPrefix(zone, "..") || strings.ContainsAny(zone, "\n\x00") {
		a.fail("timezone", "%q is no name of the tz database, such as Europe/Berlin", zone)
		return
	}
	file := path.Join(zoneinfo, zone)
	n := a.stat(file)
	magic := make([]byte, 4) // "TZif", RFC 9636
	if n != nil && n.Kind == tree.Regular && n.Data != nil {
		n.Data.ReadAt(magic, 0) // too short or unreadable: no magic
	}
	var err error
	switch isUTC := zone == "UTC" || zone == "Etc/UTC"; {
	case string(magic) == "TZif":
		err = a.link("/etc/localtime", file)
	case isUTC:
		if old := a.lstat("/etc/localtime"); old != nil {
			a.t.Remove("/etc/localtime")
		}
	case a.stat(zoneinfo) == nil:
		a.fail("timezone", "the image has no time zones: add the package tzdata")
		return
	default:
		dir, _ := path.Split(zone)
		names := a.children(path.Join(zoneinfo, dir))
		for i := range names {
			names[i] = dir + names[i]
		}
		a.fail("timezone", "no zone %q in %s%s", zone, zoneinfo, recipe.Nearest(zone, names))
		return
	}
	if err == nil {
		err = a.write("/etc/timezone", []byte(zone+"\n"), 0o644)
	}
	if err != nil {
		a.fail("timezone", "%v", err)
	}
}

const (
	debianLocale  = "/etc/default/locale" // Debian's pam_env, and its systemd before 13
	systemdLocale = "/etc/locale.conf"    // locale.conf(5)
)

// locale sets LANG in /etc/default/locale, and in /etc/locale.conf, which is
// made a link to it where there is none.
func (a *applier) locale() {
	name := a.r.Locale
	if name == "" {
		return
	}
	if strings.ContainsAny(name, " \t\n\"'$\\/\x00") {
		a.fail("locale", "%q is no name of a locale, such as C.UTF-8", name)
		return
	}
	if !a.hasLocale(name) {
		a.fail("locale", "the image has no locale %s: add the package locales-all, or use C.UTF-8 (package locales alone makes none unless its locale-gen runs)", name)
		return
	}
	for _, p := range []string{debianLocale, systemdLocale} {
		if p == systemdLocale && a.lstat(p) == nil {
			if err := a.link(p, strings.TrimPrefix(debianLocale, "/etc/")); err != nil {
				a.fail("locale", "%v", err)
			}
			continue
		}
		old, err := a.read(p)
		if err == nil {
			err = a.write(p, setVariable(old, "LANG", name), 0o644)
		}
		if err != nil {
			a.fail("locale", "%v", err)
		}
	}
}

// setVariable replaces the lines that set a variable by one.
func setVariable(text []byte, name, value string) []byte {
	var out bytes.Buffer
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(strings.TrimSpace(line), name+"=") {
			out.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	fmt.Fprintf(&out, "%s=%s\n", name, value)
	return out.Bytes()
}

const locales = "/usr/lib/locale"

// hasLocale reports whether setlocale(3) would find a locale: glibc has C, POSIX
// and C.UTF-8 built in, and others as a directory or in the archive, under a
// name whose codeset is lower-case letters and digits.
func (a *applier) hasLocale(name string) bool {
	language, codeset, _ := strings.Cut(name, ".")
	codeset, modifier, at := strings.Cut(codeset, "@")
	plain := strings.Map(func(c rune) rune {
		switch {
		case c >= 'A' && c <= 'Z':
			return c - 'A' + 'a'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		}
		return -1
	}, codeset)
	normal := language
	if plain != "" {
		normal += "." + plain
	}
	if at {
		normal += "@" + modifier
	}
	if normal == "C" || normal == "POSIX" || normal == "C.utf8" {
		return true
	}
	for _, n := range []string{name, normal} {
		if a.stat(path.Join(locales, n, "LC_CTYPE")) != nil {
			return true
		}
	}
	return a.inArchive(normal)
}

// inArchive looks a name up among the strings of glibc's locale-archive
// (locale/locarchive.h): its sixth and seventh 32-bit words say where.
func (a *applier) inArchive(name string) bool {
	n := a.stat(path.Join(locales, "locale-archive"))
	if n == nil || n.Kind != tree.Regular || n.Data == nil {
		return false
	}
	head := make([]byte, 32)
	if m, _ := n.Data.ReadAt(head, 0); m < len(head) || binary.LittleEndian.Uint32(head) != 0xde020109 {
		return false
	}
	off, used := int64(binary.LittleEndian.Uint32(head[20:])), int64(binary.LittleEndian.Uint32(head[24:]))
	if used > maxText || off > n.Size()-used {
		return false
	}
	names := make([]byte, used)
	if m, _ := n.Data.ReadAt(names, off); int64(m) < used {
		return false
	}
	return bytes.Contains(append([]byte{0}, names...), []byte("\x00"+name+"\x00"))
}
