package refs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// PlatformFlag chooses an image of an index.
var PlatformFlag = &cli.StringFlag{Name: "platform", Usage: "the image for `OS/ARCH`, where the reference names an index of several"}

// Flags say how registries are reached.
func Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "username", Usage: "log in to the registry as `NAME`", DefaultText: "as docker's or podman's configuration says"},
		&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from stdin; without --username, a bearer token"},
		&cli.StringFlag{Name: "ca", Usage: "trust the certificates in `FILE` (PEM), beside the system's"},
		&cli.BoolFlag{Name: "plain-http", Usage: "speak plain HTTP to registries that are not on this machine"},
		&cli.StringSliceFlag{Name: "mirror", Usage: "ask `HOST[:PORT][/PREFIX]` first for blobs and pinned manifests; may be repeated"},
	}
}

// options reads the flags; references are those among which the password's
// registry is. Commands that only know layouts have no such flags, and need none.
func options(c *cli.Context, references []string) (remote.Options, error) {
	talk := ui.From(c)
	o := remote.Options{
		PlainHTTP: c.Bool("plain-http"), Mirrors: c.StringSlice("mirror"),
		UserAgent: c.App.Name + "/" + c.App.Version,
		Notify:    func(err error) { talk.Sayf("again: %v", err) },
	}
	if path := c.String("ca"); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return o, ui.Fail(ui.ExitUsage, fmt.Errorf("--ca: %w", err), "")
		}
		if o.RootCAs, err = x509.SystemCertPool(); err != nil {
			o.RootCAs = x509.NewCertPool()
		}
		if !o.RootCAs.AppendCertsFromPEM(b) {
			return o, ui.Fail(ui.ExitUsage, fmt.Errorf("--ca %s: holds no certificate in PEM form", path), "")
		}
	}
	var err error
	o.Keychain, err = keychain(c, references)
	return o, err
}

// maxPassword bounds what is read from stdin.
const maxPassword = 64 << 10

// keychain is nil for the ordinary one: docker's configuration and helpers.
func keychain(c *cli.Context, references []string) (authn.Keychain, error) {
	user, stdin := c.String("username"), c.Bool("password-stdin")
	if user == "" && !stdin {
		return nil, nil
	}
	if !stdin {
		return nil, ui.Fail(ui.ExitUsage, errors.New("--username without --password-stdin"), "echo \"$PASSWORD\" | … --password-stdin")
	}
	named := hosts(references)
	if len(named) != 1 {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--password-stdin is for one registry, and the references name %d", len(named)),
			"log in with docker, podman or crane: their configuration is used")
	}
	b, err := io.ReadAll(io.LimitReader(c.App.Reader, maxPassword))
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("--password-stdin: %w", err), "")
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" {
		return nil, ui.Fail(ui.ExitUsage, errors.New("--password-stdin: stdin is empty"), "")
	}
	if user == "" {
		return fixed{named[0], &authn.Bearer{Token: secret}}, nil
	}
	return fixed{named[0], &authn.Basic{Username: user, Password: secret}}, nil
}

// fixed are the credentials for one registry; others get the ordinary ones.
type fixed struct {
	registry string
	auth     authn.Authenticator
}

func (f fixed) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if registry, err := name.NewRegistry(f.registry); err == nil && r.RegistryStr() == registry.RegistryStr() { // docker.io has an alias
		return f.auth, nil
	}
	return authn.DefaultKeychain.Resolve(r)
}
