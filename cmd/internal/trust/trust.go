// Package trust reads from a command line whom to believe, and says what an
// image was not trusted for.
//
//	Flags: append(flags, trust.Flags()...)
//
//	t, err := trust.From(c)          // nil: the command line says nothing
//	verdict, err := trust.Verify(c.Context, t, repo, ref, digest)
//
// Errors come with their exit code and what to try.
package trust

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// Flags say whom to believe.
func Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "key", Usage: "trust what the public key in `FILE` (PEM) signed; may be repeated: any one is enough"},
		&cli.StringFlag{Name: "policy", Usage: "trust what the policy in `FILE` says (docs/trust.md)"},
	}
}

// maxKey bounds a file with a public key.
const maxKey = 64 << 10

// From reads the flags; without any it returns nil.
func From(c *cli.Context) (*sign.Trust, error) {
	files, path := c.StringSlice("key"), c.String("policy")
	switch {
	case path != "" && len(files) > 0:
		return nil, ui.Usagef(c, "--key and --policy: a policy names its keys itself")
	case path != "":
		return Policy("--policy", path)
	case len(files) == 0:
		return nil, nil
	}
	return Keys("--key", files)
}

// Keys believes what any one of the public keys in files signed. what is how
// messages call them.
func Keys(what string, files []string) (*sign.Trust, error) {
	var keys []*sign.Key
	for _, f := range files {
		b, err := read(f, maxKey)
		if err != nil {
			return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("%s: %w", what, err), "")
		}
		k, err := sign.ParseKey(f, b)
		if err != nil {
			return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("%s: %w", what, err), "openssl pkey -in PRIVATE -pubout, or cosign public-key --key PRIVATE, prints the public half")
		}
		keys = append(keys, k)
	}
	return sign.TrustKeys(keys...), nil
}

// Policy believes what the policy in a file says. what is how messages call it.
func Policy(what, path string) (*sign.Trust, error) {
	b, err := read(path, sign.MaxPolicy+1)
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("%s: %w", what, err), "")
	}
	p, err := sign.ParsePolicy(path, b, func(key string) ([]byte, error) { return read(key, maxKey) })
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, err, "docs/trust.md has the policy language")
	}
	if p, err = p.Absolute(filepath.Abs); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return sign.TrustPolicy(p), nil
}

// read reads a regular file of at most limit bytes.
func read(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s: not a file of at most %d bytes", path, limit)
	}
	return os.ReadFile(path)
}

// Place is what a policy calls the place of a reference: a layout by its
// absolute path.
func Place(ref oci.Ref) (string, error) {
	if !ref.IsLayout() {
		return ref.Place(), nil
	}
	dir, err := filepath.Abs(ref.Dir)
	if err != nil {
		return "", fmt.Errorf("%v: %w", ref, err)
	}
	return "oci:" + dir, nil
}

// Verify decides whether the manifest with that digest, which ref names in
// repo, is trusted; types are predicate types of attestations that must be there
// besides.
func Verify(ctx context.Context, t *sign.Trust, repo sign.Store, ref oci.Ref, digest diskimage.Digest, types ...string) (*sign.Verdict, error) {
	place, err := Place(ref)
	if err != nil {
		return nil, err
	}
	v, err := t.Verify(ctx, repo, place, digest, types...)
	return v, Fail(err)
}

// Pinned decides whether an image is trusted: by what vouches for its own
// manifest, else by what vouches for the index in which it was found.
func Pinned(ctx context.Context, t *sign.Trust, pin *oci.Pin) (*sign.Verdict, error) {
	v, err := Verify(ctx, t, pin.Repository(), pin.Ref, pin.Digest())
	if err == nil || !errors.Is(err, sign.ErrUntrusted) || pin.Root.Digest == pin.Image.Digest {
		return v, err
	}
	root, rerr := diskimage.ParseDigest(pin.Root.Digest.String())
	if rerr != nil {
		return nil, rerr
	}
	if v, rerr = Verify(ctx, t, pin.Repository(), pin.Ref, root); rerr != nil {
		return nil, err
	}
	return v, nil
}

// Fail gives an error of deciding its exit code.
func Fail(err error) error {
	u, ok := errors.AsType[*sign.UntrustedError](err)
	if !ok {
		return refs.Fail(err)
	}
	hint := ""
	if u.Found != "" {
		hint = fmt.Sprintf("imgbuild sign %s@%v --key KEY signs it, for those who hold a key", u.Place, u.Digest)
	}
	return ui.Fail(ui.ExitTrust, err, hint)
}
