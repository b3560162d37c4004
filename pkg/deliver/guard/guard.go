//go:build linux

// Package guard holds what has to be so before an image goes onto a disk of this
// machine, and says what of the disk and of the machine's others is lost by it.
// The command that writes disks and the agent share it.
//
//	beyond, err := guard.NewBeyond(destroy, wipe)
//	want, err := guard.LayOut(ctx, source, table, epoch, deliver.InfoOf(disk), config, options)
//	err = beyond.Prepare(disk, want)
//	have, err := deliver.Look(ctx, want, disk, options)
//	found, err := beyond.Judge(disk, want, have)             // and has signatures beyond the image erased
//	plan, err := deliver.NewPlan(want, have)
//	err = guard.RefuseProtected(found)                       // unless the plan is empty
//	retired, err := beyond.Retire(ctx, path, o, ids)         // for each copy that may go
//	err = guard.RefuseTwins(guard.Twins(ctx, say, devices, guard.OpenDevice(ctx), ids, infos...))
//
// It writes nothing but what Retirees.Clear clears. Errors are *deliver.Error
// with ProblemTarget where the disk, or another one, will not do.
package guard

import (
	"context"
	"fmt"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/firstboot"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// LayOut says what every byte of a target shall be: the image, fitted to it,
// with the machine's config. A config that will not do is what firstboot says,
// behind "config: ".
func LayOut(ctx context.Context, source deliver.Source, table *diskimage.Table, epoch time.Time, target deliver.TargetInfo, config firstboot.Config, o deliver.Options) (*deliver.Want, error) {
	table, overlays, err := deliver.Fit(table, target, deliver.FitOptions{Config: !config.IsZero()})
	if err != nil {
		return nil, err
	}
	if !config.IsZero() {
		seed, err := firstboot.Overlay(table, config, epoch)
		if err != nil {
			return nil, &ConfigError{err}
		}
		overlays = append(overlays, seed)
	}
	want, err := deliver.NewWant(source.Index(), table, target, overlays)
	if err != nil {
		return nil, err
	}
	return want, want.Resolve(ctx, source, o)
}

// ConfigError is a config that cannot be laid down; nothing was written.
type ConfigError struct{ Err error }

func (e *ConfigError) Error() string { return fmt.Sprintf("config: %v", e.Err) }

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }
