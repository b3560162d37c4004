package evidence

import (
	"regexp"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// License is what a package's copyright file declares.
type License struct {
	Expression string        // SPDX; "" if nothing is known
	Texts      []LicenseText // those that Expression refers to, by ID
	Mentions   []string      // of a file that is not machine-readable: names in /usr/share/common-licenses
}

// LicenseText is a licence that has no SPDX identifier, or whose name in Debian
// says too little to choose one.
type LicenseText struct {
	ID   string // LicenseRef-…, which follows from name and text
	Name string // as the copyright file has it
	Text string
}

// noText stands for the text of a licence that a copyright file only names.
const noText = "The copyright file names this licence and gives no text of it."

// reference makes the LicenseText of a name and a text.
func reference(name, text string) LicenseText {
	if text == "" {
		text = noText
	}
	sum := diskimage.DigestOf([]byte(name + "\x00" + text)).Hex()[:8]
	return LicenseText{ID: "LicenseRef-" + idString(name, 40) + "-" + sum, Name: name, Text: text}
}

// idString keeps of a text what SPDX allows in identifiers: letters, digits, "."
// and "-" (SPDX 2.3, section 7.2.1). Different texts may give the same.
func idString(s string, most int) string {
	b := []byte(s[:min(len(s), most)])
	for i, c := range b {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-') {
			b[i] = '-'
		}
	}
	return strings.Trim(string(b), "-")
}

// gnu matches the names of the GNU licences in Debian's spelling (GPL-2+, the
// common GPLv2+) and in SPDX's, old and new.
var gnu = regexp.MustCompile(`^(agpl|lgpl|gpl|gfdl)(-niv)?(?:-?v|-)([123](?:\.[0-9])?)(\+|-only|-or-later)?$`)

var gnuVersions = map[string][]string{
	"agpl": {"3.0"},
	"gpl":  {"1.0", "2.0", "3.0"},
	"lgpl": {"2.0", "2.1", "3.0"},
	"gfdl": {"1.1", "1.2", "1.3"},
}

// gnuID returns the SPDX identifier of a GNU licence's name, "" if it is none.
func gnuID(name string) string {
	m := gnu.FindStringSubmatch(name)
	if m == nil {
		return ""
	}
	family, niv, version, suffix := m[1], m[2], m[3], m[4]
	if !strings.Contains(version, ".") {
		version += ".0"
	}
	if !slices.Contains(gnuVersions[family], version) || niv != "" && family != "gfdl" {
		return ""
	}
	id := strings.ToUpper(family) + "-" + version
	if niv != "" {
		id += "-no-invariants"
	}
	if suffix == "+" || suffix == "-or-later" {
		return id + "-or-later"
	}
	return id + "-only"
}

// ids maps names, in lower case, to SPDX identifiers: those that Debian's format
// defines (copyright-format 1.0, section 7.1.1) and means one text by, and names
// that are SPDX identifiers already. Not among them are names that stand for
// several texts: MIT (which the format advises against), X11, Artistic, Perl,
// GPL or LGPL without a version, public-domain.
var ids = map[string]string{
	"apache-2": "Apache-2.0", "artistic-2": "Artistic-2.0", "cc0": "CC0-1.0", "expat": "MIT", "mpl-2": "MPL-2.0",
	"zope-1.1": "ZPL-1.1", "zope-2.0": "ZPL-2.0", "zope-2.1": "ZPL-2.1",
}

func init() {
	for _, id := range []string{
		"0BSD", "AFL-2.0", "AFL-2.1", "AFL-3.0", "Apache-1.0", "Apache-1.1", "Apache-2.0", "Artistic-2.0", "Beerware",
		"BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause", "BSD-4-Clause-UC", "BSL-1.0", "bzip2-1.0.6", "CC0-1.0",
		"CC-BY-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0",
		"CC-BY-SA-1.0", "CC-BY-SA-2.0", "CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CDDL-1.0", "CDDL-1.1",
		"CPL-1.0", "curl", "EFL-1.0", "EFL-2.0", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "FSFAP", "FSFUL", "FSFULLR",
		"HPND", "ISC", "Latex2e", "LPPL-1.3a", "LPPL-1.3c", "MPL-1.0", "MPL-1.1", "MPL-2.0", "MS-PL", "NTP", "OFL-1.1",
		"OpenSSL", "PHP-3.01", "PostgreSQL", "Python-2.0", "QPL-1.0", "Ruby", "Sleepycat", "Unicode-DFS-2015",
		"Unicode-DFS-2016", "Unlicense", "Vim", "W3C", "WTFPL", "Zlib", "ZPL-1.1", "ZPL-2.0", "ZPL-2.1",
	} {
		ids[strings.ToLower(id)] = id
	}
}

// exceptions maps what Debian's format calls "with … exception" to SPDX, where
// one text bears that name.
var exceptions = map[string]string{
	"font": "Font-exception-2.0", "linux-syscall-note": "Linux-syscall-note",
}

// licenseID returns the SPDX expression of one licence's name, with its exception
// if it has one; "" where there is none or it would be a guess.
func licenseID(name string) string {
	name = strings.ToLower(name)
	if base, exception, ok := strings.Cut(name, " with "); ok {
		exception = strings.TrimSuffix(strings.TrimSuffix(exception, " exception"), " exceptions")
		if id, e := licenseID(base), exceptions[exception]; id != "" && e != "" {
			return id + " WITH " + e
		}
		return ""
	}
	if id := ids[name]; id != "" {
		return id
	}
	return gnuID(name)
}
