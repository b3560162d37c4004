package main

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// TestWhatAnUpdateHas: the release's root, and of a sealed one the hashes too, by names
// that say which PARTUUIDs they want; of the slot that is empty nothing.
func TestWhatAnUpdateHas(t *testing.T) {
	const root, hashes = "00112233-4455-6677-8899-aabbccddeeff", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	guid := func(s string) diskimage.GUID {
		g, err := diskimage.ParseGUID(s)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	disk := diskimage.Bytes([]byte("rootempthasheeesp"))
	at := func(off, n int64) diskimage.Extent { return diskimage.Extent{Off: off, Len: n} }
	plain := []diskimage.Partition{
		{Name: "edge_2", Role: diskimage.RoleRoot, GUID: guid(root), Extent: at(0, 4)},
		{Name: "_empty", Role: diskimage.RoleRoot, Extent: at(4, 4)},
		{Name: "esp", Role: diskimage.RoleESP, Extent: at(14, 3)},
	}
	sealed := append(slices.Clone(plain),
		diskimage.Partition{Name: "edge_2_verity", Role: diskimage.RoleVerity, GUID: guid(hashes), Extent: at(8, 4)},
		diskimage.Partition{Name: "_empty", Role: diskimage.RoleVerity, Extent: at(12, 2)})
	for _, c := range []struct {
		parts []diskimage.Partition
		want  map[string]string
	}{
		{plain, map[string]string{"edge_2.root.raw": "root"}},
		{sealed, map[string]string{"edge_2_" + root + ".root.raw": "root", "edge_2_" + hashes + ".verity.raw": "hash"}},
		{[]diskimage.Partition{{Name: "root", Role: diskimage.RoleRoot, Extent: at(0, 4)}}, map[string]string{}},
	} {
		got := map[string]string{}
		for name, d := range updateParts(&diskimage.Table{Partitions: c.parts}, disk, "edge_2") {
			b := make([]byte, d.Size())
			if _, err := d.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			got[strings.ToLower(name)] = string(b)
			if name != strings.ToLower(name) {
				t.Errorf("%s is not in lower case", name)
			}
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("got %v, want %v", got, c.want)
		}
	}
}
