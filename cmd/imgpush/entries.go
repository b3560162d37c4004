package main

import (
	"context"
	"errors"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/install"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// entries makes the firmware's boot entry for a disk that was committed; im is nil
// where that was before. Nothing
// of it keeps a disk from booting: what does not work is a warning.
func entries(disk deliver.Target, table *diskimage.Table, im *install.Image, order wire.BootOrder) (warnings []string) {
	warn := func(err error) { warnings = append(warnings, err.Error()) }
	vars, err := efi.Open("")
	if errors.Is(err, efi.ErrNone) || table == nil {
		return nil // a BIOS, or an image without partitions: there is no entry to make
	}
	if err != nil {
		return []string{err.Error()}
	}
	esp := table.Find(diskimage.RoleESP)
	if esp == nil {
		return nil
	}
	state, problems := efi.Read(vars)
	for _, p := range problems {
		warn(p)
	}
	number := esp.Number
	for i := range table.Partitions {
		if number == 0 && &table.Partitions[i] == esp {
			number = i + 1
		}
	}
	sector := disk.SectorSize()
	label := ""
	if im != nil {
		label = im.Name
	}
	plan, err := efi.NewPlan(state, efi.Wish{
		Disk:   efi.Partition{GUID: esp.GUID, Number: uint32(number), Start: uint64(esp.Extent.Off / sector), Size: uint64(esp.Extent.Len / sector)},
		Policy: efi.Policy(order), Label: label, Others: otherESPs(esp.GUID),
	})
	if err != nil {
		warn(err)
		return warnings
	}
	warnings = append(warnings, plan.Warnings...)
	for _, err := range efi.Apply(vars, plan) {
		warn(err)
	}
	return warnings
}

// otherESPs are the EFI system partitions of the machine's other disks: entries
// for them stay.
func otherESPs(but diskimage.GUID) (out []diskimage.GUID) {
	devices, err := blockdev.System{}.List(context.Background(), blockdev.ListOptions{Read: true})
	if err != nil {
		return nil
	}
	for _, d := range devices {
		for _, p := range d.Partitions {
			kind, kerr := diskimage.ParseGUID(p.Type)
			id, ierr := diskimage.ParseGUID(p.PartUUID)
			if kerr == nil && ierr == nil && kind == diskimage.TypeESP && id != but {
				out = append(out, id)
			}
		}
	}
	return out
}
