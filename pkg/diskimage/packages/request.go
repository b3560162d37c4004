package packages

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// format is the version of everything here that decides what a tree or its
// record holds. It is part of every key: raise it when the hooks, the
// environment or Result change.
const format = 4

var (
	reWord    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+/-]*$`)
	rePackage = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?([=/][A-Za-z0-9][A-Za-z0-9.+:~_-]*)?$`)
)

// VariantExtract is the variant in which packages and what they depend on are
// unpacked, and nothing else: no script runs, and the tree is no system. It takes
// seconds, and is for those who want files out of packages, such as a kernel.
const VariantExtract = "extract"

var variants = []string{VariantExtract, "custom", "essential", "apt", "required", "minbase", "buildd", "important", "debootstrap", "standard"}

// debianKeyring is where package debian-archive-keyring has Debian's keys. They
// are always named, so that what a host trusts besides decides nothing.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// normal returns the request with defaults filled in, in its one spelling:
// packages sorted, times in whole seconds.
func (r Request) normal() (Request, error) {
	d := &r.Debian
	if d.Variant == "" {
		d.Variant = "minbase"
	}
	if len(d.Components) == 0 {
		d.Components = []string{"main"}
	}
	if d.Keyring == "" {
		d.Keyring = debianKeyring
	}
	r.Packages = slices.Compact(slices.Sorted(slices.Values(r.Packages)))
	r.Epoch = r.Epoch.UTC().Truncate(time.Second)
	switch {
	case !reWord.MatchString(d.Suite):
		return r, fmt.Errorf("suite %q is not a name", d.Suite)
	case !reWord.MatchString(r.Arch):
		return r, fmt.Errorf("architecture %q is not a name", r.Arch)
	case !slices.Contains(variants, d.Variant):
		return r, fmt.Errorf("variant %q: want one of %s", d.Variant, strings.Join(variants, ", "))
	case r.Epoch.Unix() < 0:
		return r, fmt.Errorf("epoch %v is before 1970", r.Epoch)
	case path.Ext(d.Keyring) != ".gpg" && path.Ext(d.Keyring) != ".asc":
		return r, fmt.Errorf("keyring %q: apt wants the name to end in .gpg or .asc", d.Keyring)
	}
	for _, c := range d.Components {
		if !reWord.MatchString(c) {
			return r, fmt.Errorf("component %q is not a name", c)
		}
	}
	for _, p := range r.Packages {
		if !rePackage.MatchString(p) {
			return r, fmt.Errorf("package %q: want NAME, NAME=VERSION or NAME/SUITE", p)
		}
	}
	for _, m := range d.Mirrors {
		// mmdebstrap takes other words for the names of files on this machine
		if !strings.HasPrefix(m, "deb ") && !strings.Contains(m, "://") || strings.HasPrefix(m, "-") || strings.ContainsAny(m, "\n\r\x00") {
			return r, fmt.Errorf("mirror %q: want a URL or a line of sources.list", m)
		}
	}
	return r, nil
}

// keys returns the keyring's contents.
func (r Request) keys() ([]byte, error) {
	b, err := os.ReadFile(r.Debian.Keyring)
	if err != nil && r.Debian.Keyring == debianKeyring {
		return nil, &MissingToolError{Tool: debianKeyring, Package: "debian-archive-keyring"}
	}
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return b, nil
}

// identity returns the digest of a normal request, and that of its sources
// alone. tool is the version of mmdebstrap; the keyring counts by what it holds.
func (r Request) identity(tool string, keys []byte) (request, sources diskimage.Digest, err error) {
	base := []any{format, r.Debian.Suite, r.Debian.Components, r.Debian.Mirrors, diskimage.DigestOf(keys), r.Arch}
	if sources, err = digestJSON(base); err != nil {
		return request, sources, err
	}
	all := []any{base, tool, r.Debian.Variant, r.Packages, r.Epoch.Unix()}
	if r.NoInitramfs {
		all = append(all, "no initramfs")
	}
	request, err = digestJSON(all)
	return request, sources, err
}

// keyOf returns the key of a request at one state of the archive.
func keyOf(request diskimage.Digest, sources []Source) (diskimage.Digest, error) {
	return digestJSON([]any{request, sources})
}

func digestJSON(v any) (diskimage.Digest, error) {
	b, err := json.Marshal(v)
	return diskimage.Digest(sha256.Sum256(b)), err
}

// terms returns what apt is asked to plan for, to find out what will be needed
// before it is: the variants as mmdebstrap's manual describes them.
func (r Request) terms() string {
	var t []string
	switch r.Debian.Variant {
	case "essential":
		t = []string{"?essential"}
	case "apt":
		t = []string{"?essential", "apt"}
	case "required", "minbase":
		t = []string{"?essential", "?priority(required)"}
	case "buildd":
		t = []string{"?essential", "?priority(required)", "build-essential"}
	case "important", "debootstrap":
		t = []string{"?essential", "?priority(required)", "?priority(important)"}
	case "standard":
		t = []string{"?essential", "?priority(required)", "?priority(important)", "?priority(standard)"}
	}
	return strings.Join(append(t, r.Packages...), " ")
}
