// Package nocloud makes the file tree of a NoCloud seed: what cloud-init reads
// from a small volume labelled CIDATA on its first boot.
//
//	t, err := nocloud.Blank(epoch)            // valid, and asks for nothing
//	t, err := nocloud.Seed{MetaData: meta, UserData: user}.Tree(epoch)
//	volume, err := fat.New(t, fat.Options{Size: 8 << 20, SectorSize: 512, Label: nocloud.Label})
//
// It follows cloud-init's documentation of the datasource: meta-data and
// user-data must both be there, or the volume is no seed; network-config and
// vendor-data may be. It does not read what it is given.
package nocloud

import (
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Label is the volume label by which cloud-init finds a seed. It takes either
// case; FAT has upper case only.
const Label = "CIDATA"

// Seed is the files of a seed. Those that are needed and empty are blank.
type Seed struct {
	MetaData      []byte // YAML: instance-id, local-hostname, public-keys
	UserData      []byte // as cloud-init takes it: #cloud-config, a script, MIME
	NetworkConfig []byte // version 1 or 2; none: cloud-init tries DHCP on the first link
	VendorData    []byte // none unless given
}

const (
	// blankMeta names the instance as cloud-init itself does where meta-data
	// does not. A host name is left to the image.
	blankMeta = "instance-id: nocloud\n"
	// blankUser is an empty mapping: with just the first line cloud-init
	// warns of an "empty cloud config", and without it of data of no known type.
	blankUser = "#cloud-config\n{}\n"
)

// Blank is the tree of a seed that asks for nothing, which makes cloud-init
// come up at once and without a warning.
func Blank(mtime time.Time) (*tree.Tree, error) { return Seed{}.Tree(mtime) }

// Tree returns the files with the given time, readable by their owner alone:
// a seed may hold secrets. (FAT drops modes; other filesystems keep them.)
func (s Seed) Tree(mtime time.Time) (*tree.Tree, error) {
	if len(s.MetaData) == 0 {
		s.MetaData = []byte(blankMeta)
	}
	if len(s.UserData) == 0 {
		s.UserData = []byte(blankUser)
	}
	t := tree.New()
	if err := t.Put("/", &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: mtime}); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"meta-data", s.MetaData},
		{"user-data", s.UserData},
		{"network-config", s.NetworkConfig},
		{"vendor-data", s.VendorData},
	} {
		if len(f.data) == 0 {
			continue
		}
		if err := t.Put("/"+f.name, &tree.Inode{Mode: 0o600, MTime: mtime, Data: diskimage.Bytes(f.data)}); err != nil {
			return nil, err
		}
	}
	return t, nil
}
