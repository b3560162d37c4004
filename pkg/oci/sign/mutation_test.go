package sign_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// mutations is how many are tried in each run; IMGPIPE_MUTATIONS says more.
const mutations = 8000

// TestMutations changes a signed image at random, as a hostile registry could:
// its manifest, the referrer's manifest and the bundle or the older signature,
// with digests of the store made to fit, so that nothing but the signature can
// tell. An acceptance is right only if it is of the digest that was signed, and
// the claim's payload is byte for byte what was signed about it; then the
// mutation changed nothing that anybody vouched for.
func TestMutations(t *testing.T) {
	n := mutations
	if s := os.Getenv("IMGPIPE_MUTATIONS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []string{"manifest", "referrer", "bundle", "payload", "simple"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newSignedWorld(t)
			r := rand.New(rand.NewPCG(1, uint64(len(kind))))
			accepted := 0
			for i := range n / 5 {
				if w.try(t, r, kind, i) {
					accepted++
				}
			}
			t.Logf("%d mutations of the %s, %d changed nothing that was signed", n/5, kind, accepted)
		})
	}
}

// signedWorld is what an attacker can see: two images, signed by the trusted
// key and by a stranger's, and attestations.
type signedWorld struct {
	store   *memory
	trust   *sign.Trust
	image   diskimage.Digest
	bundles [][]byte // of the image by the trusted key, then all others
	older   []olderSignature
	refs    [][]byte // manifests of referrers
	stated  map[string]diskimage.Digest
}

type olderSignature struct{ payload, sig []byte }

func newSignedWorld(t *testing.T) *signedWorld {
	t.Helper()
	m, key, stranger := newMemory(), newPair(t, "trusted"), newPair(t, "stranger")
	image, other := m.image(t, "2", epoch), m.image(t, "1", epoch)
	w := &signedWorld{store: m, trust: sign.TrustKeys(key.key), image: image, stated: map[string]diskimage.Digest{}}
	add := func(s sign.Signed, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		ref := m.blobs[s.Referrer.String()]
		b := m.blobs[layerOf(t, ref).String()]
		w.refs, w.bundles = append(w.refs, ref), append(w.bundles, b)
		if s.Type == sign.TypeSignature { // an attestation is no signature
			w.stated[string(payloadOf(t, b))] = s.Subject
		}
	}
	for _, d := range []diskimage.Digest{image, other} {
		for _, p := range []*pair{key, stranger} {
			add(mustSign(t, m, d, p)[0], nil)
		}
		add(sign.Attest(t.Context(), m, d, "spdxjson", json.RawMessage(sbom), key, sign.Options{}))
	}
	for _, d := range []diskimage.Digest{image, other} {
		for _, p := range []*pair{key, stranger} {
			payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":"%v"},"type":"cosign container image signature"},"optional":null}`, d)
			sig, err := p.Sign(t.Context(), payload)
			if err != nil {
				t.Fatal(err)
			}
			w.older = append(w.older, olderSignature{payload, sig})
			w.stated[string(payload)] = d
		}
	}
	return w
}

func layerOf(t *testing.T, manifest []byte) v1.Hash {
	t.Helper()
	var m v1.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	return m.Layers[0].Digest
}

func payloadOf(t *testing.T, bundle []byte) []byte {
	t.Helper()
	var b struct {
		Envelope struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	return b.Envelope.Payload
}

// try makes one mutation and judges what Verify says. It reports an acceptance.
func (w *signedWorld) try(t *testing.T, r *rand.Rand, kind string, i int) bool {
	t.Helper()
	m := newMemory()
	image := w.image
	m.manifest(w.store.blobs[image.String()])
	switch kind {
	case "manifest": // the signature stands beside other bytes
		image = m.manifest(mutate(r, w.store.blobs[image.String()], w.store.blobs[w.store.order[1]]))
		w.attach(m, image, w.bundles[0])
	case "referrer":
		m.put(w.bundles[0])
		for _, b := range w.bundles {
			m.put(b)
		}
		m.put([]byte("{}"))
		d := m.manifest(mutate(r, w.refs[0], pick(r, w.refs)))
		w.list(m, image, d)
	case "bundle":
		w.attach(m, image, mutate(r, w.bundles[0], pick(r, w.bundles)))
	case "payload":
		w.attach(m, image, w.mutatePayload(t, r))
	case "simple":
		a, b := w.older[0], w.older[r.IntN(len(w.older))]
		switch r.IntN(4) {
		case 0:
			a = b
		case 1:
			a.payload = mutate(r, a.payload, b.payload)
		case 2:
			a.sig = mutate(r, a.sig, b.sig)
		case 3:
			a.payload, a.sig = b.payload, mutate(r, b.sig, a.sig)
		}
		w.attachOlder(m, image, a)
	}
	v, err := w.trust.Verify(t.Context(), m, place, image)
	if err != nil {
		if !errors.Is(err, sign.ErrUntrusted) {
			t.Fatalf("mutation %d: got %v, want not trusted", i, err)
		}
		return false
	}
	for _, c := range v.Signatures {
		if about, ok := w.stated[string(c.Payload)]; v.Digest != w.image || !ok || about != w.image {
			t.Fatalf("mutation %d: accepted for %v: %s", i, v.Digest, c.Payload)
		}
	}
	return true
}

// attach lists a bundle as a referrer of the image, with fitting digests.
func (w *signedWorld) attach(m *memory, image diskimage.Digest, bundle []byte) {
	d := m.put(bundle)
	ref := bytes.ReplaceAll(w.refs[0], []byte(layerDigest(w.refs[0])), []byte(d.Hex()))
	ref = bytes.ReplaceAll(ref, fmt.Appendf(nil, `"size":%d`, len(w.bundles[0])), fmt.Appendf(nil, `"size":%d`, len(bundle)))
	ref = bytes.ReplaceAll(ref, []byte(w.image.Hex()), []byte(image.Hex()))
	ref = bytes.ReplaceAll(ref, []byte("dev.sigstore.bundle.predicateType"), []byte("nothing"))
	w.list(m, image, m.manifest(ref))
}

func layerDigest(manifest []byte) string {
	var m v1.Manifest
	_ = json.Unmarshal(manifest, &m) // it is one of ours
	return m.Layers[0].Digest.Hex
}

// list makes d a referrer of the image, whatever it says.
func (w *signedWorld) list(m *memory, image, d diskimage.Digest) {
	m.listed = map[string][]string{image.String(): {d.String()}}
}

func (w *signedWorld) attachOlder(m *memory, image diskimage.Digest, s olderSignature) {
	d := m.put(s.payload)
	b := m.put(fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","size":%d,"digest":"%v","annotations":{"dev.cosignproject.cosign/signature":"%s"}}]}`,
		len(s.payload), d, base64.StdEncoding.EncodeToString(s.sig)))
	m.tags["sha256-"+image.Hex()+".sig"] = b.String()
}

// mutatePayload changes what the envelope holds: payload or signature, decoded
// and encoded again.
func (w *signedWorld) mutatePayload(t *testing.T, r *rand.Rand) []byte {
	t.Helper()
	a, b := decodeEnvelope(t, w.bundles[0]), decodeEnvelope(t, pick(r, w.bundles))
	switch r.IntN(4) {
	case 0, 1:
		a.payload = mutate(r, a.payload, b.payload)
	case 2:
		a.sig = mutate(r, a.sig, b.sig)
	case 3:
		a.payload, a.sig = mutate(r, a.payload, b.payload), b.sig
	}
	out := bytes.Replace(w.bundles[0], a.was[0], []byte(base64.StdEncoding.EncodeToString(a.payload)), 1)
	return bytes.Replace(out, a.was[1], []byte(base64.StdEncoding.EncodeToString(a.sig)), 1)
}

type decoded struct {
	payload, sig []byte
	was          [2][]byte // their base64
}

func decodeEnvelope(t *testing.T, bundle []byte) decoded {
	t.Helper()
	var b struct {
		Envelope struct {
			Payload    []byte              `json:"payload"`
			Signatures []map[string][]byte `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	d := decoded{payload: b.Envelope.Payload, sig: b.Envelope.Signatures[0]["sig"]}
	d.was = [2][]byte{[]byte(base64.StdEncoding.EncodeToString(d.payload)), []byte(base64.StdEncoding.EncodeToString(d.sig))}
	return d
}

func pick(r *rand.Rand, from [][]byte) []byte { return from[r.IntN(len(from))] }

// mutate changes b in one of many ways; donor is another document of its kind.
func mutate(r *rand.Rand, b, donor []byte) []byte {
	b = bytes.Clone(b)
	at := r.IntN(len(b))
	switch r.IntN(12) {
	case 0, 1, 2:
		b[at] ^= 1 << r.IntN(8)
	case 3:
		b[at] = byte(r.IntN(256))
	case 4:
		return b[:at]
	case 5:
		return append(b, donor[r.IntN(len(donor)):]...)
	case 6: // cut from here, go on in the donor
		return append(b[:at], donor[r.IntN(len(donor)):]...)
	case 7:
		end := at + r.IntN(min(16, len(b)-at)+1)
		return append(b[:at], b[end:]...)
	case 8:
		piece := donor[r.IntN(len(donor)):]
		piece = piece[:r.IntN(min(32, len(piece))+1)]
		return append(b[:at:at], append(bytes.Clone(piece), b[at:]...)...)
	case 9:
		return donor
	default:
		return mutateJSON(r, b, donor)
	}
	return b
}
