package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/build"
)

// stepFlags are those of run steps (docs/run.md).
var stepFlags = []cli.Flag{
	&cli.StringSliceFlag{Name: "secret", Usage: "give run steps a secret: `NAME=FILE` or NAME=env:VARIABLE; it never reaches the image"},
	&cli.BoolFlag{Name: "debug-shell", Usage: "open a shell in the sandbox where a run step fails"},
}

// maxSecret bounds what is read: keys and tokens, not data.
const maxSecret = 1 << 20

// stepOptions reads them.
func stepOptions(c *cli.Context, o *build.Options) error {
	for _, text := range c.StringSlice("secret") {
		name, from, ok := strings.Cut(text, "=")
		if !ok || name == "" || from == "" {
			return ui.Usagef(c, "--secret %s: want NAME=FILE or NAME=env:VARIABLE", name)
		}
		value, err := secret(from)
		if err != nil {
			return ui.Fail(ui.ExitUsage, fmt.Errorf("--secret %s: %w", name, err), "")
		}
		if o.Secrets == nil {
			o.Secrets = map[string][]byte{}
		}
		o.Secrets[name] = value
	}
	if c.Bool("debug-shell") {
		in, ok := c.App.Reader.(*os.File)
		if !ok || !ui.IsTerminal(in) {
			return ui.Usagef(c, "--debug-shell: there is no terminal")
		}
		o.Terminal = in
	}
	return nil
}

func secret(from string) ([]byte, error) {
	if name, ok := strings.CutPrefix(from, "env:"); ok {
		value, ok := os.LookupEnv(name)
		if !ok {
			return nil, fmt.Errorf("the environment has no %s", name)
		}
		return []byte(value), nil
	}
	f, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("%s has more than %d bytes", from, maxSecret)
	}
	return b, err
}
