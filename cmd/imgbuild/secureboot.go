package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

// secureBootFlags are those of commands that make boot programs.
var secureBootFlags = []cli.Flag{
	&cli.StringFlag{Name: "secure-boot-key", Usage: "sign what UEFI starts for Secure Boot with the RSA `KEY`: a PEM file, or of a KMS as awskms://, azurekms://, gcpkms:// or hashivault://"},
	&cli.StringFlag{Name: "secure-boot-cert", Usage: "certificate of that key in `FILE` (PEM), its chain behind it"},
}

// secureBoot is who signs what UEFI starts: as the flags or the recipe say, not
// both, else nobody, which is nil.
func secureBoot(c *cli.Context, r *recipe.Recipe) (*authenticode.Signer, error) {
	key, cert := c.String("secure-boot-key"), c.String("secure-boot-cert")
	own, field := r.Boot.SecureBoot, "boot.secureBoot"
	if r.Kind == recipe.KindEnvironment {
		own, field = r.SecureBoot, "secureBoot"
	}
	switch {
	case (key == "") != (cert == ""):
		return nil, ui.Usagef(c, "--secure-boot-key and --secure-boot-cert go together")
	case key == "" && (own.Key == "" || r.Kind == recipe.KindEnvironment): // whose build reads its own
		return nil, nil
	case key == "":
		s, err := loadSigner(c, own.Key, own.Cert)
		if err != nil {
			return nil, recipeError(r.Errorf(field, "%v", err))
		}
		return s, nil
	case r.Kind == recipe.KindDiskImage && r.Boot.Firmware == "bios":
		return nil, ui.Usagef(c, "--secure-boot-key: the recipe's firmware is bios, which checks no signatures")
	case own.Key != "":
		return nil, recipeError(r.Errorf(field, "--secure-boot-key names another key: leave one of them out"))
	}
	s, err := loadSigner(c, key, cert)
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--secure-boot-key %s, --secure-boot-cert %s: %w", key, cert, err), "docs/secureboot.md says how to make both")
	}
	return s, nil
}

// loadSigner reads a key and its certificate; the key may be one of a KMS.
func loadSigner(c *cli.Context, key, cert string) (*authenticode.Signer, error) {
	certPEM, err := readPEM(cert)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if strings.Contains(key, "://") {
		held, err := signer.Crypto(c.Context, key)
		if err != nil {
			return nil, err
		}
		certs, err := authenticode.ParseCertificates(certPEM)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		s := &authenticode.Signer{Key: held, Cert: certs[0], Chain: certs[1:]}
		return s, s.Validate()
	}
	keyPEM, err := readPEM(key)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	s, err := authenticode.ParseSigner(keyPEM, certPEM)
	return &s, err
}

// readPEM reads a file of at most a little more than the parser takes.
func readPEM(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20+1))
}
