package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/github/go-spdx/v2/spdxexp"
	"github.com/package-url/packageurl-go"
	"github.com/santhosh-tekuri/jsonschema/v6"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
	"github.com/spdx/tools-golang/spdxlib"
	"github.com/spdx/tools-golang/utils"
)

//go:embed spdx-schema-2.3.json
var schema []byte

func judgeSPDX(b []byte) error {
	if err := judgeSchema(b); err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	doc := &v2_3.Document{}
	if err := spdxjson.ReadInto(bytes.NewReader(b), doc); err != nil {
		return fmt.Errorf("tools-golang: %w", err)
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		return fmt.Errorf("tools-golang: %w", err)
	}
	described, err := spdxlib.GetDescribedPackageIDs(doc)
	if err != nil || len(described) != 1 {
		return fmt.Errorf("tools-golang: %d packages described, want 1: %w", len(described), err)
	}
	var errs []error
	licensed, purls := 0, 0
	files := filesOf(doc)
	for _, p := range doc.Packages {
		errs = append(errs, judgePackage(doc, p, files[p.PackageSPDXIdentifier]))
		if p.PackageLicenseDeclared != "NOASSERTION" && p.PackageLicenseDeclared != "" {
			licensed++
		}
		for _, r := range p.PackageExternalReferences {
			if r.RefType == "purl" {
				purls++
				if err := judgePURL(r.Locator); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", p.PackageName, err))
				}
			}
		}
	}
	errs = append(errs, judgeReferences(b, doc))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Printf("SPDX 2.3: %d packages, %d with a licence, %d package URLs, %d files, %d relationships, %d licence texts\n",
		len(doc.Packages), licensed, purls, len(doc.Files), len(doc.Relationships), len(doc.OtherLicenses))
	return nil
}

func judgeSchema(b []byte) error {
	s, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("spdx.json", s); err != nil {
		return err
	}
	compiled, err := c.Compile("spdx.json")
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return err
	}
	return compiled.Validate(doc)
}

// agent is what the specification allows as supplier and originator.
var agent = regexp.MustCompile(`^(Person|Organization): [^()]+( \([^()]*\))?$`)

var refs = regexp.MustCompile(`LicenseRef-[A-Za-z0-9.-]+`)

// filesOf returns the files of each package: tools-golang reads hasFiles as
// relationships.
func filesOf(doc *v2_3.Document) map[common.ElementID][]*v2_3.File {
	byID := map[common.ElementID]*v2_3.File{}
	for _, f := range doc.Files {
		byID[f.FileSPDXIdentifier] = f
	}
	out := map[common.ElementID][]*v2_3.File{}
	for _, r := range doc.Relationships {
		if f := byID[r.RefB.ElementRefID]; f != nil && r.Relationship == common.TypeRelationshipContains {
			out[r.RefA.ElementRefID] = append(out[r.RefA.ElementRefID], f)
		}
	}
	return out
}

func judgePackage(doc *v2_3.Document, p *v2_3.Package, files []*v2_3.File) error {
	if e := p.PackageLicenseDeclared; e != "NOASSERTION" && e != "" {
		if ok, bad := spdxexp.ValidateLicenses([]string{e}); !ok {
			return fmt.Errorf("%s: licence expression %q", p.PackageName, bad)
		}
		for _, ref := range refs.FindAllString(e, -1) {
			if !hasLicense(doc, ref) {
				return fmt.Errorf("%s: %s has no text", p.PackageName, ref)
			}
		}
	}
	if s := p.PackageSupplier; s != nil && s.Supplier != "" && !agent.MatchString(s.SupplierType+": "+s.Supplier) && s.Supplier != "NOASSERTION" {
		return fmt.Errorf("%s: supplier %q %q", p.PackageName, s.SupplierType, s.Supplier)
	}
	if len(files) == 0 {
		if p.FilesAnalyzed {
			return fmt.Errorf("%s: files analysed, and none listed", p.PackageName)
		}
		return nil
	}
	if !p.FilesAnalyzed {
		return fmt.Errorf("%s: files listed, and none analysed", p.PackageName)
	}
	code, err := utils.GetVerificationCode(files, "")
	if err != nil {
		return err
	}
	if p.PackageVerificationCode == nil || code.Value != p.PackageVerificationCode.Value {
		return fmt.Errorf("%s: verification code is not %s", p.PackageName, code.Value)
	}
	return nil
}

func hasLicense(doc *v2_3.Document, ref string) bool {
	for _, l := range doc.OtherLicenses {
		if l.LicenseIdentifier == ref && strings.TrimSpace(l.ExtractedText) != "" {
			return true
		}
	}
	return false
}

// judgePURL reads a package URL and writes it again.
func judgePURL(s string) error {
	if s == "" {
		return nil
	}
	u, err := packageurl.FromString(s)
	if err != nil {
		return fmt.Errorf("package URL %s: %w", s, err)
	}
	if again := u.ToString(); again != s {
		return fmt.Errorf("package URL %s is spelt %s", s, again)
	}
	return nil
}

// judgeReferences follows every identifier to its one element.
func judgeReferences(b []byte, doc *v2_3.Document) error {
	var raw struct {
		Packages, Files []struct {
			SPDXID   string
			HasFiles []string
		}
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	elements := map[common.ElementID]int{"DOCUMENT": 1}
	of := map[string]int{}
	for _, e := range append(raw.Packages, raw.Files...) {
		elements[common.ElementID(strings.TrimPrefix(e.SPDXID, "SPDXRef-"))]++
		for _, f := range e.HasFiles {
			of[f]++
		}
	}
	for id, n := range elements {
		if n != 1 {
			return fmt.Errorf("%s is %d elements", id, n)
		}
	}
	for _, f := range raw.Files {
		if of[f.SPDXID] != 1 {
			return fmt.Errorf("file %s is in %d packages", f.SPDXID, of[f.SPDXID])
		}
	}
	reached := map[common.ElementID]bool{"DOCUMENT": true}
	for _, r := range doc.Relationships {
		for _, id := range []common.DocElementID{r.RefA, r.RefB} {
			if id.SpecialID == "" && elements[id.ElementRefID] == 0 {
				return fmt.Errorf("relationship %v %s %v: no such element", r.RefA, r.Relationship, r.RefB)
			}
		}
		reached[r.RefB.ElementRefID] = true
	}
	for _, p := range raw.Packages {
		if !reached[common.ElementID(strings.TrimPrefix(p.SPDXID, "SPDXRef-"))] {
			return fmt.Errorf("%s is related to nothing", p.SPDXID)
		}
	}
	return nil
}
