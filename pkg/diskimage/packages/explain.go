package packages

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// What apt, gpgv and mmdebstrap write when something is wrong. apt's messages
// have been stable for years and are not translated under LC_ALL=C.UTF-8; where
// one changes, the error still comes, with their last lines as they are.
var (
	reNotable   = regexp.MustCompile(`^E: |No space left on device`)
	reUnknown   = regexp.MustCompile(`^E: (?:Unable to locate package (\S+)|Couldn't find any package by (?:glob|regex) '([^']+)'|Package '([^']+)' has no installation candidate)`)
	reNoVersion = regexp.MustCompile(`^E: (Version|Release) '([^']*)' for '([^']+)' was not found`)
	reFetch     = regexp.MustCompile(`^[EW]: Failed to fetch (\S+)\s+(.*)`)
	reUnsigned  = regexp.MustCompile(`^E: The repository '(\S+) [^']*' is not signed`)
	reUntrusted = regexp.MustCompile(`NO_PUBKEY|EXPKEYSIG|REVKEYSIG|BADSIG|couldn't be verified|no valid OpenPGP|invalid signature`)
	reDates     = regexp.MustCompile(`^E: Release file for (\S+) is (not valid yet|expired)`)
	reNoSuite   = regexp.MustCompile(`^E: The repository '(\S+) (\S+) [^']*' does not have a Release file`)
	reEpoch     = regexp.MustCompile(`^E: imgpipe: the epoch (is later than this machine's clock)`)
	reForeign   = regexp.MustCompile(`can neither be executed natively nor via qemu user emulation`)
	reNoSubIDs  = regexp.MustCompile(`(?:/etc/sub[ug]id|invalid idmap|newuidmap|newgidmap)`)
)

const keyHint = "name the archive's keys in base.debian.keyring, or update debian-archive-keyring"

// unknown returns an error for every package that apt did not find.
func (o *output) unknown(suite string) error {
	var errs []error
	seen := map[string]bool{}
	for _, s := range o.notable {
		name := ""
		if m := reUnknown.FindStringSubmatch(s); m != nil {
			name = m[1] + m[2] + m[3]
		} else if m := reNoVersion.FindStringSubmatch(s); m != nil {
			name = m[3] + map[string]string{"Version": "=", "Release": "/"}[m[1]] + m[2]
		}
		if name != "" && !seen[name] {
			seen[name] = true
			errs = append(errs, &UnknownPackageError{Name: name, Suite: suite})
		}
	}
	return errors.Join(errs...)
}

// explain returns the best error that the output gives a reason for.
func (o *output) explain(req Request, dir string, need int64, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	suite := req.Debian.Suite
	for _, s := range o.notable {
		if strings.Contains(s, "No space left on device") {
			return &NoSpaceError{Dir: filepath.Dir(dir), Need: need}
		}
	}
	if err := o.unknown(suite); err != nil {
		return err
	}
	for _, s := range o.notable {
		if m := reEpoch.FindStringSubmatch(s); m != nil {
			return fmt.Errorf("epoch %s %s", req.Epoch.Format(time.RFC3339), m[1])
		}
		if m := reNoSuite.FindStringSubmatch(s); m != nil {
			return &MirrorError{URL: m[1], Reason: "it has no suite " + m[2],
				Hint: "check base.debian.suite and mirrors"}
		}
		if m := reDates.FindStringSubmatch(s); m != nil {
			return &MirrorError{URL: m[1], Reason: "its Release file is " + m[2],
				Hint: "check this machine's clock, or the mirror's age"}
		}
		if m := reFetch.FindStringSubmatch(s); m != nil {
			hint := "check the network, a proxy, or base.debian.mirrors"
			if reUntrusted.MatchString(m[2]) {
				hint = keyHint
			}
			return &MirrorError{URL: m[1], Reason: strings.TrimSpace(m[2]), Hint: hint}
		}
		if m := reUnsigned.FindStringSubmatch(s); m != nil {
			return &MirrorError{URL: m[1], Reason: "it is not signed", Hint: keyHint}
		}
		if reForeign.MatchString(s) {
			return fmt.Errorf("%s programs do not run on this machine: apt-get install qemu-user-static binfmt-support arch-test", req.Arch)
		}
		// mmdebstrap maps ids again when it cleans up, which is not why it does
		if o.total == 0 && strings.HasPrefix(s, "E: ") && reNoSubIDs.MatchString(s) {
			return fmt.Errorf("%w: %s", ErrNoSubordinateIDs, strings.TrimPrefix(s, "E: "))
		}
	}
	var lines []string
	for _, s := range o.notable { // an error's reason may be long before its end
		if !slices.Contains(o.tail, s) {
			lines = append(lines, s)
		}
	}
	lines = append(lines, o.tail...)
	if len(o.partial) > 0 {
		lines = append(lines, string(o.partial))
	}
	return &RunError{Tool: "mmdebstrap", Err: err, Tail: strings.Join(lines, "\n")}
}
