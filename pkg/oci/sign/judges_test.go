package sign_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

// judge finds a program in build/judges or PATH. It takes IMGPIPE_JUDGES, since
// cosign is slow to start.
func judge(t *testing.T, tool string) string {
	t.Helper()
	if os.Getenv("IMGPIPE_JUDGES") == "" {
		t.Skip("IMGPIPE_JUDGES is not set")
	}
	return ocitest.Tool(t, tool)
}

// cosign runs the real one, offline, with a home of its own.
type cosign struct {
	path, dir string
}

func newCosign(t *testing.T) *cosign {
	t.Helper()
	c := &cosign{judge(t, "cosign"), t.TempDir()}
	if out, err := c.run(t, "signing-config", "create", "--out", c.file("empty.json")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return c
}

func (c *cosign) file(name string) string { return filepath.Join(c.dir, name) }

func (c *cosign) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.path, args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "HOME="+c.dir, "COSIGN_PASSWORD=secret", "TUF_ROOT="+c.file("tuf"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// insecure are the flags for a registry on loopback that speaks plain HTTP.
var insecure = []string{"--allow-http-registry", "--allow-insecure-registry"}

func (c *cosign) sign(t *testing.T, key, image string, flags ...string) {
	t.Helper()
	args := append(append([]string{"sign", "--key", key, "-y"}, insecure...), flags...)
	if out, err := c.run(t, append(args, image)...); err != nil {
		t.Fatalf("cosign sign %s: %v\n%s", image, err, out)
	}
}

func (c *cosign) attest(t *testing.T, key, image, typ, predicate string, flags ...string) {
	t.Helper()
	args := append([]string{"attest", "--key", key, "-y", "--type", typ, "--predicate", predicate, "--use-signing-config=false", "--tlog-upload=false"}, insecure...)
	if out, err := c.run(t, append(append(args, flags...), image)...); err != nil {
		t.Fatalf("cosign attest %s: %v\n%s", image, err, out)
	}
}

func (c *cosign) verify(t *testing.T, key, image string, more ...string) (string, error) {
	t.Helper()
	command := "verify"
	if len(more) > 0 {
		command = "verify-attestation"
	}
	args := append([]string{command, "--key", key, "--insecure-ignore-tlog"}, insecure...)
	return c.run(t, append(append(args, more...), image)...)
}

// newerFlags and olderFlags make cosign sign offline, in its two formats.
func (c *cosign) newerFlags() []string { return []string{"--signing-config", c.file("empty.json")} }

var olderFlags = []string{"--new-bundle-format=false", "--use-signing-config=false", "--tlog-upload=false"}

// places are the registries that are judged with: ours, which has the referrers
// API, and distribution's, which has not.
func places(t *testing.T) map[string]string {
	t.Helper()
	reg, err := registry.New(t.TempDir(), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(reg)
	t.Cleanup(func() { srv.Close(); reg.Close() })
	out := map[string]string{"ours": strings.TrimPrefix(srv.URL, "http://")}
	out["distribution"] = ocitest.Distribution(t)
	return out
}

// pushed is a repository with an index of two images.
type pushed struct {
	repo          *remote.Repo
	name          string
	image, index  diskimage.Digest
	indexed, only string // references by digest
}

func push(t *testing.T, host, name string) *pushed {
	t.Helper()
	repo, err := remote.New(remote.Options{}).Repo(host, name)
	if err != nil {
		t.Fatal(err)
	}
	m := newMemory()
	one, two := m.image(t, "1", epoch), m.image(t, "2", epoch)
	index := m.index(t, one, two)
	for d, b := range m.blobs {
		desc := v1.Descriptor{Digest: hash(d), Size: int64(len(b))}
		open := func(off int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b[off:])), nil }
		if _, err := repo.PushBlob(t.Context(), desc, open, oci.PushOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []diskimage.Digest{one, two, index} {
		kind := types.OCIManifestSchema1
		if d == index {
			kind = types.OCIImageIndex
		}
		if _, err := repo.PushManifest(t.Context(), "", kind, m.blobs[d.String()]); err != nil {
			t.Fatal(err)
		}
	}
	at := host + "/" + name + "@"
	return &pushed{repo, host + "/" + name, one, index, at + index.String(), at + one.String()}
}

// pairOfCosign is a key pair that cosign made, opened by us.
func (c *cosign) pair(t *testing.T, name string) (s *signer.Signer, key, pub string) {
	t.Helper()
	if out, err := c.run(t, "generate-key-pair", "--output-key-prefix", name); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return c.open(t, name), c.file(name + ".key"), c.file(name + ".pub")
}

func (c *cosign) open(t *testing.T, name string) *signer.Signer {
	t.Helper()
	s, err := signer.Load(t.Context(), c.file(name+".key"), signer.Options{Password: func() ([]byte, error) { return []byte("secret"), nil }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestJudgesVerifyOurs has cosign judge signatures and attestations of an
// index and of an image in it, in both registries.
func TestJudgesVerifyOurs(t *testing.T) {
	c := newCosign(t)
	s, _, pub := c.pair(t, "release")
	_, _, wrong := c.pair(t, "wrong")
	for where, host := range places(t) {
		p := push(t, host, "acme/server")
		if out, err := c.verify(t, pub, p.indexed); err == nil {
			t.Errorf("%s: cosign accepts what nobody signed:\n%s", where, out)
		}
		if _, err := sign.Sign(t.Context(), p.repo, p.index, s, sign.Options{Created: time.Unix(1e9, 0)}); err != nil {
			t.Fatal(err)
		}
		for typ, predicate := range map[string]string{"spdxjson": sbom, "slsaprovenance1": `{"buildDefinition":{"buildType":"https://x.example/y","externalParameters":{}},"runDetails":{"builder":{"id":"https://b.example"}}}`, "https://example.com/x/v1": `{"a":1}`} {
			for _, d := range []diskimage.Digest{p.index, p.image} {
				if _, err := sign.Attest(t.Context(), p.repo, d, typ, json.RawMessage(predicate), s, sign.Options{}); err != nil {
					t.Fatal(err)
				}
			}
			for _, image := range []string{p.indexed, p.only} {
				out, err := c.verify(t, pub, image, "--type", typ)
				if err != nil {
					t.Errorf("%s: cosign verify-attestation --type %s %s: %v\n%s", where, typ, image, err, out)
				}
				if _, err := c.verify(t, wrong, image, "--type", typ); err == nil {
					t.Errorf("%s: cosign accepts an attestation by another key", where)
				}
			}
		}
		for _, image := range []string{p.indexed, p.only} {
			if out, err := c.verify(t, pub, image); err != nil {
				t.Errorf("%s: cosign verify %s: %v\n%s", where, image, err, out)
			} else {
				t.Logf("%s: cosign verify %s\n%s", where, image, out)
			}
			if out, err := c.verify(t, wrong, image); err == nil {
				t.Errorf("%s: cosign accepts another key:\n%s", where, out)
			}
		}
	}
}

// TestJudgesVerifyEveryKindOfKey signs with each kind of key that is taken.
func TestJudgesVerifyEveryKindOfKey(t *testing.T) {
	c := newCosign(t)
	host := places(t)["ours"]
	text, _, err := signer.Generate([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"generated": text}
	for name, args := range map[string][]string{
		"p384": {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}, "p521": {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"},
		"ed25519": {"-algorithm", "ed25519"}, "rsa3072": {"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"}} {
		openssl, err := exec.LookPath("openssl")
		if err != nil {
			t.Skip("openssl is not installed")
		}
		if files[name], err = exec.Command(openssl, append([]string{"genpkey"}, args...)...).Output(); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(c.file(name+".key"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		s := c.open(t, name)
		pub := c.file(name + ".pub")
		if err := os.WriteFile(pub, s.Key().PEM(), 0o644); err != nil {
			t.Fatal(err)
		}
		p := push(t, host, "acme/"+name)
		if _, err := sign.Sign(t.Context(), p.repo, p.index, s, sign.Options{}); err != nil {
			t.Fatal(err)
		}
		if out, err := c.verify(t, pub, p.indexed); err != nil {
			t.Errorf("%s: cosign verify: %v\n%s", name, err, out)
		}
	}
}

// TestWeVerifyTheJudges has cosign sign and attest in both of its formats, in both
// registries, also beside our own signatures by the same tag scheme.
func TestWeVerifyTheJudges(t *testing.T) {
	c := newCosign(t)
	s, key, pub := c.pair(t, "release")
	if err := os.WriteFile(c.file("sbom.json"), []byte(sbom), 0o644); err != nil {
		t.Fatal(err)
	}
	trust, stranger := sign.TrustKeys(s.Key()), newPair(t, "stranger")
	for where, host := range places(t) {
		for format, flags := range map[sign.Format][]string{sign.FormatBundle: c.newerFlags(), sign.FormatSimple: olderFlags} {
			p := push(t, host, "acme/"+string(format))
			mustSign(t, p.repo, p.index, stranger)
			_, err := trust.Verify(t.Context(), p.repo, p.name, p.index)
			untrusted(t, where+", signed by a stranger", err)
			c.sign(t, key, p.indexed, flags...)
			v, err := trust.Verify(t.Context(), p.repo, p.name, p.index)
			if err != nil || v.Signatures[0].Format != format {
				t.Errorf("%s: %s: got %+v, %v", where, format, v, err)
			}
			_, err = trust.Verify(t.Context(), p.repo, p.name, p.image)
			untrusted(t, where+", an image whose index alone is signed", err)
			if _, err := sign.TrustKeys(stranger.key).Verify(t.Context(), p.repo, p.name, p.index); err != nil {
				t.Errorf("%s: cosign lost our signature: %v", where, err)
			}
			attestFlags := []string{}
			if format == sign.FormatSimple {
				attestFlags = append(attestFlags, "--new-bundle-format=false")
			}
			c.attest(t, key, p.indexed, "spdxjson", c.file("sbom.json"), attestFlags...)
			v, err = trust.Verify(t.Context(), p.repo, p.name, p.index, spdx)
			if err != nil || !strings.Contains(string(v.Attestations[0].Predicate), "SPDX-2.3") {
				t.Errorf("%s: %s: attestation: got %+v, %v", where, format, v, err)
			}
			if out, err := c.verify(t, pub, p.indexed); err != nil && format == sign.FormatBundle {
				t.Errorf("%s: cosign verify: %v\n%s", where, err, out)
			}
		}
	}
}
