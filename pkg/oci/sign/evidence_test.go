package sign_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// envelope signs a payload as DSSE says and returns the envelope.
func envelope(t *testing.T, p *pair, payloadType, payload string) string {
	t.Helper()
	sig, err := p.Sign(t.Context(), fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"payload":%q,"payloadType":%q,"signatures":[{"sig":%q}]}`, base64.StdEncoding.EncodeToString([]byte(payload)),
		payloadType, base64.StdEncoding.EncodeToString(sig))
}

func bundle(envelope string) string {
	return `{"mediaType":"` + sign.MediaTypeBundle + `","verificationMaterial":{"publicKey":{"hint":"x"}},"dsseEnvelope":` + envelope + `}`
}

func statement(d diskimage.Digest, typ string) string {
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"%s"}}],"predicateType":"%s","predicate":{}}`, d.Hex(), typ)
}

const inToto = "application/vnd.in-toto+json"

// refer stores a referrer of image with a bundle; change may change the manifest.
func refer(t *testing.T, m *memory, image diskimage.Digest, bundle string, change func(*v1.Manifest)) {
	t.Helper()
	layer := m.put([]byte(bundle))
	doc := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: sign.MediaTypeBundle,
		Config:  v1.Descriptor{Digest: hash(layer.String())},
		Layers:  []v1.Descriptor{{MediaType: sign.MediaTypeBundle, Digest: hash(layer.String()), Size: int64(len(bundle))}},
		Subject: &v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hash(image.String()), Size: 1}}
	if change != nil {
		change(&doc)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	m.listed = map[string][]string{image.String(): {m.manifest(b).String()}}
}

// TestBundles has bundles whose signature is right, each with one thing that is
// not as it must be, and some that only look odd.
func TestBundles(t *testing.T) {
	p := newPair(t, "release")
	m := newMemory()
	image, other := m.image(t, "1", epoch), m.image(t, "2", epoch)
	env := envelope(t, p, inToto, statement(image, sign.TypeSignature))
	two := strings.Replace(env, `"signatures":[`, `"signatures":[{"sig":"AAAA"},`, 1)
	good := bundle(env)
	hint := `{"publicKey":{"hint":"x"}}`
	replace := func(old, new string) string {
		t.Helper()
		s := strings.Replace(good, old, new, 1)
		if s == good {
			t.Fatalf("%s is not in %s", old, good)
		}
		return s
	}
	for _, c := range []struct{ name, bundle, want string }{
		{"good", good, ""},
		{"no hint", replace(hint, `{"publicKey":{}}`), ""},
		{"a log entry", replace(hint, `{"publicKey":{"hint":"x"},"tlogEntries":[{"logIndex":"1"}],"timestampVerificationData":{}}`), ""},
		{"a certificate", replace(hint, `{"certificate":{"rawBytes":"AAAA"}}`), ""},
		{"white space", replace(`,"dsse`, ", \n\t\"dsse"), ""},
		{"two subjects", bundle(envelope(t, p, inToto, strings.Replace(statement(image, sign.TypeSignature), `[{`, `[{"name":"x","digest":{"sha512":"00"}},{`, 1))), ""},

		{"no text", "", "not a JSON object"},
		{"another version", replace("v0.3", "v0.4"), "media type"},
		{"the older media type", replace("application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.sigstore.bundle+json;version=0.3"), "media type"},
		{"an unknown member", replace(`"dsse`, `"more":1,"dsse`), `"more" is not known`},
		{"a signed blob", replace(`"dsse`, `"messageSignature":{},"dsse`), "signs a blob"},
		{"a doubled envelope", replace(`"dsse`, `"dsseEnvelope":{},"dsse`), "stands twice"},
		{"the wrong case", replace(`"dsseEnvelope"`, `"DsseEnvelope"`), "is not known"},
		{"no material", replace(`"verificationMaterial":`+hint+`,`, ""), "verificationMaterial: missing"},
		{"no envelope", `{"mediaType":"` + sign.MediaTypeBundle + `","verificationMaterial":` + hint + `}`, "no envelope"},
		{"garbage behind", good + "x", "stands behind"},
		{"a second bundle behind", good + good, "stands behind"},
		{"two signatures", bundle(two), `"signatures" has more elements than 1`},
		{"no signature", replace(`"signatures":[{`, `"signatures":[],"x":[{`), `"signatures" is empty`},
		{"another payload type", bundle(envelope(t, p, "application/json", statement(image, sign.TypeSignature))), "payload type"},
		{"another image", bundle(envelope(t, p, inToto, statement(other, sign.TypeSignature))), "about another manifest"},
		{"an attestation", bundle(envelope(t, p, inToto, statement(image, spdx))), "no signature by a trusted key"},
		{"a payload that is no statement", bundle(envelope(t, p, inToto, "[]")), "signed by release (sha256:"},
		{"a statement with a tail", bundle(envelope(t, p, inToto, statement(image, sign.TypeSignature)+"{}")), "stands behind"},
		{"a doubled subject", bundle(envelope(t, p, inToto, strings.Replace(statement(image, sign.TypeSignature), `"subject"`, `"subject":[],"subject"`, 1))), "stands twice"},
		{"not signed as DSSE", bundle(strings.Replace(env, sigOf(t, env), plain(t, p, statement(image, sign.TypeSignature)), 1)), "signed by another key"},
	} {
		refer(t, m, image, c.bundle, nil)
		_, err := sign.TrustKeys(p.key).Verify(t.Context(), m, place, image)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		untrusted(t, c.name, err, c.want)
	}
}

func sigOf(t *testing.T, envelope string) string {
	t.Helper()
	_, s, ok := strings.Cut(envelope, `"sig":"`)
	if !ok {
		t.Fatal(envelope)
	}
	return strings.TrimSuffix(s, `"}]}`)
}

func plain(t *testing.T, p *pair, message string) string {
	t.Helper()
	sig, err := p.Sign(t.Context(), []byte(message))
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(sig)
}

// TestReferrers has right bundles in manifests that are not as they must be.
func TestReferrers(t *testing.T) {
	p := newPair(t, "release")
	m := newMemory()
	image := m.image(t, "1", epoch)
	good := bundle(envelope(t, p, inToto, statement(image, sign.TypeSignature)))
	annotated := func(s string) func(*v1.Manifest) {
		return func(m *v1.Manifest) { m.Annotations = map[string]string{"dev.sigstore.bundle.predicateType": s} }
	}
	for name, c := range map[string]struct {
		change func(*v1.Manifest)
		want   string
	}{
		"good":                     {nil, ""},
		"annotated":                {annotated(sign.TypeSignature), ""},
		"found by its layer":       {func(m *v1.Manifest) { m.ArtifactType = "" }, ""},
		"annotated as another":     {annotated(spdx), "0 bundles"},
		"about another":            {func(m *v1.Manifest) { m.Subject.Digest.Hex = strings.Repeat("0", 64) }, "refers to another manifest"},
		"about none":               {func(m *v1.Manifest) { m.Subject = nil }, "refers to another manifest"},
		"two layers":               {func(m *v1.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }, "2 layers, a bundle is one"},
		"another kind":             {func(m *v1.Manifest) { m.ArtifactType, m.Layers[0].MediaType = "x/y", "x/y" }, "0 bundles"},
		"a size beyond all bounds": {func(m *v1.Manifest) { m.Layers[0].Size = 1 << 40 }, "too large"},
		"a negative size":          {func(m *v1.Manifest) { m.Layers[0].Size = -1 }, "too large"},
		"a wrong size":             {func(m *v1.Manifest) { m.Layers[0].Size++ }, "does not match its SHA-256"},
		"a smaller size":           {func(m *v1.Manifest) { m.Layers[0].Size-- }, "does not match its SHA-256"},
		"larger than a signature":  {func(m *v1.Manifest) { m.Layers[0].Size = 256<<10 + 1 }, "too large"},
		"another hash":             {func(m *v1.Manifest) { m.Layers[0].Digest.Algorithm = "sha512" }, "sha512"},
	} {
		refer(t, m, image, good, c.change)
		_, err := sign.TrustKeys(p.key).Verify(t.Context(), m, place, image)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		untrusted(t, name, err, c.want)
	}
	m.listed = map[string][]string{image.String(): {m.put([]byte("no JSON")).String(), m.put(bytes.Repeat([]byte(" "), 2<<20)).String()}}
	_, err := sign.TrustKeys(p.key).Verify(t.Context(), m, place, image)
	untrusted(t, "no manifests", err, "manifest: invalid", "2097152 bytes")
}

// TestOlderSignatures has the older format, signed right, with one thing wrong.
func TestOlderSignatures(t *testing.T) {
	p := newPair(t, "release")
	m := newMemory()
	image, other := m.image(t, "1", epoch), m.image(t, "2", epoch)
	good := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"%v"},"type":"cosign container image signature"},"optional":null}`, image)
	for _, c := range []struct{ name, payload, want string }{
		{"good", good, ""},
		{"another image", strings.ReplaceAll(good, image.Hex(), other.Hex()), "signed by release (sha256:"},
		{"another type", strings.Replace(good, "cosign container", "atomic container", 1), "payload: type"},
		{"a doubled digest", strings.Replace(good, `"docker-manifest-digest"`, `"docker-manifest-digest":"","docker-manifest-digest"`, 1), "stands twice"},
		{"a tail", good + good, "stands behind"},
		{"too long", good + strings.Repeat(" ", 64<<10), "too large"},
		{"a statement", statement(image, sign.TypeSignature), "critical"},
	} {
		sig, err := p.Sign(t.Context(), []byte(c.payload))
		if err != nil {
			t.Fatal(err)
		}
		(&signedWorld{}).attachOlder(m, image, olderSignature{[]byte(c.payload), sig})
		_, err = sign.TrustKeys(p.key).Verify(t.Context(), m, place, image)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		untrusted(t, c.name, err, c.want)
	}
}

// TestStrangersDoNoHarm puts a signature behind many by others, and then behind
// too many.
func TestStrangersDoNoHarm(t *testing.T) {
	p, stranger := newPair(t, "release"), newEd25519(t, "stranger")
	m := newMemory()
	image := m.image(t, "1", epoch)
	var listed []string
	list := func(p *pair, text string) {
		refer(t, m, image, bundle(envelope(t, p, inToto, statement(image, sign.TypeSignature)+text)), nil)
		listed = append(listed, m.listed[image.String()]...)
	}
	for i := range 1023 {
		list(stranger, strings.Repeat(" ", i))
	}
	list(p, "")
	m.listed[image.String()] = listed
	if _, err := sign.TrustKeys(p.key).Verify(t.Context(), m, place, image); err != nil {
		t.Error(err)
	}
	m.listed[image.String()] = append([]string{listed[0]}, listed...)
	_, err := sign.TrustKeys(p.key).Verify(t.Context(), m, place, image)
	untrusted(t, "too many", err, "more than 1024 referrers", "and 1020 more")
}

// TestMemoryIsBounded has bundles of 8 MiB whose lists and objects have millions
// of members, and many bundles.
func TestMemoryIsBounded(t *testing.T) {
	p := newPair(t, "release")
	m := newMemory()
	image := m.image(t, "1", epoch)
	const size = 8 << 20
	var names strings.Builder
	for i := 0; names.Len() < size; i++ {
		fmt.Fprintf(&names, `"%d":0,`, i)
	}
	for name, text := range map[string]string{
		"signatures": bundle(`{"payload":"","payloadType":"` + inToto + `","signatures":[` + strings.Repeat("0,", size/2) + `0]}`),
		"members":    `{` + names.String() + `"mediaType":""}`,
		"envelope":   bundle(`{` + names.String() + `"payload":""}`),
		"nested":     bundle(strings.Repeat("[", size)),
	} {
		refer(t, m, image, text, nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := sign.TrustKeys(p.key).Verify(t.Context(), m, place, image)
		untrusted(t, name, err, "too large")
		if _, err = sign.Fetch(t.Context(), m, image); err != nil {
			t.Fatal(err)
		}
		e, err := sign.Fetch(t.Context(), m, image)
		if err != nil {
			t.Fatal(err)
		}
		if claims, rejected := e.Claims([]*sign.Key{p.key}); len(claims) > 0 || len(rejected) == 0 {
			t.Errorf("%s: got %v, %v", name, claims, rejected)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 25*size {
			t.Errorf("%s: %d MiB allocated for a bundle of %d", name, n>>20, size>>20)
		}
	}
	var listed []string
	for i := range 80 { // of 256 KiB each
		text := bundle(envelope(t, p, inToto, statement(image, spdx)))
		refer(t, m, image, text+strings.Repeat(" ", 256<<10-len(text)-i), nil)
		listed = append(listed, m.listed[image.String()]...)
	}
	m.listed[image.String()] = listed
	_, err := sign.TrustKeys(p.key).Verify(t.Context(), m, place, image)
	untrusted(t, "many", err, "too large", "64 bundles")
}
