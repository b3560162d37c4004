package evidence

import (
	"cmp"
	"fmt"
	"strings"
)

// PURL returns the package URL of a package:
//
//	pkg:deb/debian/openssh-server@1:9.2p1-2%2Bdeb12u7?arch=amd64&distro=debian-12&upstream=openssh
//	pkg:apk/alpine/busybox@1.36.1-r29?arch=x86_64&distro=alpine-3.20.3
//	pkg:alpm/arch/pacman@7.0.0-3?arch=x86_64&distro=arch
//	pkg:rpm/fedora/openssl-libs@3.2.4-1.fc41?arch=x86_64&distro=fedora-41&epoch=1&upstream=openssl-3.2.4-1.fc41.src.rpm
//
// (package-url specification, types deb, apk, alpm and rpm). upstream, which scanners look for, names
// the source package where it has another name or version; of RPM always its file.
func (p *Package) PURL(os OS) string {
	kind := cmp.Or(p.kind, kindDebian)
	vendor := cmp.Or(os.ID, map[string]string{kindDebian: "debian", kindAlpine: "alpine", kindArch: "arch", kindRPM: "rpm"}[kind])
	var b strings.Builder
	name, version := strings.ToLower(p.Name), p.Version
	if kind == kindRPM { // whose names have a case
		name, version = p.Name, strings.TrimPrefix(p.Version, p.epoch+":")
	}
	b.WriteString("pkg:" + kind + "/" + escape(strings.ToLower(vendor)) + "/" + escape(name) + "@" + escape(version))
	sep := "?"
	for _, q := range []struct{ key, value string }{ // in the order of their keys
		{"arch", p.Arch}, {"distro", os.Distro()}, {"epoch", p.epoch}, {"upstream", p.upstream()},
	} {
		if q.value != "" {
			b.WriteString(sep + q.key + "=" + escape(q.value))
			sep = "&"
		}
	}
	return b.String()
}

func (p *Package) upstream() string {
	switch {
	case p.kind == kindRPM:
		return p.sourceFile
	case p.SourceVersion != "" && p.SourceVersion != p.Version:
		return p.Source + "@" + p.SourceVersion
	case p.Source != p.Name:
		return p.Source
	}
	return ""
}

// escape percent-encodes all but letters, digits, ".", "-", "_", "~" and the
// colon (package-url specification, character encoding).
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte(".-_~:", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
