package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
	_ "github.com/imgpipe/imgpipe/pkg/oci/sign/kms"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

// keyFlag names the private key.
var keyFlag = &cli.StringFlag{Name: "key",
	Usage: "sign by `KEY`: a PEM file, or awskms://…, azurekms://…, gcpkms://…, hashivault://…"}

func signCommand() *cli.Command {
	return &cli.Command{
		Name:      "sign",
		Usage:     "sign an image, for imgpush verify and cosign verify",
		ArgsUsage: "REF",
		Description: `The signature is of the manifest's digest, and is stored beside the image the way cosign
does it. Of an index of images for several platforms, each image is signed, then the
index. What the same key has signed already stays as it is.

Keys are cosign's (cosign generate-key-pair, imgbuild keygen), any PEM file of an ECDSA,
Ed25519 or RSA key, or lie in a KMS. The password of an encrypted file comes from
IMGPIPE_KEY_PASSWORD, else COSIGN_PASSWORD, else the terminal.

  imgbuild sign oci:images:debian-server --key cosign.key
  imgbuild sign registry.example/os/debian-server:2026.11.1 --key awskms:///alias/images`,
		Flags:  append([]cli.Flag{keyFlag, refs.PlatformFlag}, refs.Flags()...),
		Action: runSign,
	}
}

func attestCommand() *cli.Command {
	return &cli.Command{
		Name:      "attest",
		Usage:     "sign a statement about an image: an SBOM, provenance, what you like",
		ArgsUsage: "REF",
		Description: `The statement is stored beside the image as an in-toto attestation, the way cosign does
it: imgpush verify --type and cosign verify-attestation find it. It does not say that the
image is to be trusted; sign does.

  imgbuild attest oci:images:server --key ci.key --type spdxjson --predicate sbom.json
  imgbuild attest oci:images:server --key ci.key --type https://a.example/t --predicate -`,
		Flags: append([]cli.Flag{keyFlag,
			&cli.StringFlag{Name: "type", Usage: "what the predicate is, `TYPE`: spdxjson, slsaprovenance1, cyclonedx, …, or a URI"},
			&cli.StringFlag{Name: "predicate", Usage: "the statement, a JSON object in `FILE`; - is stdin"},
			refs.PlatformFlag}, refs.Flags()...),
		Action: runAttest,
	}
}

// signResult is what `imgbuild sign --json` and `imgbuild attest --json` print.
type signResult struct {
	Image  string           `json:"image"`
	Key    string           `json:"key"`
	KeyID  diskimage.Digest `json:"keyID"` // SHA-256 of its PKIX DER form
	Signed []sign.Signed    `json:"signed"`
}

func runSign(c *cli.Context) error {
	if c.NArg() != 1 {
		return ui.Usagef(c, "sign needs one REF, got %d arguments", c.NArg())
	}
	if c.String("key") == "" {
		return ui.Usagef(c, "sign needs --key")
	}
	return stating(c, func(repo oci.Repository, digest diskimage.Digest, s *signer.Signer) ([]sign.Signed, error) {
		return sign.Sign(c.Context, repo, digest, s, sign.Options{Created: time.Now()})
	})
}

func runAttest(c *cli.Context) error {
	if c.NArg() != 1 {
		return ui.Usagef(c, "attest needs one REF, got %d arguments", c.NArg())
	}
	for _, name := range []string{"key", "type", "predicate"} {
		if c.String(name) == "" {
			return ui.Usagef(c, "attest needs --%s", name)
		}
	}
	if _, err := sign.PredicateType(c.String("type")); err != nil {
		return ui.Fail(ui.ExitUsage, fmt.Errorf("--type: %w", err), "")
	}
	predicate, err := readPredicate(c)
	if err != nil {
		return ui.Fail(ui.ExitUsage, fmt.Errorf("--predicate: %w", err), "")
	}
	return stating(c, func(repo oci.Repository, digest diskimage.Digest, s *signer.Signer) ([]sign.Signed, error) {
		one, err := sign.Attest(c.Context, repo, digest, c.String("type"), predicate, s, sign.Options{Created: time.Now()})
		return []sign.Signed{one}, err
	})
}

func readPredicate(c *cli.Context) ([]byte, error) {
	in := c.App.Reader
	if path := c.String("predicate"); path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	} else if c.Bool("password-stdin") {
		return nil, errors.New("stdin is asked for a password already")
	}
	b, err := io.ReadAll(io.LimitReader(in, sign.MaxBundle+1))
	if err == nil && len(b) > sign.MaxBundle {
		err = fmt.Errorf("more than %d bytes", sign.MaxBundle)
	}
	if err == nil {
		if err = json.Unmarshal(b, new(map[string]json.RawMessage)); err != nil {
			err = fmt.Errorf("not a JSON object: %w", err)
		}
	}
	return b, err
}

// stating opens the key and the image, lets do sign, and prints what it did.
func stating(c *cli.Context, do func(oci.Repository, diskimage.Digest, *signer.Signer) ([]sign.Signed, error)) (err error) {
	opener, ref, err := refs.Open(c, c.Args().First())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opener.Close()) }()
	repo, digest, err := opener.Root(c.Context, ref)
	if err != nil {
		return err
	}
	s, err := loadKey(c)
	if err != nil {
		return err
	}
	signed, err := do(repo, digest, s)
	if err != nil {
		return refs.Fail(fmt.Errorf("%v: %w", ref, err))
	}
	result := signResult{Image: ref.String(), Key: s.Key().Name(), KeyID: s.Key().ID(), Signed: signed}
	return ui.From(c).Result(result, result.write)
}

func (r signResult) write(w io.Writer) error {
	for _, s := range r.Signed {
		already := ""
		if s.Already {
			already = " already"
		}
		what := "signed"
		if s.Type != sign.TypeSignature {
			what = "attested (" + s.Type + ")"
		}
		if _, err := fmt.Fprintf(w, "%v %s%s by %s: %v\n", s.Subject, what, already, r.Key, s.Referrer); err != nil {
			return err
		}
	}
	return nil
}

// Environment variables that may hold the password of a key file.
var passwordVariables = []string{"IMGPIPE_KEY_PASSWORD", "COSIGN_PASSWORD"}

func loadKey(c *cli.Context) (*signer.Signer, error) {
	s, err := signer.Load(c.Context, c.String("key"), signer.Options{Password: func() ([]byte, error) { return password(c, false) }})
	if errors.Is(err, ui.ErrNobody) {
		return nil, ui.Fail(ui.ExitUsage, err, "put the password into IMGPIPE_KEY_PASSWORD")
	}
	if err != nil && c.Context.Err() == nil {
		return nil, ui.Fail(ui.ExitUsage, err, "")
	}
	return s, err
}

// password is that of a key file; a new one is asked for twice.
func password(c *cli.Context, isNew bool) ([]byte, error) {
	for _, name := range passwordVariables {
		if s, ok := os.LookupEnv(name); ok {
			return []byte(s), nil
		}
	}
	talk := ui.From(c)
	first, err := talk.AskSecret(c.Context, c, "password of the key")
	if err != nil || !isNew {
		return first, err
	}
	second, err := talk.AskSecret(c.Context, c, "the same again")
	if err == nil && !bytes.Equal(first, second) {
		err = errors.New("the passwords differ")
	}
	return first, err
}
