package evidence

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestNamesBecomeIdentifiers(t *testing.T) {
	for name, want := range map[string]string{
		"GPL-2+": "GPL-2.0-or-later", "gpl-2": "GPL-2.0-only", "GPLv3+": "GPL-3.0-or-later", "GPL-2.0+": "GPL-2.0-or-later",
		"GPL-2.0-only": "GPL-2.0-only", "LGPL-2.1-or-later": "LGPL-2.1-or-later", "LGPL-2": "LGPL-2.0-only", "AGPL-3+": "AGPL-3.0-or-later",
		"GFDL-NIV-1.3+": "GFDL-1.3-no-invariants-or-later", "GFDL-1.2": "GFDL-1.2-only",
		"Expat": "MIT", "BSD-3-clause": "BSD-3-Clause", "zlib": "Zlib", "Apache-2.0": "Apache-2.0", "CC0": "CC0-1.0",
		"GPL-2 with Linux-syscall-note exception": "GPL-2.0-only WITH Linux-syscall-note",
		"GPL-2+ with Font exception":              "GPL-2.0-or-later WITH Font-exception-2.0",
		// a guess, each of them
		"MIT": "", "GPL": "", "LGPL": "", "X11": "", "public-domain": "", "Artistic": "", "GPL-4": "", "LGPL-1": "", "GPL-NIV-2": "",
		"GPL-2.1": "", "GPL-2+ with OpenSSL exception": "", "BSD": "", "": "", "GFDL-2": "", "BSD-3-clause-generic": "",
	} {
		if got := licenseID(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

// flat replaces the digests in identifiers.
func flat(s string) string { return regexp.MustCompile(`-[0-9a-f]{8}\b`).ReplaceAllString(s, "-#") }

func TestLicencesOfCopyrightFiles(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"not machine-readable":   {"License: GPL-2\n", ""},
		"another format":         {"Format: https://example.org/\nLicense: GPL-2\n", ""},
		"of the header":          {format + "License: GPL-2\n", "GPL-2.0-only"},
		"of files, once":         {format + "\nFiles: a\nLicense: ISC\n\nFiles: b\nLicense: ISC\n", "ISC"},
		"all of them, sorted":    {format + "\nFiles: a\nLicense: ISC\n\nFiles: b\nLicense: Expat and Zlib\n", "ISC AND MIT AND Zlib"},
		"and binds stronger":     {format + "License: GPL-2 or ISC and Zlib\n", "(ISC AND Zlib) OR GPL-2.0-only"},
		"comma binds weaker":     {format + "License: GPL-2 or Artistic-2, and ISC\n", "(Artistic-2.0 OR GPL-2.0-only) AND ISC"},
		"a choice beside others": {format + "License: GPL-2 or Artistic-2\n\nFiles: a\nLicense: ISC\n", "(Artistic-2.0 OR GPL-2.0-only) AND ISC"},
		"texts stand alone":      {format + "License: X\n\nLicense: X\n Text of X\n\nLicense: Y\n unused\n", "LicenseRef-X-#"},
		"no name":                {format + "License:\n Do what you like.\n", "LicenseRef-unnamed-#"},
		"a sentence":             {format + "License: You may do what you like.\n", "LicenseRef-You-may-do-what-you-like.-#"},
		"an open end":            {format + "License: GPL-2 or\n text\n", "LicenseRef-GPL-2-or-#"},
		"with and no exception":  {format + "License: GPL-2 with love\n", "LicenseRef-GPL-2-with-love-#"},
		"nothing":                {format + "License:\n", ""},
		"odd characters":         {format + "License: (c)/é\n", "LicenseRef-c-#"},
	} {
		l := parseCopyright([]byte(c.text))
		if got := flat(l.Expression); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		for _, text := range l.Texts {
			if !strings.Contains(l.Expression, text.ID) || text.Text == "" {
				t.Errorf("%s: text %+v is not of %q", name, text, l.Expression)
			}
		}
		if got := strings.Count(l.Expression, "LicenseRef-"); got != len(l.Texts) {
			t.Errorf("%s: %d references, %d texts", name, got, len(l.Texts))
		}
	}
}

func TestTextsAreTheFilesOwn(t *testing.T) {
	l := parseCopyright([]byte(format + "\nFiles: a\nLicense: home-made\n You may.\n .\n  Indented.\n\nFiles: b\nLicense: home-made or GPL-2\n"))
	if len(l.Texts) != 1 || l.Texts[0].Text != "You may.\n\n Indented." || l.Texts[0].Name != "home-made" {
		t.Errorf("texts %+v", l.Texts)
	}
	// one name, two texts: two licences
	l = parseCopyright([]byte(format + "\nFiles: a\nLicense: home-made\n One.\n\nFiles: b\nLicense: home-made\n Two.\n"))
	if len(l.Texts) != 2 {
		t.Errorf("texts %+v", l.Texts)
	}
}

func TestOtherFilesOnlyMention(t *testing.T) {
	l := parseCopyright([]byte("See `/usr/share/common-licenses/GPL-2'.\nand /usr/share/common-licenses/LGPL-2.1.\n/usr/share/common-licenses/GPL-2, /usr/share/common-licenses/-\n"))
	if l.Expression != "" || !slices.Equal(l.Mentions, []string{"GPL-2", "LGPL-2.1"}) {
		t.Errorf("got %+v", l)
	}
}

func FuzzParseCopyright(f *testing.F) {
	f.Add([]byte(format + "\nFiles: *\nLicense: GPL-2+ with Font exception or ISC, and X\n text\n .\n\nLicense: X\n y\n"))
	f.Add([]byte(format + "License: a, and b, or c and d or e with f exception"))
	valid := regexp.MustCompile(`^[A-Za-z0-9.+ ()-]*$`)
	f.Fuzz(func(t *testing.T, b []byte) {
		l := parseCopyright(b)
		if !valid.MatchString(l.Expression) || strings.Count(l.Expression, "(") != strings.Count(l.Expression, ")") {
			t.Errorf("expression %q", l.Expression)
		}
		if again := parseCopyright(b); again.Expression != l.Expression {
			t.Errorf("%q, then %q", l.Expression, again.Expression)
		}
	})
}
