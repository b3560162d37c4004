package main

import (
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func TestMovedPartitionsAreNamed(t *testing.T) {
	table := func(name string, rootSize int64) *diskimage.Table {
		return &diskimage.Table{DiskGUID: diskimage.DeriveGUID(name), Partitions: []diskimage.Partition{
			{Name: "esp", GUID: diskimage.DeriveGUID(name, "esp"), Extent: diskimage.Extent{Off: 1 << 20, Len: 64 << 20}},
			{Name: "root", GUID: diskimage.DeriveGUID(name, "root"), Extent: diskimage.Extent{Off: 65 << 20, Len: rootSize}},
		}}
	}
	for _, c := range []struct {
		before, now *diskimage.Table
		want        string
	}{
		{nil, table("a", 1<<30), ""},
		{table("a", 1<<30), table("a", 1<<30), ""},
		{table("b", 1<<29), table("a", 1<<30), ""},
		{table("a", 1<<29), table("a", 1<<30), "root was 512 MiB at 65.0 MiB, is 1.00 GiB at 65.0 MiB"},
	} {
		if got := movedPartitions(c.before, c.now); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
