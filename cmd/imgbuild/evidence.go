package main

import (
	"bytes"
	"cmp"
	"context"
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
)

var evidenceFlags = []cli.Flag{
	&cli.BoolFlag{Name: "sbom", Usage: "attach what the image is made of: an SPDX document"},
	&cli.BoolFlag{Name: "sbom-files", Usage: "the same with the digest of every file"},
	&cli.BoolFlag{Name: "provenance", Usage: "attach how the image came about: a SLSA predicate"},
	&cli.StringFlag{Name: "builder-id", Usage: "the `URI` of this builder in the provenance", DefaultText: "an unnamed one"},
	&cli.StringFlag{Name: "invocation-id", Usage: "the `NAME` of this run in the provenance"},
}

// attached is a document that refers to the image.
type attached struct {
	Type     string           `json:"type"`     // of its predicate
	Referrer diskimage.Digest `json:"referrer"` // the manifest that holds it
	Size     int64            `json:"size"`     // bytes of the document
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

// attachEvidence attaches the documents that were asked for to a packed image.
func attachEvidence(c *cli.Context, talk *ui.Talk, to oci.Repository, image *build.Image, packed *oci.Packed, begun time.Time) (out []attached, err error) {
	if !wantsEvidence(c) {
		return nil, nil
	}
	step := talk.Step("evidence")
	defer func() {
		took := step.End(err)
		image.Record.Steps = append(image.Record.Steps, build.StepTime{Step: "evidence", Seconds: took.Seconds()})
	}()
	workers := cmp.Or(c.Int("workers"), runtime.GOMAXPROCS(0))
	if c.Bool("sbom") || c.Bool("sbom-files") {
		step.Note("sbom")
		contents, err := image.Contents(c.Context, c.Bool("sbom-files"), workers)
		if err != nil {
			return nil, err
		}
		contents.Image.Disk, contents.Tool = packed.Index.DiskDigest, "imgpipe-"+c.App.Version
		document, err := evidence.SBOM(contents)
		if err != nil {
			return nil, err
		}
		one, err := attach(c.Context, to, packed, evidence.MediaTypeSPDX, "sbom.spdx.json", document)
		if err != nil {
			return nil, fmt.Errorf("attach the sbom: %w", err)
		}
		out = append(out, attached{evidence.TypeSPDX, one, int64(len(document))})
	}
	if c.Bool("provenance") {
		step.Note("provenance")
		predicate, err := provenance(c, image, packed, workers, begun)
		if err != nil {
			return nil, err
		}
		statement, err := evidence.Statement(packed.Config.Name, packed.Digest(), evidence.TypeProvenance, predicate)
		if err != nil {
			return nil, err
		}
		one, err := attach(c.Context, to, packed, evidence.MediaTypeStatement, "provenance.intoto.json", statement)
		if err != nil {
			return nil, fmt.Errorf("attach the provenance: %w", err)
		}
		out = append(out, attached{evidence.TypeProvenance, one, int64(len(predicate))})
	}
	return out, nil
}

// provenance adds to what the build knows of its origin what the command does.
func provenance(c *cli.Context, image *build.Image, packed *oci.Packed, workers int, begun time.Time) (json.RawMessage, error) {
	o, err := image.Origin(c.Context, workers)
	if err != nil {
		return nil, err
	}
	o.Recipe, o.Level = filepath.Base(c.Args().First()), packed.Config.Compressor.Level
	o.Compressor = packed.Config.Compressor.Name + " " + packed.Config.Compressor.Version
	o.Builder, o.Invocation = c.String("builder-id"), c.String("invocation-id")
	o.Versions["imgpipe"] = c.App.Version
	o.Started, o.Finished = begun, time.Now()
	return evidence.Provenance(o)
}

// attach stores a document as the one layer of a manifest whose subject is the
// image (image-spec 1.1, "Guidelines for Artifact Usage"). The same document on the
// same image is the same manifest.
func attach(ctx context.Context, to oci.Repository, packed *oci.Packed, mediaType types.MediaType, title string, document []byte) (diskimage.Digest, error) {
	empty, err := pushBytes(ctx, to, "application/vnd.oci.empty.v1+json", []byte("{}"))
	if err != nil {
		return diskimage.Digest{}, err
	}
	layer, err := pushBytes(ctx, to, mediaType, document)
	if err != nil {
		return diskimage.Digest{}, err
	}
	layer.Annotations = map[string]string{"org.opencontainers.image.title": title}
	subject := packed.Descriptor
	body, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: string(mediaType),
		Config: empty, Layers: []v1.Descriptor{layer},
		Subject:     &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations: map[string]string{"org.opencontainers.image.created": packed.Config.Epoch.UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return diskimage.Digest{}, err
	}
	_, err = to.PushManifest(ctx, "", types.OCIManifestSchema1, body)
	return diskimage.DigestOf(body), err
}

// pushBytes stores a small blob.
func pushBytes(ctx context.Context, to oci.Repository, mediaType types.MediaType, b []byte) (v1.Descriptor, error) {
	digest := diskimage.DigestOf(b)
	d := v1.Descriptor{MediaType: mediaType, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: digest.Hex()}}
	_, err := to.PushBlob(ctx, d, func(off int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b[off:])), nil
	}, oci.PushOptions{})
	return d, err
}
