package gpt_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

func growing(size, sector int64) *diskimage.Table {
	t := sample(size, sector)
	t.Partitions[2].Grow = true
	return t
}

func cidata() *diskimage.Partition {
	return &diskimage.Partition{Name: "cidata", Type: diskimage.TypeBasicData, GUID: diskimage.DeriveGUID("test", "cidata"),
		Attributes: diskimage.AttrNoAutoMount, Role: diskimage.RoleConfig, Extent: diskimage.Extent{Len: 4 * mib}}
}

func TestRefitToTheSameSizeChangesNothing(t *testing.T) {
	// The end of the second one is no whole MiB, and must stay.
	for _, table := range []*diskimage.Table{growing(128*mib, 512), growing(128*mib+4096, 4096), sample(128*mib, 512)} {
		before := *table
		got, err := gpt.Refit(table, table.DiskSize, gpt.RefitOptions{})
		if err != nil || !reflect.DeepEqual(got, &before) {
			t.Errorf("got %+v, %v, want %+v", got, err, before)
		}
	}
	odd := growing(128*mib, 512)
	odd.Partitions[2].Extent.Len += mib - 64<<10
	if got, err := gpt.Refit(odd, odd.DiskSize, gpt.RefitOptions{}); err != nil || !reflect.DeepEqual(got, odd) {
		t.Errorf("got %+v, %v, want %+v", got, err, odd)
	}
}

func TestRefitGrows(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for newSize, end := range map[int64]int64{
			8 * gib:              8*gib - mib,
			8*gib + 16384:        8*gib - mib,
			8*gib + 16384 + 4096: 8 * gib, // the backup just fits behind
			3 << 40:              3<<40 - mib,
			128*mib + 4096:       127 * mib,
		} {
			table := growing(128*mib, sector)
			got, err := gpt.Refit(table, newSize, gpt.RefitOptions{})
			if err != nil {
				t.Fatal(err)
			}
			want := growing(128*mib, sector)
			want.DiskSize = newSize
			want.Partitions[2].Extent.Len = end - 73*mib
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%d of %d: got %+v\nwant %+v", newSize, sector, got, want)
			}
			if !reflect.DeepEqual(table, growing(128*mib, sector)) {
				t.Error("the table given was changed")
			}
			if read, err := gpt.Parse(onDisk(t, got), newSize, sector); err != nil || read.Partitions[2].Extent != got.Partitions[2].Extent {
				t.Errorf("read back %+v, %v", read, err)
			}
		}
	}
	// Without a partition that grows just the table's own places move.
	got, err := gpt.Refit(sample(128*mib, 512), 8*gib, gpt.RefitOptions{})
	want := sample(128*mib, 512)
	want.DiskSize = 8 * gib
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestRefitAddsALastPartition(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		got, err := gpt.Refit(growing(128*mib, sector), 8*gib, gpt.RefitOptions{AddLast: cidata()})
		if err != nil {
			t.Fatal(err)
		}
		want := sample(128*mib, sector) // nothing says Grow any more
		want.DiskSize = 8 * gib
		added := *cidata()
		added.Extent = diskimage.Extent{Off: 8*gib - 5*mib, Len: 4 * mib}
		want.Partitions[2].Extent.Len = added.Extent.Off - 73*mib
		want.Partitions = append(want.Partitions, added)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
	table := growing(128*mib, 512)
	for i, n := range []int{4, 15, 1} {
		table.Partitions[i].Number = n
	}
	got, err := gpt.Refit(table, 8*gib, gpt.RefitOptions{AddLast: cidata()})
	if err != nil || got.Partitions[3].Number != 2 {
		t.Errorf("got %+v, %v, want the lowest free number 2", got, err)
	}
}

func TestRefitErrors(t *testing.T) {
	off, grow, dup := cidata(), cidata(), cidata()
	off.Extent.Off = mib
	grow.Grow = true
	dup.GUID = sample(gib, 512).Partitions[0].GUID
	for _, c := range []struct {
		size  int64
		add   *diskimage.Partition
		small bool
		want  string
	}{
		{127 * mib, nil, true, "it has 133169152 bytes, the image 134217728"},
		{0, nil, true, "it has 0 bytes"},
		{128*mib + 1, nil, false, "not whole sectors"},
		{128 * mib, cidata(), true, "4194304 bytes more are needed to add a partition (cidata) of 4194304"},
		{131 * mib, cidata(), true, "1048576 bytes more"},
		{gib, off, false, "want just a length"},
		{gib, grow, false, "want just a length"},
		{gib, &diskimage.Partition{Extent: diskimage.Extent{Len: 4 * mib}}, false, "no type"},
		{gib, dup, false, "has the GUID of partition 1"},
	} {
		_, err := gpt.Refit(growing(128*mib, 512), c.size, gpt.RefitOptions{AddLast: c.add})
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, gpt.ErrTooSmall) != c.small {
			t.Errorf("to %d: got %v, want %q (too small: %v)", c.size, err, c.want, c.small)
		}
	}
	if _, err := gpt.Refit(growing(128*mib, 512), 132*mib, gpt.RefitOptions{AddLast: cidata()}); err != nil {
		t.Errorf("exactly enough room: %v", err)
	}
}
