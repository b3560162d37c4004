package gpt_test

import (
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

func ExampleRefit() {
	image := &diskimage.Table{
		DiskGUID: diskimage.DeriveGUID("example"), DiskSize: 1 << 30, SectorSize: 512,
		Partitions: []diskimage.Partition{{
			Name: "root", Type: diskimage.TypeRootX86_64, GUID: diskimage.DeriveGUID("example", "root"),
			Extent: diskimage.Extent{Off: 1 << 20, Len: 1022 << 20}, Grow: true,
		}},
	}
	onTarget, err := gpt.Refit(image, 8<<30, gpt.RefitOptions{AddLast: &diskimage.Partition{
		Name: "cidata", Type: diskimage.TypeBasicData, GUID: diskimage.DeriveGUID("example", "cidata"),
		Extent: diskimage.Extent{Len: 4 << 20},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range onTarget.Partitions {
		fmt.Println(p.Name, p.Extent.Off>>20, "MiB +", p.Extent.Len>>20, "MiB")
	}
	// Output:
	// root 1 MiB + 8186 MiB
	// cidata 8187 MiB + 4 MiB
}
