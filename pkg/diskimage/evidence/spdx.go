package evidence

import (
	"cmp"
	"crypto/sha1" //nolint:gosec // SPDX 2.3 demands it (section 7.9)
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Contents is what an SPDX document says about an image.
type Contents struct {
	Image    Image
	Tool     string           // what wrote the document: "imgpipe-1.4.0"
	Recipe   diskimage.Digest // of the resolved recipe in canonical form; zero if there was none
	Database *Database
	Boot     *Boot
	Programs []Program // what starts the image beside Boot
	Files    []File    // all of the image's files, or nil to list none
}

// Boot is the program that starts the image: kernel, initramfs and command line.
type Boot struct {
	Path   string // on the EFI system partition
	Kernel string // version
	SHA256 diskimage.Digest
	From   []string // names of the packages whose files are in it, as far as is known
}

// Program is a loader, or what runs before the system's init. One of a package has
// the package's version and licence; one of imgpipe's own the version of imgpipe.
type Program struct {
	Name    string           // systemd-boot
	Path    string           // on the EFI system partition, "" where it is no file there
	Inside  bool             // it is in the initramfs, and so in Boot
	SHA256  diskimage.Digest // zero where it is not known
	From    []string         // the package whose files it is, as far as is known
	Own     bool             // it is imgpipe's
	License string           // SPDX expression, of one that is no package's
	Source  string           // for people: what it was made of
}

// none is what SPDX writes where nothing is claimed.
const none = "NOASSERTION"

// namespace begins the names of all documents. They are names only: nothing is
// found there.
const namespace = "https://github.com/imgpipe/imgpipe/spdx/"

// The members are those of SPDX 2.3's JSON schema, in the order in which people
// read them.
type spdxDocument struct {
	SPDXVersion       string             `json:"spdxVersion"`
	DataLicense       string             `json:"dataLicense"`
	SPDXID            string             `json:"SPDXID"`
	Name              string             `json:"name"`
	DocumentNamespace string             `json:"documentNamespace"`
	CreationInfo      spdxCreation       `json:"creationInfo"`
	Packages          []spdxPackage      `json:"packages"`
	Files             []spdxFile         `json:"files,omitempty"`
	Relationships     []spdxRelationship `json:"relationships"`
	Licenses          []spdxLicense      `json:"hasExtractedLicensingInfos,omitempty"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	SPDXID           string         `json:"SPDXID"`
	Name             string         `json:"name"`
	VersionInfo      string         `json:"versionInfo,omitempty"`
	PackageFileName  string         `json:"packageFileName,omitempty"`
	Purpose          string         `json:"primaryPackagePurpose,omitempty"`
	Supplier         string         `json:"supplier,omitempty"`
	Originator       string         `json:"originator,omitempty"`
	DownloadLocation string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	VerificationCode *spdxCode      `json:"packageVerificationCode,omitempty"`
	Checksums        []spdxChecksum `json:"checksums,omitempty"`
	Homepage         string         `json:"homepage,omitempty"`
	SourceInfo       string         `json:"sourceInfo,omitempty"`
	LicenseConcluded string         `json:"licenseConcluded"`
	LicenseDeclared  string         `json:"licenseDeclared"`
	LicenseComments  string         `json:"licenseComments,omitempty"`
	CopyrightText    string         `json:"copyrightText"`
	Summary          string         `json:"summary,omitempty"`
	Comment          string         `json:"comment,omitempty"`
	ExternalRefs     []spdxExternal `json:"externalRefs,omitempty"`
	HasFiles         []string       `json:"hasFiles,omitempty"`
}

type spdxCode struct {
	Value string `json:"packageVerificationCodeValue"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxExternal struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
	Comment  string `json:"comment,omitempty"`
}

type spdxFile struct {
	SPDXID    string         `json:"SPDXID"`
	Name      string         `json:"fileName"`
	Checksums []spdxChecksum `json:"checksums"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

type spdxLicense struct {
	ID   string `json:"licenseId"`
	Name string `json:"name,omitempty"`
	Text string `json:"extractedText"`
}

// The elements that are not packages of the distribution.
const (
	idDocument   = "SPDXRef-DOCUMENT"
	idImage      = "SPDXRef-Image"
	idOS         = "SPDXRef-OperatingSystem"
	idRecipe     = "SPDXRef-Recipe"
	idBoot       = "SPDXRef-Boot"
	idUnpackaged = "SPDXRef-Unpackaged"
)

// SBOM returns an SPDX 2.3 document as JSON in one line: docs/evidence.md says
// what each element means. Equal contents give equal bytes.
func SBOM(c *Contents) ([]byte, error) {
	if c.Database == nil || c.Image.Name == "" || c.Image.Disk.IsZero() {
		return nil, errors.New("sbom: no package database, name or disk digest")
	}
	d := &sbom{of: c, place: map[string]int{}, spdxDocument: spdxDocument{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: idDocument,
		Name:         strings.Trim(c.Image.Name+"-"+c.Image.Version, "-"),
		CreationInfo: spdxCreation{c.Image.Epoch.UTC().Format(time.RFC3339), []string{"Tool: " + cmp.Or(c.Tool, "imgpipe")}},
	}}
	d.image()
	d.system()
	d.boot()
	d.programs()
	d.files()
	if err := d.unique(); err != nil {
		return nil, fmt.Errorf("sbom: %w", err)
	}
	// Two documents about one disk that say different things (with and without
	// files, of two versions of imgpipe) need two names: SPDX 2.3, section 6.5.
	unnamed, err := encode(d.spdxDocument)
	if err != nil {
		return nil, fmt.Errorf("sbom: %w", err)
	}
	d.name(fmt.Sprintf("%s%s/%s/%s", namespace, url.PathEscape(c.Image.Name), c.Image.Disk.Hex(), diskimage.DigestOf(unnamed).Hex()[:32]))
	out, err := encode(d.spdxDocument)
	if err != nil {
		return nil, fmt.Errorf("sbom: %w", err)
	}
	return out, nil
}

// sbom is a document being written.
type sbom struct {
	spdxDocument
	of    *Contents
	place map[string]int // of the distribution's packages in Packages, by name
}

func (d *sbom) add(p spdxPackage) {
	p.DownloadLocation, p.LicenseConcluded, p.CopyrightText = none, none, none
	p.LicenseDeclared = cmp.Or(p.LicenseDeclared, none)
	d.Packages = append(d.Packages, p)
}

func (d *sbom) relate(from, kind, to string) {
	d.Relationships = append(d.Relationships, spdxRelationship{from, kind, to})
}

// image adds what the document describes, and the recipe it was made from.
func (d *sbom) image() {
	d.add(spdxPackage{
		SPDXID: idImage, Name: d.of.Image.Name, VersionInfo: d.of.Image.Version, Purpose: "INSTALL",
		Summary: strings.TrimSpace(fmt.Sprintf("disk image for %s %s", d.of.Image.Arch, d.of.Image.Flavour)),
		ExternalRefs: []spdxExternal{{Category: "OTHER", Type: diskReference, Locator: d.of.Image.Disk.String(),
			Comment: "The disk digest: a digest over the digests of the disk's chunks, not the SHA-256 of a file."}},
	})
	d.relate(idDocument, "DESCRIBES", idImage)
	if !d.of.Recipe.IsZero() {
		d.add(spdxPackage{
			SPDXID: idRecipe, Name: d.of.Image.Name + " (recipe)", VersionInfo: d.of.Image.Version, Purpose: "SOURCE",
			Checksums: []spdxChecksum{{"SHA256", d.of.Recipe.Hex()}},
			Comment:   "The resolved recipe; the checksum is that of its canonical form.",
		})
		d.relate(idImage, "GENERATED_FROM", idRecipe)
	}
}

// diskReference is a reference type of the document's own: name makes it a URI.
const diskReference = "#LocationRef-disk-digest"

// name gives the document its namespace, and the reference types in it.
func (d *sbom) name(ns string) {
	d.DocumentNamespace = ns
	for _, p := range d.Packages {
		for i := range p.ExternalRefs {
			if r := &p.ExternalRefs[i]; strings.HasPrefix(r.Type, "#") {
				r.Type = ns + r.Type
			}
		}
	}
}

// debian adds the distribution and its packages.
func (d *sbom) system() {
	db := d.of.Database
	if db.OS.ID == "" && len(db.Packages) == 0 {
		return
	}
	os := spdxPackage{SPDXID: idOS, Name: cmp.Or(db.OS.ID, "debian"), VersionInfo: cmp.Or(db.OS.Version, db.OS.Codename),
		Purpose: "OPERATING_SYSTEM", Summary: db.OS.Name}
	if db.Unread != "" {
		os.Comment = "Its packages are in a database of RPM, " + db.Unread + ", which could not be read (" + db.Reason + "): they are not listed."
	}
	d.add(os)
	d.relate(idImage, "CONTAINS", idOS)
	texts := map[string]LicenseText{}
	for i := range db.Packages {
		p := &db.Packages[i]
		d.systemPackage(p)
		d.relate(idOS, "CONTAINS", packageID(p))
		for _, j := range p.Depends {
			d.relate(packageID(p), "DEPENDS_ON", packageID(&db.Packages[j]))
		}
		for _, t := range p.License.Texts {
			texts[t.ID] = t
		}
	}
	for _, t := range texts {
		d.Licenses = append(d.Licenses, spdxLicense(t))
	}
	slices.SortFunc(d.Licenses, func(a, b spdxLicense) int { return strings.Compare(a.ID, b.ID) })
}

func (d *sbom) systemPackage(p *Package) {
	out := spdxPackage{
		SPDXID: packageID(p), Name: p.Name, VersionInfo: p.Version,
		Supplier: supplier(p), Originator: agent(p.Original),
		LicenseDeclared: p.License.Expression, Summary: p.Summary, Homepage: homepage(p.Homepage),
		SourceInfo:   fmt.Sprintf("built from source package %s %s", p.Source, cmp.Or(p.SourceVersion, p.Version)),
		ExternalRefs: []spdxExternal{{Category: "PACKAGE-MANAGER", Type: "purl", Locator: p.PURL(d.of.Database.OS)}},
	}
	if m := p.License.Mentions; len(m) > 0 {
		out.LicenseComments = "The copyright file is not machine-readable. It mentions " + strings.Join(m, ", ") + " of /usr/share/common-licenses."
	}
	if p.LicenseWords != "" {
		out.LicenseComments = "The package's header has: " + p.LicenseWords
	}
	if !p.Archive.IsZero() {
		out.Checksums = []spdxChecksum{{"SHA256", p.Archive.Hex()}}
	}
	if _, ok := d.place[p.Name]; !ok { // of several architectures the first has the files
		d.place[p.Name] = len(d.Packages)
	}
	d.add(out)
}

// packageID is the identifier of a package. Names with other characters than
// SPDX allows get a digest of what they are.
func packageID(p *Package) string {
	name := p.Name + "-" + p.Arch
	if p.kind == kindRPM {
		name = p.Name + "-" + p.Version + "-" + p.Arch // several versions of one may be there
	}
	id := idString(name, len(name))
	if id != name {
		id += "-" + diskimage.DigestOf([]byte(name)).Hex()[:8]
	}
	return "SPDXRef-" + cmp.Or(p.kind, kindDebian) + "-" + id
}

// organizations are words in the names of maintainers that are no person, and
// hosts of mailing lists.
var organizations = []string{"team", "group", "maintainers", "developers", "project", "packagers", "packaging",
	"@lists.", "@alioth-lists.", "@tracker.debian.org", "@packages.debian.org"}

var parentheses = strings.NewReplacer("(", "[", ")", "]")

// agent turns "NAME <EMAIL>" into what SPDX calls a supplier.
func agent(s string) string {
	name, rest, _ := strings.Cut(s, "<")
	name = parentheses.Replace(strings.TrimSpace(name)) // SPDX's are for the address
	email := strings.TrimSuffix(strings.TrimSpace(rest), ">")
	if name == "" {
		return ""
	}
	kind, lower := "Person", strings.ToLower(s)
	if slices.ContainsFunc(organizations, func(w string) bool { return strings.Contains(lower, w) }) {
		kind = "Organization"
	}
	if email == "" || strings.ContainsAny(email, "()") {
		return kind + ": " + name
	}
	return fmt.Sprintf("%s: %s (%s)", kind, name, email)
}

// homepage returns s if it is an address on the web.
func homepage(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "ftp" || strings.ContainsAny(s, " \t") {
		return ""
	}
	return s
}

// boot adds the EFI program. That it contains more than is said would be the
// relationship CONTAINS NOASSERTION, which SPDX's own Go tools refuse.
func (d *sbom) boot() {
	b := d.of.Boot
	if b == nil {
		return
	}
	p := spdxPackage{SPDXID: idBoot, Name: strings.TrimPrefix(b.Path, "/"), VersionInfo: b.Kernel, Purpose: "APPLICATION",
		PackageFileName: "./" + strings.TrimPrefix(b.Path, "/"),
		Summary:         "kernel, initramfs and command line in one EFI program on the EFI system partition",
		Comment:         "The initramfs holds parts of the image's packages, which are not listed."}
	if !b.SHA256.IsZero() {
		p.Checksums = []spdxChecksum{{"SHA256", b.SHA256.Hex()}}
	}
	d.add(p)
	d.relate(idImage, "CONTAINS", idBoot)
	for _, from := range d.named(b.From) {
		d.relate(idBoot, "GENERATED_FROM", packageID(from))
	}
}

// programs adds the loaders and the init of a native initramfs.
func (d *sbom) programs() {
	for _, b := range d.of.Programs {
		p := spdxPackage{SPDXID: "SPDXRef-Program-" + idString(b.Name, len(b.Name)), Name: b.Name, Purpose: "APPLICATION",
			LicenseDeclared: b.License, SourceInfo: b.Source}
		if b.Path != "" {
			p.PackageFileName = "./" + strings.TrimPrefix(b.Path, "/")
		}
		if !b.SHA256.IsZero() {
			p.Checksums = []spdxChecksum{{"SHA256", b.SHA256.Hex()}}
		}
		if b.Own {
			p.VersionInfo = strings.TrimPrefix(d.of.Tool, "imgpipe-")
		}
		from := d.named(b.From)
		if len(from) > 0 {
			p.VersionInfo, p.Supplier, p.LicenseDeclared = from[0].Version, supplier(from[0]), from[0].License.Expression
		}
		d.add(p)
		whole := idImage
		if b.Inside {
			whole = idBoot
		}
		d.relate(whole, "CONTAINS", p.SPDXID)
		for _, f := range from {
			d.relate(p.SPDXID, "GENERATED_FROM", packageID(f))
		}
	}
}

// named returns the packages of these names.
func (d *sbom) named(names []string) (out []*Package) {
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		for i := range d.of.Database.Packages {
			if p := &d.of.Database.Packages[i]; p.Name == name {
				out = append(out, p)
			}
		}
	}
	return out
}

// files adds the image's files to the packages they are of, and those that no
// package has to one of their own.
func (d *sbom) files() {
	if d.of.Files == nil {
		return
	}
	files := slices.SortedFunc(slices.Values(d.of.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	sums := map[int][]string{}
	for _, f := range files {
		i, ok := d.place[f.Package]
		if !ok {
			if i, ok = d.place[""]; !ok {
				i = len(d.Packages)
				d.place[""] = i
				d.add(spdxPackage{SPDXID: idUnpackaged, Name: d.of.Image.Name + " (unpackaged)", VersionInfo: d.of.Image.Version, Purpose: "OTHER",
					Comment: "Files of which no list of dpkg's or RPM's says whose they are: made by maintainer scripts, by the build, and by the recipe, or of packages of another kind."})
				d.relate(idImage, "CONTAINS", idUnpackaged)
			}
		}
		file := spdxFile{
			SPDXID: "SPDXRef-File-" + diskimage.DigestOf([]byte(f.Path)).Hex()[:20], Name: "." + f.Path,
			Checksums: []spdxChecksum{{"SHA1", hex.EncodeToString(f.SHA1[:])}, {"SHA256", f.SHA256.Hex()}},
		}
		d.Files = append(d.Files, file)
		d.Packages[i].HasFiles = append(d.Packages[i].HasFiles, file.SPDXID)
		sums[i] = append(sums[i], file.Checksums[0].Value)
	}
	for i, s := range sums {
		d.Packages[i].FilesAnalyzed, d.Packages[i].VerificationCode = true, verificationCode(s)
	}
}

// verificationCode is SPDX 2.3, section 7.9: the SHA-1 of the files' SHA-1, sorted
// and joined.
func verificationCode(sums []string) *spdxCode {
	slices.Sort(sums)
	h := sha1.Sum([]byte(strings.Join(sums, ""))) //nolint:gosec // see the import
	return &spdxCode{hex.EncodeToString(h[:])}
}

// unique looks for two elements of one identifier: a document with such would
// be read as something else than it says.
func (d *sbom) unique() error {
	seen := map[string]bool{idDocument: true}
	check := func(id string) error {
		if seen[id] {
			return fmt.Errorf("two elements are called %s", id)
		}
		seen[id] = true
		return nil
	}
	for _, p := range d.Packages {
		if err := check(p.SPDXID); err != nil {
			return err
		}
	}
	for _, f := range d.Files {
		if err := check(f.SPDXID); err != nil {
			return err
		}
	}
	return nil
}
