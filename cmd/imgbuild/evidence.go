package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/build"
	"github.com/imgpipe/imgpipe/pkg/diskimage/evidence"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

var evidenceFlags = []cli.Flag{
	&cli.BoolFlag{Name: "sbom", Usage: "attach what the image is made of: an SPDX document"},
	&cli.BoolFlag{Name: "sbom-files", Usage: "the same with the digest of every file"},
	&cli.BoolFlag{Name: "provenance", Usage: "attach how the image came about: a SLSA predicate"},
	&cli.StringFlag{Name: "builder-id", Usage: "the `URI` of this builder in the provenance", DefaultText: "an unnamed one"},
	&cli.StringFlag{Name: "invocation-id", Usage: "the `NAME` of this run in the provenance"},
	&cli.StringFlag{Name: "key", Usage: "sign the image and its evidence by `KEY`, as imgbuild sign does"},
}

// attached is a document that refers to the image.
type attached struct {
	Type     string           `json:"type"`     // of its predicate
	Referrer diskimage.Digest `json:"referrer"` // the manifest that holds it
	Size     int64            `json:"size"`     // bytes of the predicate; 0 of a signature
	Signed   bool             `json:"signed"`
}

// wantsEvidence reports whether any document was asked for.
func wantsEvidence(c *cli.Context) bool {
	return c.Bool("sbom") || c.Bool("sbom-files") || c.Bool("provenance")
}

// checkEvidence says what is wrong with the flags, before minutes are spent.
func checkEvidence(c *cli.Context) error {
	for _, name := range []string{"builder-id", "invocation-id"} {
		if c.IsSet(name) && !c.Bool("provenance") {
			return ui.Usagef(c, "--%s is for --provenance", name)
		}
	}
	if id := c.String("builder-id"); c.IsSet("builder-id") {
		if err := evidence.CheckBuilder(id); err != nil {
			return ui.Usagef(c, "--builder-id: %v", err)
		}
	}
	return nil
}

// evidenceStep attaches what was asked for to an image that was just packed.
type evidenceStep struct {
	c      *cli.Context
	to     oci.Repository
	image  *build.Image
	packed *oci.Packed
	signer *signer.Signer // nil: unsigned
	begun  time.Time
}

// run signs the image, where there is a key, and attaches the documents.
func (e *evidenceStep) run(talk *ui.Talk) (out []attached, err error) {
	if !wantsEvidence(e.c) && e.signer == nil {
		return nil, nil
	}
	step := talk.Step("evidence")
	defer func() {
		took := step.End(err)
		e.image.Record.Steps = append(e.image.Record.Steps, build.StepTime{Step: "evidence", Seconds: took.Seconds()})
	}()
	for _, part := range []struct {
		name   string
		wanted bool
		attach func() (attached, error)
	}{
		{"sbom", e.c.Bool("sbom") || e.c.Bool("sbom-files"), e.sbom},
		{"provenance", e.c.Bool("provenance"), e.provenance},
		{"signature", e.signer != nil, e.sign}, // last: it covers an image whose evidence is there
	} {
		if !part.wanted {
			continue
		}
		step.Note(part.name)
		one, err := part.attach()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
		out = append(out, one)
	}
	return out, nil
}

func (e *evidenceStep) workers() int { return cmp.Or(e.c.Int("workers"), runtime.GOMAXPROCS(0)) }

func (e *evidenceStep) sbom() (attached, error) {
	contents, err := e.image.Contents(e.c.Context, e.c.Bool("sbom-files"), e.workers())
	if err != nil {
		return attached{}, err
	}
	contents.Image.Disk, contents.Tool = e.packed.Index.DiskDigest, "imgpipe-"+e.c.App.Version
	document, err := evidence.SBOM(contents)
	if err != nil {
		return attached{}, err
	}
	if e.signer != nil {
		return e.attest(evidence.TypeSPDX, document)
	}
	return e.attach(evidence.TypeSPDX, evidence.MediaTypeSPDX, "sbom.spdx.json", document)
}

func (e *evidenceStep) provenance() (attached, error) {
	predicate, err := e.predicate()
	if err != nil {
		return attached{}, err
	}
	if referrer, err := e.known(predicate); err != nil || !referrer.IsZero() {
		return attached{evidence.TypeProvenance, referrer, int64(len(predicate)), e.signer != nil}, err
	}
	if e.signer != nil {
		return e.attest(evidence.TypeProvenance, predicate)
	}
	statement, err := evidence.Statement(e.packed.Config.Name, e.packed.Digest(), evidence.TypeProvenance, predicate)
	if err != nil {
		return attached{}, err
	}
	return e.attach(evidence.TypeProvenance, evidence.MediaTypeStatement, "provenance.intoto.json", statement)
}

// predicate adds to what the build knows of its origin what the command does.
func (e *evidenceStep) predicate() ([]byte, error) {
	o, err := e.image.Origin(e.c.Context, e.workers())
	if err != nil {
		return nil, err
	}
	compressor := e.packed.Config.Compressor
	o.Recipe, o.Level, o.Compressor = filepath.Base(e.c.Args().First()), compressor.Level, compressor.Name+" "+compressor.Version
	o.Builder, o.Invocation = e.c.String("builder-id"), e.c.String("invocation-id")
	o.Versions["imgpipe"] = e.c.App.Version
	o.Started, o.Finished = e.begun, time.Now()
	return evidence.Provenance(o)
}

// known returns the referrer that says already what a provenance would, but for
// the times: an image that is built again and again does not gather them.
func (e *evidenceStep) known(predicate []byte) (diskimage.Digest, error) {
	if e.signer != nil {
		found, err := sign.Fetch(e.c.Context, e.to, e.packed.Digest(), evidence.TypeProvenance)
		if err != nil {
			return diskimage.Digest{}, err
		}
		claims, _ := found.Claims([]*sign.Key{e.signer.Key()})
		for _, claim := range claims {
			if claim.Type == evidence.TypeProvenance && claim.Format == sign.FormatBundle && evidence.SameRun(claim.Predicate, predicate) {
				return claim.Origin, nil
			}
		}
		return diskimage.Digest{}, nil
	}
	referrers, err := e.to.Referrers(e.c.Context, e.packed.Digest())
	if err != nil {
		return diskimage.Digest{}, err
	}
	for _, r := range referrers {
		if r.ArtifactType == evidence.MediaTypeStatement && evidence.SameRun(e.statement(r), predicate) {
			return diskimage.ParseDigest(r.Digest.String())
		}
	}
	return diskimage.Digest{}, nil
}

// maxStatement bounds an unsigned statement that is looked at, in bytes.
const maxStatement = 16 << 20

// statement reads the predicate of an unsigned statement, nil if that cannot be
// done: then another is added.
func (e *evidenceStep) statement(referrer v1.Descriptor) []byte {
	b, _, err := e.to.Manifest(e.c.Context, referrer.Digest.String())
	if err != nil {
		return nil
	}
	var m v1.Manifest
	if json.Unmarshal(b, &m) != nil || len(m.Layers) != 1 || m.Layers[0].Size > maxStatement {
		return nil
	}
	r, err := e.to.Blob(e.c.Context, m.Layers[0], 0, m.Layers[0].Size)
	if err != nil {
		return nil
	}
	defer r.Close()
	if b, err = io.ReadAll(r); err != nil {
		return nil
	}
	var s struct{ Predicate json.RawMessage }
	if json.Unmarshal(b, &s) != nil {
		return nil
	}
	return s.Predicate
}

// attest stores a signed statement.
func (e *evidenceStep) attest(predicateType string, predicate []byte) (attached, error) {
	s, err := sign.Attest(e.c.Context, e.to, e.packed.Digest(), predicateType, predicate, e.signer, sign.Options{Created: time.Now()})
	return attached{predicateType, s.Referrer, int64(len(predicate)), true}, err
}

// sign signs the image itself.
func (e *evidenceStep) sign() (attached, error) {
	s, err := sign.Sign(e.c.Context, e.to, e.packed.Digest(), e.signer, sign.Options{Created: time.Now()})
	if err != nil {
		return attached{}, err
	}
	return attached{sign.TypeSignature, s[0].Referrer, 0, true}, nil
}

// attach stores a document as the one layer of a manifest whose subject is the
// image (image-spec 1.1, "Guidelines for Artifact Usage"). The same document on the
// same image is the same manifest.
func (e *evidenceStep) attach(predicateType string, mediaType types.MediaType, title string, document []byte) (attached, error) {
	empty, err := e.push("application/vnd.oci.empty.v1+json", []byte("{}"))
	if err != nil {
		return attached{}, err
	}
	layer, err := e.push(mediaType, document)
	if err != nil {
		return attached{}, err
	}
	layer.Annotations = map[string]string{"org.opencontainers.image.title": title}
	subject := e.packed.Descriptor
	body, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: string(mediaType),
		Config: empty, Layers: []v1.Descriptor{layer},
		Subject:     &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations: map[string]string{"org.opencontainers.image.created": e.packed.Config.Epoch.UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return attached{}, err
	}
	_, err = e.to.PushManifest(e.c.Context, "", types.OCIManifestSchema1, body)
	return attached{predicateType, diskimage.DigestOf(body), layer.Size, false}, err
}

// push stores a small blob.
func (e *evidenceStep) push(mediaType types.MediaType, b []byte) (v1.Descriptor, error) {
	d := v1.Descriptor{MediaType: mediaType, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: diskimage.DigestOf(b).Hex()}}
	_, err := e.to.PushBlob(e.c.Context, d, func(off int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b[off:])), nil
	}, oci.PushOptions{})
	return d, err
}
