package sign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Trust decides whether an image is to be believed.
type Trust struct {
	policy *Policy
}

// TrustKeys trusts every image that one of the keys signed.
func TrustKeys(keys ...*Key) *Trust {
	return &Trust{&Policy{rules: []*Rule{{Match: everything, Keys: distinct(keys), Threshold: 1}}}}
}

// TrustPolicy trusts what a policy says.
func TrustPolicy(p *Policy) *Trust { return &Trust{p} }

// UntrustedError says why an image is not to be used. It is ErrUntrusted.
type UntrustedError struct {
	Place    string
	Digest   diskimage.Digest
	Why      string
	Tried    []*Key   // the keys that could have vouched
	Found    string   // what there was, in a few words; "" if nothing was looked for
	Rejected []string // what of it proved nothing, and why
}

func (e *UntrustedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s@%v: not trusted: %s", e.Place, e.Digest, e.Why)
	if e.Found != "" {
		fmt.Fprintf(&b, "; tried %s; found %s", names(e.Tried), e.Found)
	}
	for i, r := range e.Rejected {
		if i == 5 {
			fmt.Fprintf(&b, "; and %d more", len(e.Rejected)-i)
			break
		}
		fmt.Fprintf(&b, "; %s", r)
	}
	return b.String()
}

// Is reports whether target is ErrUntrusted.
func (e *UntrustedError) Is(target error) bool { return target == ErrUntrusted }

// Verdict is why an image is trusted.
type Verdict struct {
	Place  string
	Digest diskimage.Digest
	Rule   *Rule
	// Signatures are one for each key that signed, Attestations one for each
	// type and key of those that the rule or the caller asked for.
	Signatures   []Claim
	Attestations []Claim
}

// Check decides by signatures and attestations alone whether a manifest is
// trusted; nothing that it describes is read before. place is that of
// oci.Ref.Place, a layout by its absolute path. types are predicate types whose
// attestations are to be there beyond what the rule asks for, by one of the
// rule's keys. The error is an *UntrustedError, or that the store failed.
//
// What an attestation of an image index is asked for may instead stand at each
// manifest of the index: builds attest what they made.
func (t *Trust) Check(ctx context.Context, s Store, place string, digest diskimage.Digest, types ...string) (*Verdict, error) {
	rule, err := t.policy.For(place)
	if err != nil {
		return nil, &UntrustedError{Place: place, Digest: digest, Why: err.Error()}
	}
	if rule.Reject {
		return nil, &UntrustedError{Place: place, Digest: digest, Why: fmt.Sprintf("rule %q of the policy rejects it", rule.Match)}
	}
	required := slices.Clone(rule.Attestations)
	for _, typ := range types {
		required = append(required, Requirement{Type: typ, Keys: rule.Keys})
	}
	e, err := Fetch(ctx, s, digest, wantedBy(required)...)
	if err != nil {
		return nil, err
	}
	v, err := rule.judge(place, e)
	if err != nil {
		return nil, err
	}
	for _, r := range required {
		claims, err := attested(ctx, s, e, r)
		if err != nil {
			return nil, asUntrusted(err, place)
		}
		v.add(claims)
	}
	return v, nil
}

func wantedBy(required []Requirement) []string {
	types := []string{TypeSignature}
	for _, r := range required {
		types = append(types, r.Type)
	}
	return types
}

// asUntrusted fills in the place.
func asUntrusted(err error, place string) error {
	var u *UntrustedError
	if errors.As(err, &u) {
		u.Place = place
	}
	return err
}

// judge decides by the signatures in the evidence. It reads nothing.
func (r *Rule) judge(place string, e *Evidence) (*Verdict, error) {
	claims, rejected := e.Claims(r.Keys)
	v := &Verdict{Place: place, Digest: e.Digest, Rule: r}
	for _, c := range claims {
		if c.Type == TypeSignature && !slices.ContainsFunc(v.Signatures, func(have Claim) bool { return have.Key.id == c.Key.id }) {
			v.Signatures = append(v.Signatures, c)
		}
	}
	if n := len(v.Signatures); n < r.Threshold {
		why := "no signature by a trusted key"
		if n > 0 {
			why = fmt.Sprintf("signed by %d of %d keys, %d must have", n, len(r.Keys), r.Threshold)
		}
		return nil, &UntrustedError{Place: place, Digest: e.Digest, Why: why, Tried: r.Keys, Found: e.found(), Rejected: rejected}
	}
	return v, nil
}

// attested returns the claims that meet a requirement.
func attested(ctx context.Context, s Store, e *Evidence, r Requirement) ([]Claim, error) {
	claims, rejected := e.attested(r)
	if len(claims) > 0 {
		return claims, nil
	}
	missing := &UntrustedError{Digest: e.Digest, Why: "no attestation of type " + r.Type + " by a trusted key",
		Tried: r.Keys, Found: e.found(), Rejected: rejected}
	b, desc, err := s.Manifest(ctx, e.Digest.String())
	if err != nil {
		return nil, err
	}
	if !desc.MediaType.IsIndex() || diskimage.DigestOf(b) != e.Digest {
		return nil, missing
	}
	children, err := childrenOf(b)
	if err != nil {
		return nil, err
	}
	for _, d := range children {
		child, err := Fetch(ctx, s, d, r.Type)
		if err != nil {
			return nil, err
		}
		got, rejected := child.attested(r)
		if len(got) == 0 {
			missing.Why += fmt.Sprintf(", nor of its manifest %v", d)
			missing.Rejected = append(missing.Rejected, rejected...)
			return nil, missing
		}
		claims = append(claims, got...)
	}
	if len(claims) == 0 {
		return nil, missing
	}
	return claims, nil
}

func (e *Evidence) attested(r Requirement) (out []Claim, rejected []string) {
	claims, rejected := e.Claims(r.Keys)
	for _, c := range claims {
		if c.Type == r.Type {
			out = append(out, c)
		}
	}
	return out, rejected
}

// add adds claims that are not there yet.
func (v *Verdict) add(claims []Claim) {
	for _, c := range claims {
		same := func(have Claim) bool {
			return have.Key.id == c.Key.id && have.Type == c.Type && string(have.Payload) == string(c.Payload)
		}
		if !slices.ContainsFunc(v.Attestations, same) {
			v.Attestations = append(v.Attestations, c)
		}
	}
}

// Verify is Check, and then what the rule says about releases and epochs: for
// that it reads the image's config, or for an image index all of them.
func (t *Trust) Verify(ctx context.Context, s Store, place string, digest diskimage.Digest, types ...string) (*Verdict, error) {
	v, err := t.Check(ctx, s, place, digest, types...)
	if err != nil || !v.Rule.limited() {
		return v, err
	}
	b, err := trustedManifest(ctx, s, digest)
	if err != nil {
		return nil, err
	}
	h, err := parseHolder(b)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", digest, err)
	}
	if h.Config != nil {
		if err := v.admitsConfig(ctx, s, digest, h.Config); err != nil {
			return nil, err
		}
		return v, nil
	}
	children, err := childrenOf(b)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", digest, err)
	}
	if len(children) == 0 {
		return nil, v.untrusted(digest, "it has no config that says a release")
	}
	for _, d := range children {
		if b, err = trustedManifest(ctx, s, d); err != nil {
			return nil, err
		}
		if h, err = parseHolder(b); err != nil {
			return nil, fmt.Errorf("%v: %w", d, err)
		}
		if h.Config == nil {
			return nil, v.untrusted(d, "it has no config that says a release")
		}
		if err := v.admitsConfig(ctx, s, d, h.Config); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// trustedManifest reads a manifest whose digest is already trusted.
func trustedManifest(ctx context.Context, s Store, digest diskimage.Digest) ([]byte, error) {
	b, _, err := s.Manifest(ctx, digest.String())
	if err != nil {
		return nil, fmt.Errorf("%v: %w", digest, err)
	}
	if got := diskimage.DigestOf(b); got != digest {
		return nil, fmt.Errorf("%v: the store gave a manifest %v", digest, got)
	}
	return b, nil
}

func (v *Verdict) admitsConfig(ctx context.Context, s Store, digest diskimage.Digest, d *v1.Descriptor) error {
	if d.Size < 0 || d.Size > maxConfig {
		return fmt.Errorf("%v: config has %d bytes, at most %d are allowed", digest, d.Size, maxConfig)
	}
	b, err := readBlob(ctx, s, *d)
	if err != nil {
		return fmt.Errorf("%v: config: %w", digest, err)
	}
	var c struct {
		Version string    `json:"version"`
		Epoch   time.Time `json:"epoch"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("%v: config: %w", digest, err)
	}
	return v.Admits(digest, c.Version, c.Epoch)
}

// Admits decides whether the rule admits an image by the release and the epoch
// in its config, which the caller has read under the verdict's digest; digest
// is that of the image's own manifest.
func (v *Verdict) Admits(digest diskimage.Digest, release string, epoch time.Time) error {
	r := v.Rule
	if r.MinRelease != "" && (release == "" || compareReleases(release, r.MinRelease) < 0) {
		return v.untrusted(digest, fmt.Sprintf("release %q is older than %q, the oldest that rule %q of the policy admits", release, r.MinRelease, r.Match))
	}
	if !r.MinEpoch.IsZero() && epoch.Before(r.MinEpoch) {
		return v.untrusted(digest, fmt.Sprintf("epoch %s is before %s, the oldest that rule %q of the policy admits",
			epoch.UTC().Format(time.RFC3339), r.MinEpoch.UTC().Format(time.RFC3339), r.Match))
	}
	return nil
}

func (v *Verdict) untrusted(digest diskimage.Digest, why string) error {
	return &UntrustedError{Place: v.Place, Digest: digest, Why: why}
}
