package diskimage

import (
	"fmt"
	"slices"
)

// Overlay is bytes laid over the image for one machine: the refitted partition
// table, the config volume. Data outside its Extents is zeros and is written too.
type Overlay struct {
	Off  int64
	Data Disk
	Note string // for people: "GPT", "CIDATA"
}

// Extent returns the bytes of the disk that the overlay replaces.
func (o Overlay) Extent() Extent { return Extent{o.Off, o.Data.Size()} }

// ValidateOverlays checks that overlays lie on a disk of the given size and do
// not overlap each other.
func ValidateOverlays(overlays []Overlay, size int64) error {
	sorted := slices.Clone(overlays)
	slices.SortStableFunc(sorted, func(a, b Overlay) int {
		switch {
		case a.Off < b.Off:
			return -1
		case a.Off > b.Off:
			return 1
		}
		return 0
	})
	for i, o := range sorted {
		if err := o.Extent().Validate(size); err != nil {
			return fmt.Errorf("overlay %s: %w", o.Note, err)
		}
		if i > 0 && sorted[i-1].Extent().Overlaps(o.Extent()) {
			return fmt.Errorf("overlays %s (%v) and %s (%v) overlap", sorted[i-1].Note, sorted[i-1].Extent(), o.Note, o.Extent())
		}
	}
	return nil
}
