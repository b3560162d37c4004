package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/trust"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "say whether an image is to be trusted, and by whose word",
		ArgsUsage: "REF",
		Description: `Trusted is what one of the keys signed, or what the policy says. It takes no network but
the registry's, no transparency log and no clock. What is not trusted is exit code 5,
and nothing that the signature would have covered was read.

An index of images for several platforms is verified as that; with --platform, the image
of that platform by itself. With --type, an attestation of that type by one of the keys
must be there, too; --predicate writes what it says.

  imgpush verify registry.example/os/debian-server:2026.11.1 --key cosign.pub
  imgpush verify oci:images:debian-server --policy /etc/imgpipe/trust.yaml
  imgpush verify oci:images:server --key ci.pub --type spdxjson --predicate sbom.json`,
		Flags: append(append(trust.Flags(),
			&cli.StringSliceFlag{Name: "type", Usage: "ask for an attestation of `TYPE`: spdxjson, slsaprovenance1, or a URI; may be repeated"},
			&cli.StringFlag{Name: "predicate", Usage: "write what the attestations of --type say to `FILE`, a JSON document a line; - is stdout"},
			refs.PlatformFlag), refs.Flags()...),
		Action: runVerify,
	}
}

// verifyResult is what `imgpush verify --json` prints.
type verifyResult struct {
	Image        string           `json:"image"`
	Digest       diskimage.Digest `json:"digest"`
	Rule         string           `json:"rule,omitempty"` // of the policy
	Signatures   []vouched        `json:"signatures"`
	Attestations []vouched        `json:"attestations,omitempty"`
}

// vouched is a signature or an attestation that counts.
type vouched struct {
	Key       string           `json:"key"`
	KeyID     diskimage.Digest `json:"keyID"` // SHA-256 of its PKIX DER form
	Type      string           `json:"type"`
	Format    sign.Format      `json:"format"`
	Manifest  diskimage.Digest `json:"manifest"` // that holds it
	Predicate json.RawMessage  `json:"predicate,omitempty"`
}

func vouchedBy(claims []sign.Claim) (out []vouched) {
	for _, c := range claims {
		out = append(out, vouched{c.Key.Name(), c.Key.ID(), c.Type, c.Format, c.Origin, c.Predicate})
	}
	return out
}

func runVerify(c *cli.Context) (err error) {
	if c.NArg() != 1 {
		return ui.Usagef(c, "verify needs one REF, got %d arguments", c.NArg())
	}
	types := c.StringSlice("type")
	for i, t := range types {
		if types[i], err = sign.PredicateType(t); err != nil {
			return ui.Fail(ui.ExitUsage, fmt.Errorf("--type: %w", err), "")
		}
	}
	predicate := c.String("predicate")
	if predicate != "" && len(types) == 0 {
		return ui.Usagef(c, "--predicate needs --type")
	}
	if predicate == "-" && c.Bool("json") {
		return ui.Usagef(c, "--predicate - and --json: stdout is for one of them; the JSON has the predicates")
	}
	t, err := trust.From(c)
	if err != nil {
		return err
	}
	if t == nil {
		return ui.Fail(ui.ExitUsage, errors.New("whom is it to be believed? neither --key nor --policy says"), "--key cosign.pub")
	}
	opener, ref, err := refs.Open(c, c.Args().First())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opener.Close()) }()
	repo, digest, err := opener.Root(c.Context, ref)
	if err != nil {
		return err
	}
	v, err := trust.Verify(c.Context, t, repo, ref, digest, types...)
	if err != nil {
		return err
	}
	if predicate != "" {
		if err := writePredicates(c.App.Writer, predicate, v, types); err != nil || predicate == "-" {
			return err
		}
	}
	result := verifyResult{Image: ref.String(), Digest: digest, Signatures: vouchedBy(v.Signatures), Attestations: vouchedBy(v.Attestations)}
	if c.String("policy") != "" {
		result.Rule = v.Rule.Match
	}
	return ui.From(c).Result(result, result.write)
}

func (r verifyResult) write(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%v is trusted", r.Image, r.Digest)
	if r.Rule != "" {
		fmt.Fprintf(w, " by rule %q", r.Rule)
	}
	fmt.Fprintln(w)
	for _, s := range r.Signatures {
		fmt.Fprintf(w, "signed    by %s (%v)\n", s.Key, s.KeyID)
	}
	for _, a := range r.Attestations {
		fmt.Fprintf(w, "attested  by %s (%v): %s\n", a.Key, a.KeyID, a.Type)
	}
	return nil
}

// writePredicates writes the different predicates of the asked types, each on a
// line of its own.
func writePredicates(stdout io.Writer, path string, v *sign.Verdict, types []string) error {
	var out bytes.Buffer
	seen := map[string]bool{}
	for _, t := range types {
		for _, a := range v.Attestations {
			if a.Type != t || seen[string(a.Predicate)] {
				continue
			}
			seen[string(a.Predicate)] = true
			if err := json.Compact(&out, a.Predicate); err != nil {
				return fmt.Errorf("predicate of type %s: %w", t, err)
			}
			out.WriteByte('\n')
		}
	}
	if path == "-" {
		_, err := stdout.Write(out.Bytes())
		return err
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("--predicate: %w", err)
	}
	return nil
}
