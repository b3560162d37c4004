package evidence

import (
	"bytes"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// ofPath is who has the files of debian().
func ofPath(p string) string {
	return map[string]string{"/usr/sbin/sshd": "openssh-server", "/usr/sbin/exim": "exim4", "/etc/motd": "gone"}[p]
}

func withFiles(t testing.TB) *Contents {
	t.Helper()
	c := contents(t)
	var err error
	if c.Files, err = HashFiles(t.Context(), debian(t), ofPath, 3); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestJudgesAcceptTheSBOM(t *testing.T) {
	for name, c := range map[string]*Contents{
		"packages": contents(t), "files": withFiles(t),
		"no packages": {Image: contents(t).Image, Database: &Database{}},
	} {
		if out, err := judge(t, "spdx", sbomOf(t, c)); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

// A judge that accepts anything judges nothing.
func TestJudgesRefuseWhatIsWrong(t *testing.T) {
	good := string(sbomOf(t, withFiles(t)))
	for name, edit := range map[string][2]string{
		"an unknown member":      {`"name":"small"`, `"nome":"small"`},
		"an unknown purpose":     {`"OPERATING_SYSTEM"`, `"SYSTEM"`},
		"a licence of no text":   {`"licenseId":"LicenseRef-MIT`, `"licenseId":"LicenseRef-TIM`},
		"no expression":          {` OR LicenseRef`, ` ODER LicenseRef`},
		"no package URL":         {`pkg:deb/debian/g%2B%2B@`, `pkg:deb/debian/g++@`},
		"a dangling reference":   {`"relatedSpdxElement":"SPDXRef-Recipe"`, `"relatedSpdxElement":"SPDXRef-None"`},
		"a wrong code":           {`"packageVerificationCodeValue":"`, `"packageVerificationCodeValue":"0`},
		"a file of nobody":       {`"hasFiles":["`, `"hasFiles":["x`},
		"a supplier of no kind":  {`"Person: Colin`, `"Colin`},
		"no digest that is SHA1": {`"algorithm":"SHA1"`, `"algorithm":"SHA2"`},
	} {
		bad := strings.Replace(good, edit[0], edit[1], 1)
		if bad == good {
			t.Errorf("%s: nothing to change in %s", name, good)
		}
		if out, err := judge(t, "spdx", []byte(bad)); err == nil {
			t.Errorf("%s is accepted: %s", name, out)
		}
	}
}

// TestJudgesAcceptWhateverPackagesSay makes packages whose fields and copyright
// files are words in no order.
func TestJudgesAcceptWhateverPackagesSay(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	words := []string{"GPL-2+", "ISC", "MIT", "home made", "a/b", "and", "or", "AND", ",", "with", "exception", "Font exception", "(c)", "é", "+",
		".", "LicenseRef-x", "NOASSERTION", "NONE", "\x00", "\xff", "<a@lists.debian.org>", "<", ">", "()", "Person:", "%", "#", "?", "/", "@", ":", "~1", "http://a/ b"}
	text := func(n int) string {
		var out []string
		for range random.Intn(n) {
			out = append(out, words[random.Intn(len(words))])
		}
		return strings.Join(out, " ")
	}
	files := map[string]string{"/etc/os-release": osRelease}
	var b strings.Builder
	for i := range 400 {
		name := fmt.Sprintf("p%d", i)
		fmt.Fprintf(&b, "Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1%s\nSource: %s\nMaintainer: %s\nOriginal-Maintainer: %s\nHomepage: %s\nDescription: %s\nDepends: %s\n\n",
			name, text(3), text(3), text(6), text(6), text(4), text(4), text(6))
		files["/usr/share/doc/"+name+"/copyright"] = format + "License: " + text(8) + "\n " + text(2) + "\n\nFiles: *\nLicense: " + text(8) + "\n"
	}
	files["/var/lib/dpkg/status"] = b.String()
	c := contents(t)
	c.Database = database(t, newTree(t, files))
	if len(c.Database.Packages) != 400 {
		t.Fatalf("%d packages", len(c.Database.Packages))
	}
	if out, err := judge(t, "spdx", sbomOf(t, c)); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestEqualContentsGiveEqualBytes(t *testing.T) {
	want := sbomOf(t, withFiles(t))
	for range 5 {
		c := withFiles(t)
		rand.Shuffle(len(c.Files), func(i, j int) { c.Files[i], c.Files[j] = c.Files[j], c.Files[i] })
		if got := sbomOf(t, c); !bytes.Equal(got, want) {
			t.Fatalf("got\n%s\nwant\n%s", got, want)
		}
	}
}

func TestDocumentsThatDifferHaveDifferentNames(t *testing.T) {
	names := map[string]string{}
	other := contents(t)
	other.Image.Disk = diskimage.DigestOf([]byte("another"))
	later := contents(t)
	later.Tool = "imgpipe-2"
	for what, c := range map[string]*Contents{"packages": contents(t), "files": withFiles(t), "another disk": other, "a later version": later} {
		d := parseSBOM(t, sbomOf(t, c))
		if before := names[d.DocumentNamespace]; before != "" {
			t.Errorf("%s and %s are both called %s", what, before, d.DocumentNamespace)
		}
		names[d.DocumentNamespace] = what
		if !strings.HasPrefix(d.DocumentNamespace, "https://github.com/imgpipe/imgpipe/spdx/small/"+c.Image.Disk.Hex()+"/") {
			t.Errorf("namespace %s", d.DocumentNamespace)
		}
	}
}

func TestWhatThePackagesSay(t *testing.T) {
	d := parseSBOM(t, sbomOf(t, contents(t)))
	if d.CreationInfo.Created != "2026-09-21T14:13:20Z" || d.Name != "small-2026.11.1" {
		t.Errorf("created %s, name %s", d.CreationInfo.Created, d.Name)
	}
	get := func(id string) spdxPackage {
		i := slices.IndexFunc(d.Packages, func(p spdxPackage) bool { return p.SPDXID == id })
		if i < 0 {
			t.Fatalf("no %s", id)
		}
		return d.Packages[i]
	}
	p := get("SPDXRef-deb-openssh-server-amd64")
	if p.Supplier != "Person: Colin Watson [ssh] (cjwatson@debian.org)" || p.Originator != "Person: Somebody Upstream (s@example.org)" || p.Homepage != "" {
		t.Errorf("supplier %q, originator %q, homepage %q", p.Supplier, p.Originator, p.Homepage)
	}
	if flat(p.LicenseDeclared) != "GPL-2.0-or-later OR LicenseRef-MIT-#" || p.LicenseConcluded != "NOASSERTION" {
		t.Errorf("licence %q", p.LicenseDeclared)
	}
	if p.Checksums[0].Value != diskimage.DigestOf([]byte("openssh-server")).Hex() {
		t.Errorf("checksums %v", p.Checksums)
	}
	if libc := get("SPDXRef-deb-libc6-amd64"); libc.Supplier != "Organization: GNU Libc Maintainers (debian-glibc@lists.debian.org)" || libc.LicenseDeclared != "NOASSERTION" {
		t.Errorf("libc6 %+v", libc)
	}
	if e := get("SPDXRef-deb-exim4-all"); e.LicenseDeclared != "NOASSERTION" || e.Supplier != "Person: no address" {
		t.Errorf("exim4 %+v", e)
	}
	loader, own, grub := get("SPDXRef-Program-systemd-boot"), get("SPDXRef-Program-imgpipe-init"), get("SPDXRef-Program-GRUB")
	if loader.VersionInfo != p.VersionInfo || loader.VersionInfo == "" || loader.LicenseDeclared != p.LicenseDeclared || loader.PackageFileName != "./EFI/BOOT/BOOTX64.EFI" {
		t.Errorf("systemd-boot %+v", loader)
	}
	if own.VersionInfo != "1" || own.LicenseDeclared != "Apache-2.0" || own.SourceInfo != "here" {
		t.Errorf("init %+v", own)
	}
	if grub.VersionInfo != "" || grub.LicenseDeclared != "NOASSERTION" || grub.Checksums != nil {
		t.Errorf("what is not known of GRUB is said: %+v", grub)
	}
	related := map[spdxRelationship]bool{}
	for _, r := range d.Relationships {
		related[r] = true
	}
	gpp := ""
	for _, p := range d.Packages {
		if p.Name == "g++" {
			gpp = p.SPDXID
		}
	}
	for _, want := range []spdxRelationship{
		{"SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image"},
		{"SPDXRef-OperatingSystem", "CONTAINS", "SPDXRef-deb-libc6-i386"},
		{"SPDXRef-deb-openssh-server-amd64", "DEPENDS_ON", "SPDXRef-deb-libc6-amd64"},
		{"SPDXRef-Boot", "GENERATED_FROM", gpp},
		{"SPDXRef-Image", "CONTAINS", "SPDXRef-Program-systemd-boot"},
		{"SPDXRef-Program-systemd-boot", "GENERATED_FROM", "SPDXRef-deb-openssh-server-amd64"},
		{"SPDXRef-Boot", "CONTAINS", "SPDXRef-Program-imgpipe-init"},
	} {
		if !related[want] {
			t.Errorf("no %v", want)
		}
	}
}

func TestFilesAreOfTheirPackages(t *testing.T) {
	d := parseSBOM(t, sbomOf(t, withFiles(t)))
	if len(d.Files) != len(slices.Collect(debian(t).All()))-countDirs(debian(t)) {
		t.Errorf("%d files", len(d.Files))
	}
	byID := map[string]spdxFile{}
	for _, f := range d.Files {
		byID[f.SPDXID] = f
	}
	for _, p := range d.Packages {
		switch p.Name {
		case "openssh-server":
			if len(p.HasFiles) != 1 || byID[p.HasFiles[0]].Name != "./usr/sbin/sshd" || !p.FilesAnalyzed || p.VerificationCode == nil {
				t.Errorf("openssh-server has %v", p.HasFiles)
			}
		case "libc6":
			if p.FilesAnalyzed || p.VerificationCode != nil {
				t.Errorf("libc6 is analysed")
			}
		case "small (unpackaged)":
			if len(p.HasFiles) != len(d.Files)-2 { // a package that is not installed owns nothing
				t.Errorf("unpackaged: %v", p.HasFiles)
			}
		}
	}
	i := slices.IndexFunc(d.Files, func(f spdxFile) bool { return f.Name == "./usr/sbin/sshd" })
	if want := []spdxChecksum{
		{"SHA1", "81d9aeea0e1a408d65b6660a176c5de83dc98e7b"}, {"SHA256", "1310ca2c8932dbd118668bd97442558a3e1f546b5e15c69699dfbd6024f548d8"}, // printf program | sha1sum; … sha256sum
	}; !slices.Equal(d.Files[i].Checksums, want) {
		t.Errorf("sshd %v, want %v", d.Files[i].Checksums, want)
	}
}

func countDirs(t *tree.Tree) (n int) {
	for e := range t.All() {
		if e.Inode.Kind == tree.Dir {
			n++
		}
	}
	return n
}

func TestSBOMNeedsAnImage(t *testing.T) {
	for _, c := range []*Contents{{}, {Database: &Database{}}, {Database: &Database{}, Image: Image{Name: "a"}}} {
		if b, err := SBOM(c); err == nil {
			t.Errorf("%+v gives %s", c, b)
		}
	}
}
