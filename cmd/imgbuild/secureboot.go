package main

import (
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
)

// secureBootFlags are those of commands that make boot programs.
var secureBootFlags = []cli.Flag{
	&cli.StringFlag{Name: "secure-boot-key", Usage: "sign the boot program for Secure Boot with the RSA key in `FILE` (PEM)"},
	&cli.StringFlag{Name: "secure-boot-cert", Usage: "certificate of that key in `FILE` (PEM), its chain behind it"},
}

// secureBoot is who signs the boot program: nil where that is not asked for.
func secureBoot(c *cli.Context) (*authenticode.Signer, error) {
	key, cert := c.String("secure-boot-key"), c.String("secure-boot-cert")
	if key == "" && cert == "" {
		return nil, nil
	}
	if key == "" || cert == "" {
		return nil, ui.Usagef(c, "--secure-boot-key and --secure-boot-cert go together")
	}
	keyPEM, err := readPEM(key)
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--secure-boot-key: %w", err), "")
	}
	certPEM, err := readPEM(cert)
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--secure-boot-cert: %w", err), "")
	}
	s, err := authenticode.ParseSigner(keyPEM, certPEM)
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--secure-boot-key %s, --secure-boot-cert %s: %w", key, cert, err), "docs/secureboot.md says how to make both")
	}
	return &s, nil
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
