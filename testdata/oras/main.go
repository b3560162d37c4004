// Command oras does with the ORAS library what the oras command does: a judge
// of what imgpipe stores. It is a module of its own, so that imgpipe does not
// need the library.
//
//	oras copy FROM TO       with all referrers; FROM and TO are oci:DIR:REFERENCE or HOST/NAME:REFERENCE
//	oras pull FROM DIR      into files named by their titles
//	oras resolve FROM ARCH  prints the digest of linux/ARCH's manifest
//	oras discover FROM      prints "artifactType digest" of each direct referrer
//
// Registries are spoken to in plain HTTP.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/file"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "oras:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: oras copy FROM TO | pull FROM DIR | resolve FROM ARCH | discover FROM")
	}
	from, name, err := open(args[1])
	if err != nil {
		return err
	}
	switch {
	case args[0] == "copy" && len(args) == 3:
		to, toName, err := open(args[2])
		if err != nil {
			return err
		}
		desc, err := oras.ExtendedCopy(ctx, from, name, to, toName, oras.DefaultExtendedCopyOptions)
		if err == nil {
			fmt.Println(desc.Digest)
		}
		return err
	case args[0] == "pull" && len(args) == 3:
		files, err := file.New(args[2])
		if err != nil {
			return err
		}
		defer files.Close()
		desc, err := oras.Copy(ctx, from, name, files, name, oras.DefaultCopyOptions)
		if err == nil {
			fmt.Println(desc.Digest)
		}
		return err
	case args[0] == "resolve" && len(args) == 3:
		o := oras.DefaultResolveOptions
		o.TargetPlatform = &ocispec.Platform{OS: "linux", Architecture: args[2]}
		desc, err := oras.Resolve(ctx, from, name, o)
		if err == nil {
			fmt.Println(desc.Digest)
		}
		return err
	case args[0] == "discover" && len(args) == 2:
		desc, err := from.Resolve(ctx, name)
		if err != nil {
			return err
		}
		list, err := registry.Referrers(ctx, from, desc, "")
		for _, d := range list {
			fmt.Println(d.ArtifactType, d.Digest)
		}
		return err
	}
	return fmt.Errorf("%s: no such command, or not so many arguments", args[0])
}

type target interface {
	oras.GraphTarget
	Predecessors(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error)
}

func open(ref string) (target, string, error) {
	if dir, ok := strings.CutPrefix(ref, "oci:"); ok {
		dir, name, _ := strings.Cut(dir, ":")
		t, err := oci.New(dir)
		return t, name, err
	}
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return nil, "", err
	}
	repo.PlainHTTP = true
	return repo, repo.Reference.Reference, nil
}
