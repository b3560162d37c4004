package sign_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// What cosign v3.1.3 made: see testdata/cosign/README.md.
var cosignKeys = []string{"p256", "p384", "p521", "ed25519", "rsa2048"}

const cosignImage = "sha256:274b4405fabf85cb844eb9ca8b980b1a8c7eef42807ebf40986c53574bfd2d46"

func imageOf(t testing.TB, s string) diskimage.Digest {
	t.Helper()
	d, err := diskimage.ParseDigest(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "cosign", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fixtureKey(t testing.TB, name string) *sign.Key {
	t.Helper()
	k, err := sign.ParseKey(name, fixture(t, name+".pub"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// cosignStore is a store with the fixtures whose names match a pattern.
func cosignStore(t testing.TB, glob string) *memory {
	t.Helper()
	m := newMemory()
	m.manifest(fixture(t, "image.json"))
	paths, err := filepath.Glob(filepath.Join("testdata", "cosign", glob))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: no fixtures, %v", glob, err)
	}
	tag := "sha256-" + strings.TrimPrefix(cosignImage, "sha256:")
	for _, p := range paths {
		name := filepath.Base(p)
		switch b := fixture(t, name); {
		case strings.HasSuffix(name, ".sig.manifest.json"):
			m.tags[tag+".sig"] = m.put(b).String()
		case strings.HasSuffix(name, ".att.manifest.json"):
			m.tags[tag+".att"] = m.put(b).String()
		case strings.HasSuffix(name, ".manifest.json"):
			m.manifest(b)
		default:
			m.put(b)
		}
	}
	return m
}

// TestCosignsSignaturesAreAccepted has signatures by each kind of key, in each
// of cosign's formats, and among signatures by others.
func TestCosignsSignaturesAreAccepted(t *testing.T) {
	image := imageOf(t, cosignImage)
	for _, name := range cosignKeys {
		for _, c := range []struct {
			glob string
			want sign.Format
		}{{name + ".sign.*", sign.FormatBundle}, {name + ".sig.*", sign.FormatSimple}, {"*.sign.*", sign.FormatBundle}} {
			v, err := sign.TrustKeys(fixtureKey(t, name)).Verify(t.Context(), cosignStore(t, c.glob), "localhost:5000/t", image)
			if err != nil {
				t.Errorf("%s in %s: %v", name, c.glob, err)
			} else if len(v.Signatures) != 1 || v.Signatures[0].Format != c.want || v.Signatures[0].Key.Name() != name {
				t.Errorf("%s in %s: got %+v", name, c.glob, v.Signatures)
			}
		}
	}
}

// TestAnotherKeyIsNotEnough tries each key on each other's signatures.
func TestAnotherKeyIsNotEnough(t *testing.T) {
	image := imageOf(t, cosignImage)
	for _, name := range cosignKeys {
		for _, other := range cosignKeys {
			if other == name {
				continue
			}
			for _, glob := range []string{other + ".sign.*", other + ".sig.*"} {
				_, err := sign.TrustKeys(fixtureKey(t, name)).Verify(t.Context(), cosignStore(t, glob), "localhost:5000/t", image)
				if !errors.Is(err, sign.ErrUntrusted) {
					t.Errorf("%s for %s: got %v, want not trusted", glob, name, err)
				}
			}
		}
	}
}

func TestHintIsCosigns(t *testing.T) {
	for _, name := range cosignKeys {
		m := cosignStore(t, name+".sign.*")
		other := newPair(t, "other")
		_, err := sign.TrustKeys(other.key).Verify(t.Context(), m, "localhost:5000/t", imageOf(t, cosignImage))
		if err == nil || !strings.Contains(err.Error(), fixtureKey(t, name).ID().String()[:19]) {
			t.Errorf("%s: the error does not name the key that signed: %v", name, err)
		}
	}
}

// TestCosignsAttestationsAreAccepted reads both of its formats; the image is
// signed beside them.
func TestCosignsAttestationsAreAccepted(t *testing.T) {
	image, key := imageOf(t, cosignImage), fixtureKey(t, "p256")
	for _, glob := range []string{"p256.s[ipl]*", "p256.[sa][it][gt]*"} {
		for typ, want := range map[string]string{"spdxjson": `"spdxVersion":"SPDX-2.3"`, "slsaprovenance1": `"buildType":"https://x.example/y"`} {
			uri, err := sign.PredicateType(typ)
			if err != nil {
				t.Fatal(err)
			}
			v, err := sign.TrustKeys(key).Verify(t.Context(), cosignStore(t, glob), "localhost:5000/t", image, uri)
			if err != nil {
				t.Errorf("%s of %s: %v", typ, glob, err)
				continue
			}
			if len(v.Attestations) != 1 || !strings.Contains(string(v.Attestations[0].Predicate), want) {
				t.Errorf("%s of %s: got %+v", typ, glob, v.Attestations)
			}
		}
	}
}

// TestAnAttestationIsNoSignature has attestations by a trusted key only.
func TestAnAttestationIsNoSignature(t *testing.T) {
	m := cosignStore(t, "p256.s[pl]*") // spdx and slsa
	_, err := sign.TrustKeys(fixtureKey(t, "p256")).Verify(t.Context(), m, "localhost:5000/t", imageOf(t, cosignImage))
	if !errors.Is(err, sign.ErrUntrusted) {
		t.Errorf("got %v, want not trusted", err)
	}
	for _, r := range m.reads {
		if strings.HasPrefix(r, "blob") {
			t.Errorf("an attestation that nobody asked for was fetched: %s", r)
		}
	}
}

var _ sign.Store = (*memory)(nil)
var _ sign.Writer = (*memory)(nil)
