package deliver

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// ConfigSize is the length in bytes of a config partition that Fit adds.
const ConfigSize = 4 << 20

// FitOptions says what else the table shall have. The zero value is nothing.
type FitOptions struct {
	Config bool // a config partition: one of ConfigSize is added, last, to an image that has none
}

// Fit returns the table of an image as it shall be on a target, and the
// overlays that make it so: protective MBR, both GPTs. The grow partition
// reaches to the end. On a target of the image's own size the image's bytes are
// right, and there are no overlays. Boot code in LBA 0 stays the image's. A table without partitions gives nil.
// It refuses what NewWant refuses. It does no I/O.
func Fit(table *diskimage.Table, target TargetInfo, o FitOptions) (*diskimage.Table, []diskimage.Overlay, error) {
	t, overlays, err := fit(table, target, o)
	return t, overlays, finish(context.Background(), err, StateUntouched)
}

func fit(table *diskimage.Table, target TargetInfo, o FitOptions) (*diskimage.Table, []diskimage.Overlay, error) {
	if table == nil || len(table.Partitions) == 0 {
		if o.Config {
			return nil, nil, faultf(ProblemTarget, "the image has no partition table to add a config partition to")
		}
		return nil, nil, nil
	}
	if err := suits(target, table.DiskSize, table.SectorSize); err != nil {
		return nil, nil, err
	}
	var refit gpt.RefitOptions
	if o.Config && table.Find(diskimage.RoleConfig) == nil {
		refit.AddLast = &diskimage.Partition{
			Name: "config", Role: diskimage.RoleConfig, Type: diskimage.TypeBasicData, Attributes: diskimage.AttrNoAutoMount,
			GUID: diskimage.NewGUID(table.DiskGUID, "config"), Extent: diskimage.Extent{Len: ConfigSize},
			Filesystem: diskimage.Filesystem{Type: "fat", Label: "CIDATA"},
		}
	}
	if refit.AddLast == nil && target.Size == table.DiskSize {
		return table, nil, nil
	}
	t, err := gpt.Refit(table, target.Size, refit)
	if errors.Is(err, gpt.ErrTooSmall) {
		return nil, nil, &fault{ProblemTarget, err}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("fit the partition table: %w", err)
	}
	primary, backup, err := gpt.Encode(t)
	if err != nil {
		return nil, nil, fmt.Errorf("fit the partition table: %w", err)
	}
	// Of LBA 0 the partition records and the signature are the GPT's (UEFI
	// 2.10, table 5.3); the 446 bytes before them may be the image's boot code.
	const records, end = 446, 512
	return t, []diskimage.Overlay{
		{Off: records, Data: diskimage.Bytes(primary[records:end]), Note: "protective MBR"},
		{Off: t.SectorSize, Data: diskimage.Bytes(primary[t.SectorSize:]), Note: "GPT"},
		{Off: target.Size - int64(len(backup)), Data: diskimage.Bytes(backup), Note: "backup GPT"},
	}, nil
}

// summarizeDisk describes the GPT on a target. What cannot be parsed is
// described as none: it is only for the report.
func summarizeDisk(t Target) TableSummary {
	table, err := gpt.Parse(t, t.Size(), t.SectorSize())
	if err != nil {
		return TableSummary{}
	}
	return Summarize(table)
}
