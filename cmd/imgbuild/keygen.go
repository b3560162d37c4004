package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:      "keygen",
		Usage:     "make a key pair to sign images with",
		ArgsUsage: "PREFIX",
		Description: `Writes PREFIX.key, encrypted, to keep, and PREFIX.pub to give to those who verify: the
files that cosign generate-key-pair makes. The password comes from IMGPIPE_KEY_PASSWORD,
else COSIGN_PASSWORD, else the terminal. No file is replaced.

  imgbuild keygen release
  imgbuild sign oci:images:debian-server --key release.key
  imgpush verify oci:images:debian-server --key release.pub`,
		Action: runKeygen,
	}
}

func runKeygen(c *cli.Context) error {
	if c.NArg() != 1 {
		return ui.Usagef(c, "keygen needs one PREFIX, got %d arguments", c.NArg())
	}
	private, public := c.Args().First()+".key", c.Args().First()+".pub"
	for _, path := range []string{private, public} {
		if _, err := os.Lstat(path); err == nil {
			return ui.Fail(ui.ExitTarget, fmt.Errorf("%s: exists; nothing was written", path), "choose another PREFIX")
		}
	}
	pw, err := password(c, true)
	if errors.Is(err, ui.ErrNobody) {
		return ui.Fail(ui.ExitUsage, fmt.Errorf("a password is needed, and %w", err), "put it into IMGPIPE_KEY_PASSWORD")
	}
	if err != nil {
		return err
	}
	keyText, pubText, err := signer.Generate(pw)
	if err != nil {
		return err
	}
	if err := writeNew(private, keyText, 0o600); err != nil {
		return ui.Fail(ui.ExitTarget, err, "")
	}
	if err := writeNew(public, pubText, 0o644); err != nil {
		return ui.Fail(ui.ExitTarget, errors.Join(err, os.Remove(private)), "")
	}
	key, err := sign.ParseKey(public, pubText)
	if err != nil {
		return err
	}
	result := map[string]any{"private": private, "public": public, "keyID": key.ID()}
	return ui.From(c).Result(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s, to keep\n%s, to give away: %v\n", private, public, key.ID())
		return err
	})
}

// writeNew writes a file that must not exist, durably: it cannot be made again.
func writeNew(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
