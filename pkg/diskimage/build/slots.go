package build

import (
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// emptySlot is the GPT name of a slot without a release (systemd-sysupdate,
// sysupdate.d(5): "_empty").
const emptySlot = "_empty"

// slotName is the GPT name of the slot that has the image: the root is found by
// it, whichever slot that is.
func slotName(r *recipe.Recipe) string { return r.Name + "_" + r.Release }

// slotLabel is the GPT name of a partition that is of a slot, "" for another. The
// names of hashes are those of sysupdate.d(5)'s example.
func slotLabel(r *recipe.Recipe, p recipe.Partition) string {
	slot, suffix := p.Slot, ""
	for _, q := range r.Disk.Partitions {
		if p.Type == "verity" && q.Name == p.For {
			slot, suffix = q.Slot, "_verity"
		}
	}
	switch slot {
	case "a":
		return slotName(r) + suffix
	case "b":
		return emptySlot
	}
	return ""
}

// equalSlots makes slot b as large as slot a; each of sizes is the least of its
// partition.
func equalSlots(r *recipe.Recipe, sizes []int64) {
	a := -1
	for i, p := range r.Disk.Partitions {
		switch p.Slot {
		case "a":
			a = i
		case "b":
			sizes[i] = max(sizes[a], r.Disk.Partitions[a].Size)
		}
	}
}

// rootTypes and hashTypes are partition types by architecture, and mountTypes by
// mount point: the Discoverable Partitions Specification's (uapi-group.org).
var (
	rootTypes  = map[string]diskimage.GUID{"amd64": diskimage.TypeRootX86_64, "arm64": diskimage.TypeRootARM64}
	hashTypes  = map[string]diskimage.GUID{"amd64": diskimage.TypeRootVerityX86_64, "arm64": diskimage.TypeRootVerityARM64}
	mountTypes = map[string]diskimage.GUID{
		"/boot": diskimage.TypeXBOOTLDR, "/home": diskimage.TypeHome, "/srv": diskimage.TypeSrv,
		"/var": diskimage.TypeVar, "/var/tmp": diskimage.TypeVarTmp,
	}
)

// partitionType is the GPT type of a partition.
func partitionType(arch string, p recipe.Partition) diskimage.GUID {
	switch p.Type {
	case "esp":
		return diskimage.TypeESP
	case "config":
		return diskimage.TypeBasicData
	case "root":
		return rootTypes[arch]
	case "bios":
		return diskimage.TypeBIOSBoot
	case "verity":
		return hashTypes[arch]
	case "swap":
		return diskimage.TypeSwap
	}
	if t, ok := mountTypes[p.Mount]; ok {
		return t
	}
	return diskimage.TypeLinuxData
}
