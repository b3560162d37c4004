package sign_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

const (
	place = "registry.example:5000/acme/server"
	epoch = "2026-11-01T00:00:00Z"
	sbom  = `{"spdxVersion":"SPDX-2.3","name":"<tiny>"}`
	spdx  = "https://spdx.dev/Document"
	slsa  = "https://slsa.dev/provenance/v1"
)

// policy parses a policy whose keys are given by name.
func policy(t testing.TB, text string, keys map[string]*sign.Key) *sign.Trust {
	t.Helper()
	p, err := sign.ParsePolicy("/etc/trust.yaml", []byte(text), func(path string) ([]byte, error) {
		k, ok := keys[strings.TrimSuffix(filepath.Base(path), ".pub")]
		if !ok {
			return nil, fmt.Errorf("%s: not there", path)
		}
		return k.PEM(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sign.TrustPolicy(p)
}

// untrusted fails the test unless err says so, and says each of words.
func untrusted(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, sign.ErrUntrusted) {
		t.Errorf("%s: got %v, want not trusted", what, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q is missing in: %v", what, w, err)
		}
	}
}

// TestSignInALayout goes through a real store, and a second time.
func TestSignInALayout(t *testing.T) {
	d, err := oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	desc, err := d.PushManifest(t.Context(), "1.0", types.OCIManifestSchema1, fixture(t, "image.json"))
	if err != nil {
		t.Fatal(err)
	}
	image := imageOf(t, desc.Digest.String())
	for _, p := range []*pair{newPair(t, "ecdsa"), newEd25519(t, "ed25519")} {
		_, err = sign.TrustKeys(p.key).Verify(t.Context(), d, place, image)
		untrusted(t, "unsigned", err)
		first := mustSign(t, d, image, p)
		second := mustSign(t, d, image, p)
		if p.signed != 1 || !second[0].Already || second[0].Referrer != first[0].Referrer {
			t.Errorf("signing again: %d signatures made, got %+v, then %+v", p.signed, first, second)
		}
		v, err := sign.TrustKeys(p.key).Verify(t.Context(), d, place, image)
		if err != nil {
			t.Fatal(err)
		}
		if v.Digest != image || v.Signatures[0].Origin != first[0].Referrer {
			t.Errorf("got %+v", v)
		}
	}
}

// TestAnIndexAndItsManifestsAreSigned verifies each by itself.
func TestAnIndexAndItsManifestsAreSigned(t *testing.T) {
	m, p := newMemory(), newPair(t, "release")
	amd, arm := m.image(t, "1", epoch), m.image(t, "2", epoch)
	index := m.index(t, amd, arm, amd)
	signed := mustSign(t, m, index, p)
	if len(signed) != 3 || signed[2].Subject != index {
		t.Errorf("want both manifests once and the index last, got %+v", signed)
	}
	for _, d := range []diskimage.Digest{index, amd, arm} {
		if _, err := sign.TrustKeys(p.key).Verify(t.Context(), m, place, d); err != nil {
			t.Error(err)
		}
	}
}

// TestAnIndexInALayout has the images of an index nowhere but in the index, and
// collects garbage when all is signed.
func TestAnIndexInALayout(t *testing.T) {
	m, p := newMemory(), newPair(t, "release")
	one, two := m.image(t, "1", epoch), m.image(t, "2", epoch)
	index := m.index(t, one, two)
	d, err := oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, b := range m.blobs {
		if _, err := d.PutBlob(b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.PushManifest(t.Context(), "1.0", types.OCIImageIndex, m.blobs[index.String()]); err != nil {
		t.Fatal(err)
	}
	if signed := mustSign(t, d, index, p); len(signed) != 3 {
		t.Errorf("got %+v", signed)
	}
	if _, err := d.GC(); err != nil {
		t.Fatal(err)
	}
	for _, digest := range []diskimage.Digest{index, one, two} {
		if _, err := sign.TrustKeys(p.key).Verify(t.Context(), d, place, digest); err != nil {
			t.Error(err)
		}
	}
}

// TestNothingIsReadBeforeTrust looks at what is read of an image that nobody
// signed, and of one that is signed.
func TestNothingIsReadBeforeTrust(t *testing.T) {
	m, p := newMemory(), newPair(t, "release")
	trust := policy(t, `
version: 1
keys: {release: {file: release.pub}}
repositories: [{match: "*", keys: [release], minRelease: "1"}]
`, map[string]*sign.Key{"release": p.key})
	image := m.image(t, "1", epoch)
	_, err := trust.Verify(t.Context(), m, place, image)
	untrusted(t, "unsigned", err, "no signature", "tried release (sha256:", "found 0 referrers, 0 bundles")
	for _, r := range m.reads {
		if strings.HasPrefix(r, "blob") || r == "manifest "+image.String() {
			t.Errorf("unsigned: %s", r)
		}
	}
	mustSign(t, m, image, p)
	m.reads = nil
	if _, err = trust.Verify(t.Context(), m, place, image); err != nil {
		t.Fatal(err)
	}
	config := slices.IndexFunc(m.reads, func(r string) bool { return r == "manifest "+image.String() })
	bundle := slices.IndexFunc(m.reads, func(r string) bool { return strings.HasPrefix(r, "blob") })
	if bundle < 0 || config < bundle {
		t.Errorf("the image was read before its signature: %q", m.reads)
	}
}

// TestStrippedOrMoved plays what a registry can do to a signed image.
func TestStrippedOrMoved(t *testing.T) {
	m, p := newMemory(), newPair(t, "release")
	image, other := m.image(t, "1", epoch), m.image(t, "2", epoch)
	signed := mustSign(t, m, image, p)
	trust := sign.TrustKeys(p.key)
	referrer := signed[0].Referrer.String()

	_, err := trust.Verify(t.Context(), m, place, other)
	untrusted(t, "another image", err)

	// the signature is listed for the other image, by a manifest that says so
	moved := bytes.ReplaceAll(m.blobs[referrer], []byte(image.Hex()), []byte(other.Hex()))
	m.manifest(moved)
	_, err = trust.Verify(t.Context(), m, place, other)
	untrusted(t, "a moved signature", err, "signed by release", "about another manifest")

	order := m.order
	m.order = nil
	_, err = trust.Verify(t.Context(), m, place, image)
	untrusted(t, "stripped", err, "found 0 referrers")
	m.order = order

	var doc v1.Manifest
	if err := json.Unmarshal(m.blobs[referrer], &doc); err != nil {
		t.Fatal(err)
	}
	layer := doc.Layers[0].Digest.String()
	kept := m.blobs[layer]
	m.blobs[layer] = bytes.Replace(kept, []byte(`"sig":"M`), []byte(`"sig":"N`), 1)
	_, err = trust.Verify(t.Context(), m, place, image)
	untrusted(t, "damaged", err, "does not match its SHA-256")
	delete(m.blobs, layer)
	_, err = trust.Verify(t.Context(), m, place, image)
	untrusted(t, "bundle deleted", err)
	m.blobs[layer] = kept
	if _, err = trust.Verify(t.Context(), m, place, image); err != nil {
		t.Error(err)
	}
}

// TestAStoreThatFailsIsNotUntrusted keeps "cannot be read" apart from "not
// signed", at every read.
func TestAStoreThatFailsIsNotUntrusted(t *testing.T) {
	m, p := newMemory(), newPair(t, "release")
	image := m.image(t, "1", epoch)
	mustSign(t, m, image, p)
	trust := policy(t, "{version: 1, keys: {k: {file: k.pub}}, repositories: [{match: '*', keys: [k], minRelease: '1'}]}",
		map[string]*sign.Key{"k": p.key})
	m.reads = nil
	if _, err := trust.Verify(t.Context(), m, place, image); err != nil {
		t.Fatal(err)
	}
	down := errors.New("503 Service Unavailable")
	for n := range len(m.reads) {
		i := 0
		m.fail = func(string, string) error {
			if i++; i == n+1 {
				return down
			}
			return nil
		}
		v, err := trust.Verify(t.Context(), m, place, image)
		if !errors.Is(err, down) || errors.Is(err, sign.ErrUntrusted) || v != nil {
			t.Errorf("read %d fails: got %v, %v", n, v, err)
		}
	}
}

// TestThresholdCountsKeys signs by one key under two names, then by two.
func TestThresholdCountsKeys(t *testing.T) {
	m, one, two := newMemory(), newPair(t, "one"), newPair(t, "two")
	twin := pairOf(t, "twin", one.private)
	trust := policy(t, `
version: 1
keys: {one: {file: one.pub}, two: {file: two.pub}, three: {file: three.pub}, twin: {file: twin.pub}}
repositories: [{match: "*", keys: [one, two, three, twin], threshold: 2}]
`, map[string]*sign.Key{"one": one.key, "twin": twin.key, "two": two.key, "three": newPair(t, "three").key})
	image := m.image(t, "1", epoch)
	for _, p := range []*pair{one, twin} { // each as if the other had not
		n := newMemory()
		mustSign(t, n, n.image(t, "1", epoch), p)
		for _, d := range n.order {
			m.manifest(n.blobs[d])
		}
		maps.Copy(m.blobs, n.blobs)
	}
	if len(m.order) != 3 {
		t.Fatalf("want the image and two signatures, got %q", m.order)
	}
	_, err := trust.Verify(t.Context(), m, place, image)
	untrusted(t, "one key, twice", err, "signed by 1 of 3 keys, 2 must have")
	mustSign(t, m, image, newPair(t, "stranger"))
	_, err = trust.Verify(t.Context(), m, place, image)
	untrusted(t, "and a stranger", err, "signed by another key")
	mustSign(t, m, image, two)
	v, err := trust.Verify(t.Context(), m, place, image)
	if err != nil || len(v.Signatures) != 2 {
		t.Errorf("two keys: got %+v, %v", v, err)
	}
}

// TestRollback holds releases and epochs against a floor, also those of the
// manifests in an index.
func TestRollback(t *testing.T) {
	m, p := newMemory(), newPair(t, "k")
	trust := policy(t, `
version: 1
keys: {k: {file: k.pub}}
repositories:
  - match: "*"
    keys: [k]
    minRelease: "2026.10"
    minEpoch: 2026-10-01T00:00:00Z
`, map[string]*sign.Key{"k": p.key})
	old := m.image(t, "2026.9.30", epoch)
	early := m.image(t, "2026.11", "2026-09-30T23:59:59Z")
	good := m.image(t, "2026.10", "2026-10-01T00:00:00Z")
	mixed := m.index(t, good, old)
	goods := m.index(t, good, m.image(t, "2026.10.1", epoch))
	for _, d := range []diskimage.Digest{old, early, good, mixed, goods} {
		mustSign(t, m, d, p)
	}
	for d, word := range map[diskimage.Digest]string{old: `release "2026.9.30" is older than "2026.10"`,
		early: "epoch 2026-09-30T23:59:59Z is before", mixed: `release "2026.9.30"`} {
		v, err := trust.Verify(t.Context(), m, place, d)
		untrusted(t, word, err, word)
		if v != nil {
			t.Errorf("%s: got a verdict", word)
		}
	}
	for _, d := range []diskimage.Digest{good, goods} {
		if _, err := trust.Verify(t.Context(), m, place, d); err != nil {
			t.Error(err)
		}
	}
	empty := m.index(t)
	mustSign(t, m, empty, p)
	_, err := trust.Verify(t.Context(), m, place, empty)
	untrusted(t, "an index of nothing", err)
}

// TestAttestations attests, verifies, and asks for what is not there.
func TestAttestations(t *testing.T) {
	m, release, ci := newMemory(), newPair(t, "release"), newPair(t, "ci")
	keys := map[string]*sign.Key{"release": release.key, "ci": ci.key}
	trust := policy(t, `
version: 1
keys: {release: {file: release.pub}, ci: {file: ci.pub}}
repositories:
  - match: "**"
    keys: [release]
    attestations:
      - {type: slsaprovenance1, keys: [ci]}
`, keys)
	image := m.image(t, "1", epoch)
	index := m.index(t, image)
	mustSign(t, m, index, release)
	attest := func(d diskimage.Digest, typ, predicate string, p *pair) sign.Signed {
		t.Helper()
		out, err := sign.Attest(t.Context(), m, d, typ, json.RawMessage(predicate), p, sign.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	_, err := trust.Verify(t.Context(), m, place, index)
	untrusted(t, "no provenance", err, "no attestation of type "+slsa, "nor of its manifest")
	attest(image, "slsaprovenance1", `{}`, release)
	_, err = trust.Verify(t.Context(), m, place, index)
	untrusted(t, "provenance by another key", err, "signed by another key")
	first := attest(image, slsa, `{"a": 1}`, ci)
	for _, d := range []diskimage.Digest{index, image} {
		v, err := trust.Verify(t.Context(), m, place, d)
		if err != nil || len(v.Attestations) != 1 || string(v.Attestations[0].Predicate) != `{"a":1}` {
			t.Errorf("got %+v, %v", v, err)
		}
	}
	if second := attest(image, slsa, `{"a": 1}`, ci); !second.Already || second.Referrer != first.Referrer {
		t.Errorf("the same again: %+v, then %+v", first, second)
	}
	if other := attest(image, slsa, `{"a": 2}`, ci); other.Already {
		t.Error("another predicate was taken for the same")
	}
	attest(image, "spdxjson", sbom, release)
	v, err := trust.Verify(t.Context(), m, place, image, spdx)
	if err != nil || string(v.Attestations[len(v.Attestations)-1].Predicate) != sbom {
		t.Errorf("got %+v, %v", v, err)
	}
	for typ, predicate := range map[string]string{sign.TypeSignature: "{}", "no type": "{}", "spdx": "[1]", "spdxjson": "", "link": `{"a":1} {}`} {
		if _, err := sign.Attest(t.Context(), m, image, typ, json.RawMessage(predicate), ci, sign.Options{}); err == nil {
			t.Errorf("attested %q %q", typ, predicate)
		}
	}
}

// lying signs with another key than it says.
type lying struct {
	*pair
	claims *sign.Key
}

func (l lying) Key() *sign.Key { return l.claims }

func TestAWrongSignatureIsNotStored(t *testing.T) {
	m := newMemory()
	image := m.image(t, "1", epoch)
	n := len(m.blobs)
	if _, err := sign.Sign(t.Context(), m, image, lying{newPair(t, "liar"), fixtureKey(t, "p256")}, sign.Options{}); err == nil || len(m.blobs) != n {
		t.Errorf("got %v, %d objects stored", err, len(m.blobs)-n)
	}
}
