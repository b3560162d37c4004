//go:build linux

package blockdev

import (
	"fmt"
	"strings"
)

// judge says of each device how fit it is to be a target, and why not.
func judge(devices []Device, bootedFrom string, links map[string][]string) {
	for i := range devices {
		d := &devices[i]
		d.Fit = FitQuery
		if d.Kind != KindDisk {
			d.against(FitPath, "is "+d.Kind.article())
		}
		if d.Zoned == "host-managed" {
			d.against(FitPath, "has zones that are to be written in order")
		}
		if d.Transport == "usb" && strings.Contains(strings.ToLower(d.Vendor+" "+d.Model), "virtual") {
			d.against(FitPath, "is virtual media: what a BMC or a console shows as a USB disk")
		}
		if bootedFrom != "" && d.holdsPartition(bootedFrom, links) {
			d.against(FitPath, "is what this machine started from")
		}
		if d.Size == 0 {
			d.against(FitNever, "has no medium, or no size")
		}
		if d.ReadOnly {
			d.against(FitNever, "is read-only")
		}
		for _, u := range d.Users {
			d.against(FitNever, strings.TrimPrefix(u.String(), d.Path+" "))
		}
	}
	for i := range devices {
		for j := range devices {
			if a, b := &devices[i], &devices[j]; i != j && a.Kind == KindDisk && samePhysical(a, b) && len(a.Users) == 0 && len(b.Users) > 0 {
				a.twin = fmt.Sprintf("is the same disk as %s by another path: %s", b.Path, b.Users[0])
				a.against(FitNever, a.twin)
			}
		}
	}
}

func (d *Device) against(fit Fit, why string) {
	if d.Fit != FitNever {
		d.Fit = fit
	}
	d.Why = append(d.Why, why)
}

// samePhysical reports whether two devices are paths to one disk.
func samePhysical(a, b *Device) bool {
	return a.WWN != "" && a.WWN == b.WWN && a.Serial == b.Serial && a.Size == b.Size
}

// holdsPartition reports whether a partition of the disk has this PARTUUID: by
// the table, or by udev's link.
func (d *Device) holdsPartition(uuid string, links map[string][]string) bool {
	for _, p := range d.Partitions {
		if strings.EqualFold(p.PartUUID, uuid) {
			return true
		}
		for _, l := range links[strings.TrimPrefix(p.Path, "/dev/")] {
			if strings.EqualFold(l, "/dev/disk/by-partuuid/"+uuid) {
				return true
			}
		}
	}
	return false
}

func (k Kind) article() string {
	switch k {
	case KindLoop:
		return "a loop device"
	case KindMapper:
		return "made by device-mapper"
	case KindMultipath:
		return "a multipath device"
	case KindRAID:
		return "an md array"
	case KindMemory:
		return "memory"
	case KindNetwork:
		return "a network block device"
	case KindOptical:
		return "an optical drive"
	case KindFloppy:
		return "a floppy drive"
	case KindBoot:
		return "a boot area of an eMMC"
	}
	return "of a kind that is not known here"
}
