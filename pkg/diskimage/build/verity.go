package build

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/diskimage/verity"
)

// sealed is a root whose hashes are on the disk (docs/verity.md).
type sealed struct {
	root   diskimage.Disk
	fs     diskimage.Filesystem
	hashes *verity.Hashes
	uuid   diskimage.GUID // of the hashes
}

// guids are the PARTUUIDs that follow from the root hash, of root and hashes: its halves
// (Discoverable Partitions Specification, "Root Verity Partition").
func (s *sealed) guids() (root, hashes diskimage.GUID) {
	h := s.hashes.RootHash()
	return diskimage.GUID(h[:16]), diskimage.GUID(h[16:])
}

// verityFor returns which partition holds the hashes of one, -1 if none does.
func verityFor(r *recipe.Recipe, name string) int {
	return slices.IndexFunc(r.Disk.Partitions, func(p recipe.Partition) bool {
		return diskimage.Role(p.Type) == diskimage.RoleVerity && p.For == name
	})
}

// seal makes the roots that have hashes: their root hashes are on the command line, so
// before what firmware starts. The tree has to be as it will be.
func (b *builder) seal(ctx context.Context) error {
	for i := range b.recipe.Disk.Partitions {
		p := &b.recipe.Disk.Partitions[i]
		v := verityFor(b.recipe, p.Name)
		if v < 0 || p.Slot == "b" { // which is empty
			continue
		}
		if err := b.divide(); err != nil {
			return err
		}
		size := b.autoSize(i)
		part := diskimage.Partition{Name: p.Name, Role: diskimage.RoleRoot, Extent: diskimage.Extent{Len: roundUp(max(p.Size, size), align)}}
		s := &sealed{}
		var err error
		if s.root, err = b.filesystem(p, &part, b.trees[i]); err != nil {
			return b.recipe.Errorf(fmt.Sprintf("disk.partitions[%d]", i), "%v", err)
		}
		s.fs = part.Filesystem
		id := identities(b.recipe)
		s.uuid = id.filesystem(b.recipe.Disk.Partitions[v].Name)
		salt := diskimage.DigestOf(append([]byte("imgpipe verity salt\x00"), s.uuid[:]...))
		b.say("hashing " + p.Name)
		if s.hashes, err = verity.New(ctx, s.root, verity.Options{UUID: s.uuid, Salt: salt[:]}); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		if b.sealed == nil {
			b.sealed = map[string]*sealed{}
		}
		b.sealed[p.Name] = s
		b.image.Record.RootHash = s.hashes.RootHash().Hex()
	}
	return nil
}

// sealedPart returns what a partition holds that seal has made, and describes it in the table.
func (b *builder) sealedPart(want *recipe.Partition, p *diskimage.Partition) diskimage.Disk {
	if s := b.sealed[want.Name]; s != nil {
		p.Filesystem = s.fs
		p.GUID, _ = s.guids()
		return s.root
	}
	if s := b.sealed[want.For]; s != nil {
		p.Filesystem = diskimage.Filesystem{Type: "DM_verity_hash", UUID: s.uuid.String()}
		_, p.GUID = s.guids()
		return s.hashes
	}
	return nil
}

// veritySize returns the bytes that a verity partition takes, for the largest that its root
// can be; sizes are those of the others.
func veritySize(r *recipe.Recipe, want recipe.Partition, sizes []int64) int64 {
	i := slices.IndexFunc(r.Disk.Partitions, func(p recipe.Partition) bool { return p.Name == want.For })
	if i < 0 {
		return 0
	}
	return verity.Size(roundUp(max(r.Disk.Partitions[i].Size, sizes[i]), align))
}

// overlays are the folders that a Debian on a read-only root has to write to, beside /var.
var overlays = []string{"/etc", "/home", "/root"}

// rootWords are the words of the command line that mount a root; more follow them.
func (b *builder) rootWords(p *recipe.Partition, more string) string {
	words := []string{"root=PARTUUID=" + identities(b.recipe).partition(p.Name).String(), "ro"}
	if p.Slot != "" {
		words[0] = "root=PARTLABEL=" + slotName(b.recipe)
	}
	said := func(prefix string) bool {
		return slices.ContainsFunc(strings.Fields(more), func(w string) bool { return strings.HasPrefix(w, prefix) })
	}
	if s := b.sealed[p.Name]; s != nil {
		words = []string{"root=/dev/mapper/root", "roothash=" + s.hashes.RootHash().Hex(), "ro", "systemd.verity=no"}
		if !said("systemd.verity_root_options=") {
			words = append(words, "systemd.verity_root_options=restart-on-corruption")
		}
	}
	if !p.ReadOnly || b.recipe.Boot.Initramfs != initramfsNative {
		return strings.Join(words, " ")
	}
	mounted, folder := map[string]bool{}, ""
	for _, q := range b.recipe.Disk.Partitions {
		mounted[q.Mount] = true
		if q.Mount != "/var" || q.Filesystem != "ext4" || q.ReadOnly {
			continue
		}
		folder = ":/var/lib/imgpipe"
		if !slices.ContainsFunc(strings.Fields(more), func(w string) bool {
			return strings.HasPrefix(w, "imgpipe.mount=") && (strings.HasSuffix(w, ":/var") || strings.Contains(w, ":/var:"))
		}) {
			words = append(words, "imgpipe.mount=PARTUUID="+identities(b.recipe).partition(q.Name).String()+":/var:"+q.Filesystem)
		}
	}
	for _, dir := range overlays {
		word := "imgpipe.overlay=" + dir
		if in := b.tree.Get(dir); in == nil || in.Kind != tree.Dir || mounted[dir] || said(word) || said("imgpipe.overlay=none") {
			continue
		}
		if folder != "" {
			word += folder + dir
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}
