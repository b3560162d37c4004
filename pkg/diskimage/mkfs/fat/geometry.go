package fat

import (
	"fmt"
)

// Sizes of the format, in bytes or entries.
const (
	slotSize    = 32       // of a directory entry
	rootSlots   = 512      // fixed root directory of FAT12 and FAT16: the usual number
	maxRoot     = 65024    // the largest multiple of rootSlots in its 16-bit field
	maxDirSlots = 65536    // fatgen103 "FAT Directory Structure": 2 MiB of entries
	maxCluster  = 32 << 10 // fatgen103 "BPB_SecPerClus": larger ones are not read everywhere
	alignFrom   = 64 << 20 // volumes of this size and more start their data at a whole unit
	unit        = 64 << 10 // what placement counts in, and what a chunk of an image usually is
)

// Limits of the number of clusters: fatgen103 "FAT Type Determination" has
// the kind follow from it alone, and asks to stay 16 clear of both limits,
// since "there is a lot of code out there" that is off by some.
const (
	margin   = 16
	fewest16 = 4085
	fewest32 = 65525
	most32   = 0x0ffffff5 - 2
)

// geometry is where things lie on a volume, in sectors unless said otherwise.
type geometry struct {
	kind     Type
	sector   int64 // bytes
	cluster  int64 // bytes
	total    int64 // all of the volume
	reserved int64 // before the first FAT
	fat      int64 // one FAT; there are two
	root     int64 // slots of the fixed root directory; 0 on FAT32
	clusters int64 // number of data clusters; the first one is number 2
}

func (g *geometry) fatOff(i int64) int64 { return (g.reserved + i*g.fat) * g.sector }
func (g *geometry) rootOff() int64       { return g.fatOff(2) }
func (g *geometry) dataOff() int64       { return g.rootOff() + g.root*slotSize }
func (g *geometry) clusterOff(n int64) int64 {
	return g.dataOff() + (n-2)*g.cluster
}

// tableBytes returns the bytes of a FAT of n entries.
func (t Type) tableBytes(n int64) int64 {
	switch t {
	case FAT12:
		return (n*3 + 1) / 2
	case FAT16:
		return n * 2
	}
	return n * 4
}

// bounds returns the fewest and most clusters that a kind is made with.
func (t Type) bounds() (fewest, most int64) {
	switch t {
	case FAT12:
		return margin, fewest16 - 1 - margin
	case FAT16:
		return fewest16 + margin, fewest32 - 1 - margin
	}
	return fewest32 + margin, most32
}

// plan chooses kind and cluster size for a volume whose root directory has the
// given number of slots.
func plan(size, sector int64, want Type, slots int64) (geometry, error) {
	root := max(rootSlots, ceil(slots, rootSlots)*rootSlots)
	kinds := []Type{want}
	switch {
	case want == Auto && size >= 512<<20:
		kinds = []Type{FAT32}
	case want == Auto:
		kinds = []Type{FAT16, FAT12}
	case want == FAT32 && size < leastFAT32(sector):
		return geometry{}, fmt.Errorf("size %d: a fat32 has at least %d clusters, which takes %d bytes (%.4g MiB) with %d-byte sectors",
			size, fewest32, leastFAT32(sector), float64(leastFAT32(sector))/(1<<20), sector)
	}
	for _, kind := range kinds {
		if g, ok := fit(size, sector, kind, root); ok {
			if kind != FAT32 && root > maxRoot {
				return geometry{}, fmt.Errorf("/: %d directory slots, a %s has at most %d in its root", slots, kind, maxRoot)
			}
			return g, nil
		}
	}
	kind := kinds[len(kinds)-1]
	fewest, most := kind.bounds()
	return geometry{}, fmt.Errorf("size %d: no cluster size from %d to %d gives a %s its %d to %d clusters",
		size, sector, maxCluster, kind, fewest, most)
}

// leastFAT32 returns the bytes that a FAT32 with the fewest clusters of one
// sector takes, rounded up to 1024 sectors: the well-known 33 MiB for sectors
// of 512 bytes and 260 MiB for 4096.
func leastFAT32(sector int64) int64 {
	fewest, _ := FAT32.bounds()
	sectors := 32 + 2*ceil(FAT32.tableBytes(fewest+2), sector) + fewest
	return ceil(sectors, 1024) * 1024 * sector
}

// fit finds the cluster size nearest to the usual one, 4 KiB (a page, and a
// sector of any disk), that gives a kind its number of clusters.
func fit(size, sector int64, kind Type, root int64) (geometry, bool) {
	cluster := max(4096, sector)
	if kind == FAT32 { // fatgen103's DskTableFAT32
		for limit := int64(8 << 30); size > limit && cluster < maxCluster; limit *= 2 {
			cluster *= 2
		}
	}
	fewest, most := kind.bounds()
	g := layout(size, sector, cluster, kind, root)
	for g.clusters > most && g.cluster < maxCluster {
		g = layout(size, sector, g.cluster*2, kind, root)
	}
	for g.clusters < fewest && g.cluster > sector {
		g = layout(size, sector, g.cluster/2, kind, root)
	}
	return g, g.clusters >= fewest && g.clusters <= most
}

// layout lays a volume out: reserved sectors, two FATs, root directory, data.
// It widens the reserved sectors so that data starts at a whole cluster of the
// volume, and on larger volumes at a whole unit.
func layout(size, sector, cluster int64, kind Type, root int64) geometry {
	g := geometry{kind: kind, sector: sector, cluster: cluster, total: size / sector, reserved: 1, fat: 1}
	if kind == FAT32 {
		g.reserved = 32 // room for boot sector, FSInfo and their backup at 6
	} else {
		g.root = root
	}
	for { // a larger FAT leaves fewer clusters, so this ends
		g.clusters = (size - g.dataOff()) / cluster
		need := ceil(kind.tableBytes(g.clusters+2), sector)
		if need <= g.fat {
			break
		}
		g.fat = need
	}
	align := cluster
	if size >= alignFrom {
		align = unit
	}
	g.reserved += (ceil(g.dataOff(), align)*align - g.dataOff()) / sector
	g.clusters = (size - g.dataOff()) / cluster
	return g
}

func ceil(n, unit int64) int64 { return (n + unit - 1) / unit }
