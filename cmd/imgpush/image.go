package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/trust"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/firstboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/guard"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// imageFlags say which bytes a disk shall hold, and who is believed: what
// write and check have in common.
func imageFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "insecure-no-signature", Usage: "take the image without asking who signed it"},
		&cli.StringFlag{Name: "user-data", Usage: "cloud-init user-data from `FILE`"},
		&cli.StringFlag{Name: "meta-data", Usage: "cloud-init meta-data from `FILE`"},
		&cli.StringFlag{Name: "network-config", Usage: "cloud-init network-config from `FILE`"},
		&cli.StringFlag{Name: "hostname", Usage: "the machine's `NAME`"},
		&cli.StringSliceFlag{Name: "ssh-key", Usage: "`LINE` of authorized_keys for the image's default user; may be repeated"},
		refs.PlatformFlag,
	}, append(trust.Flags(), refs.Flags()...)...)
}

// believed opens the image, once it is settled that it is to be trusted: before
// that nothing of it but the manifest is read. It tells whose word that was.
func believed(c *cli.Context, opener *refs.Opener, ref oci.Ref) (*oci.Artifact, []vouched, error) {
	t, err := trust.From(c)
	switch {
	case err != nil:
		return nil, nil, err
	case t == nil && !c.Bool("insecure-no-signature"):
		return nil, nil, ui.Fail(ui.ExitTrust, fmt.Errorf("%s: nothing says that this image is to be trusted; the target is untouched", ref),
			"--key cosign.pub, or --policy FILE; --insecure-no-signature takes it all the same")
	case t != nil && c.Bool("insecure-no-signature"):
		return nil, nil, ui.Usagef(c, "--insecure-no-signature beside a key or a policy: which of them is meant?")
	}
	untouched := func(err error) error {
		if ui.Code(err) != ui.ExitTrust {
			return err
		}
		hint := ""
		if e, ok := errors.AsType[*ui.Error](err); ok {
			hint = e.Hint
		}
		return ui.Fail(ui.ExitTrust, fmt.Errorf("%w; the target is untouched", err), hint)
	}
	pin, err := opener.Resolve(c.Context, ref)
	if err != nil {
		return nil, nil, untouched(err)
	}
	var by []vouched
	if t != nil {
		verdict, err := trust.Pinned(c.Context, t, pin)
		if err != nil {
			return nil, nil, untouched(err)
		}
		by = vouchedBy(verdict.Signatures)
	}
	a, err := pin.Open(c.Context)
	return a, by, untouched(refs.Fail(err))
}

// layOut says what every byte of a target shall be: the image, fitted to it,
// with the machine's config.
func layOut(ctx context.Context, a *oci.Artifact, target deliver.TargetInfo, config firstboot.Config, o deliver.Options) (*deliver.Want, error) {
	want, err := guard.LayOut(ctx, a, a.Table(), a.Config().Epoch, target, config, o)
	if _, ok := errors.AsType[*guard.ConfigError](err); ok {
		code := ui.ExitTarget
		if errors.Is(err, firstboot.ErrMetaData) {
			code = ui.ExitUsage
		}
		return nil, ui.Fail(code, fmt.Errorf("%w; the target is untouched", err), "")
	}
	return want, err
}
