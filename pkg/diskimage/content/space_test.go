package content_test

import (
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
)

// TestSpaceAddsUp gives each chunk a frame of half its bytes: what packages, unowned
// files and metadata have together is what the partitions of the view have.
func TestSpaceAddsUp(t *testing.T) {
	v := root(t)
	const chunk = 64 << 10
	x := &diskimage.Index{DiskSize: 64 << 20, SectorSize: 512, ChunkSize: chunk}
	for off := int64(0); off < x.DiskSize; off += chunk {
		x.Chunks = append(x.Chunks, diskimage.Chunk{Extent: diskimage.Extent{Off: off, Len: chunk}, Frame: diskimage.Extent{Len: chunk / 2}})
	}
	s, err := v.Space(x, 2)
	if err != nil {
		t.Fatal(err)
	}
	var packages, partitions content.Space
	for _, p := range s.Packages {
		packages.Bytes, packages.Stored = packages.Bytes+p.Bytes, packages.Stored+p.Stored
	}
	for _, p := range s.Partitions[:3] { // the fourth is not in the view
		partitions.Bytes, partitions.Stored = partitions.Bytes+p.Bytes, partitions.Stored+p.Stored
	}
	if packages.Bytes != partitions.Bytes || max(packages.Stored-partitions.Stored, partitions.Stored-packages.Stored) > 10 {
		t.Errorf("packages %+v, partitions %+v", packages, partitions)
	}
	if f := s.Files[0]; f.Name != "/usr/big" || f.Bytes != 9_600_000 || f.Stored != f.Bytes/2 {
		t.Errorf("the largest file: %+v", f)
	}
	if p := s.Packages[1]; p.Name != "zz-big" || p.Bytes != 9_600_000 { // whose list says /alias/big
		t.Errorf("the largest package behind the metadata: %+v", p)
	}
	folders := map[string]content.Space{}
	for _, f := range s.Folders {
		folders[f.Name] = f
	}
	if folders["/usr/share"].Bytes != 400 || folders["/usr"].Bytes != 400+s.Files[0].Bytes || folders["/usr/share/many"].Name != "" {
		t.Errorf("folders: %+v", folders)
	}
	if folders["/boot/efi"].Bytes == 0 {
		t.Error("a mount's files count for no folder")
	}
}
