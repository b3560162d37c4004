package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/trust"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/call"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/install"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/environment"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// isInit reports whether this process is the first of a machine, in the
// environment that `imgbuild build` makes.
func isInit() bool { return os.Getpid() == 1 && filepath.Base(os.Args[0]) == "init" }

func agentCommand() *cli.Command {
	return &cli.Command{
		Name:  "agent",
		Usage: "what runs as /init in the environment that machines boot from the network",
		Description: `Asks the site's server for this machine's job, writes the disk that the job names, and
restarts the machine: docs/agent.md. It takes over the whole machine, so it runs only as
process 1 under the name /init, where the environment has it.

  imgbuild build recipes/environment.yaml -o oci:images:environment
  imgpush serve SITE.yaml     # boots machines into it
  imgpush agent     # elsewhere it says only this`,
		Action: func(c *cli.Context) error {
			return ui.Fail(ui.ExitUsage, errors.New("the agent runs as /init in an environment, and takes over the machine"),
				"imgbuild build recipes/environment.yaml makes an environment; imgpush serve boots machines into it")
		},
	}
}

// opener opens images through the agent's server.
type opener struct {
	client *call.Client
	trust  *sign.Trust // nil: every image that an authenticated job names
}

// trustOf reads whom an environment believes.
func trustOf(t environment.Trust) (*sign.Trust, error) {
	if t.Policy != "" {
		p, err := sign.ParsePolicy("policy.yaml", []byte(t.Policy), func(name string) ([]byte, error) {
			for known, text := range t.Files {
				if filepath.Clean(known) == filepath.Clean(name) {
					return []byte(text), nil
				}
			}
			return nil, fmt.Errorf("%s: not in the environment", name)
		})
		if err != nil {
			return nil, err
		}
		return sign.TrustPolicy(p), nil
	}
	var keys []*sign.Key
	for _, k := range t.Keys {
		key, err := sign.ParseKey(k.Name, []byte(k.PEM))
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if keys == nil {
		return nil, nil
	}
	return sign.TrustKeys(keys...), nil
}

// nobody has no credentials: the boot key is what the server asks for.
type nobody struct{}

func (nobody) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// open implements install.Installer.Open. Nothing of the image but its manifest
// is read before it is settled that it is trusted.
func (o opener) open(ctx context.Context, im wire.Image) (*install.Image, error) {
	untrusted := func(err error) error {
		return &deliver.Error{Problem: deliver.ProblemTrust, State: deliver.StateUntouched, Err: err}
	}
	digest, err := diskimage.ParseDigest(im.Digest)
	if err != nil {
		return nil, untrusted(err)
	}
	ref, err := oci.ParseRef(im.Reference)
	if err != nil && o.trust != nil {
		return nil, untrusted(fmt.Errorf("the job's image: %w", err))
	}
	at, err := url.Parse(o.client.URL())
	if err != nil {
		return nil, err
	}
	client := remote.New(remote.Options{Keychain: nobody{}, Transport: o.client.Transport(), Conns: call.Conns, UserAgent: "imgpush-agent"})
	repo, err := client.Repo(at.Host, im.Repository)
	if err != nil {
		return nil, untrusted(err)
	}
	pin, err := oci.Resolve(ctx, repo, oci.Ref{Registry: at.Host, Name: im.Repository, Digest: digest, Platform: "linux/" + runtime.GOARCH})
	if err != nil {
		return nil, maypass(err)
	}
	trusted := "not signed, or by whom was not asked: this environment believes every authenticated job"
	if o.trust != nil {
		ref.Digest, pin.Ref = digest, ref
		v, err := trust.Pinned(ctx, o.trust, pin)
		if err != nil {
			return nil, maypass(err)
		}
		trusted = fmt.Sprintf("signed by %s", v.Signatures[0].Key)
	}
	a, err := pin.Open(ctx)
	if err != nil {
		return nil, maypass(err)
	}
	c := a.Config()
	root, err := diskimage.ParseDigest(pin.Root.Digest.String())
	if err != nil {
		return nil, untrusted(err)
	}
	return &install.Image{Source: a, Digest: root, Name: c.Name, Version: c.Version, Architecture: c.Architecture, Epoch: c.Epoch,
		SectorSize: c.Disk.SectorSize, Table: c.Disk.Table, MBR: c.Disk.MBR, Filesystem: c.Disk.Filesystem, Trusted: trusted, Close: a.Close}, nil
}

// maypass says of an error of reading whether it may pass.
func maypass(err error) error {
	if err = trust.Fail(err); ui.Code(err) == ui.ExitSource {
		return &agent.Temporary{Err: err}
	}
	if ui.Code(err) == ui.ExitTrust {
		return &deliver.Error{Problem: deliver.ProblemTrust, State: deliver.StateUntouched, Err: err}
	}
	return err
}

// serverClient prepares the calls of this boot: with a new boot key.
func serverClient(env *environment.Config, urls func() []string, say func(string, ...any)) (*call.Client, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return call.New(call.Options{
		URLs: func() []string {
			if env.Server.URL != "" {
				return append([]string{env.Server.URL}, urls()...)
			}
			return urls()
		},
		CAs: env.Server.CA, Insecure: env.Jobs == environment.Insecure, Key: key, Now: time.Now,
		Notify: func(what string) { say("server: %s", what) },
	})
}

// agentVersion is what the build says of this program.
func agentVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
