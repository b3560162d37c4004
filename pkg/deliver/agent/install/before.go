//go:build linux

package install

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/fatfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/nocloud"
)

// before is what a disk tells of the deploy before this one. Nothing of it is
// trusted: it keeps a disk from being written, and never has one written.
type before struct {
	bootable bool             // LBA 0 is not zeros
	table    *diskimage.Table // nil: no GPT
	instance string           // of the config volume's meta-data
	epoch    time.Time        // of the image that the config volume was made with
}

// newer reports whether the disk holds an image of the same name, architecture
// and flavour (whose disk GUID follows from those) that is younger than im. The
// files of the config volume have the time of the image's epoch, to two seconds.
func (b before) newer(im *Image) bool {
	const resolution = 2 * time.Second // of FAT
	return im.Table != nil && b.table != nil && b.table.DiskGUID == im.Table.DiskGUID && b.epoch.Sub(im.Epoch) > resolution
}

// maxMetaData bounds what is read of a meta-data.
const maxMetaData = 1 << 20

// readBefore looks for a config volume. What cannot be read is not there.
func readBefore(disk deliver.Target) (b before) {
	boot := make([]byte, disk.SectorSize())
	if _, err := disk.ReadAt(boot, 0); err != nil {
		return b
	}
	b.bootable = len(bytes.TrimLeft(boot, "\x00")) > 0
	table, err := gpt.Parse(disk, disk.Size(), disk.SectorSize())
	if err != nil {
		return b
	}
	b.table = table
	for _, p := range table.Partitions {
		fs, err := fatfs.Open(io.NewSectionReader(disk, p.Extent.Off, p.Extent.Len))
		if err != nil || fs.Label() != nocloud.Label {
			continue
		}
		t, err := fs.Tree()
		if err != nil {
			continue
		}
		n := t.Get("/meta-data")
		if n == nil {
			continue
		}
		text, err := t.ReadFile("/meta-data", maxMetaData)
		if err != nil {
			continue
		}
		var m struct {
			InstanceID string `yaml:"instance-id"`
		}
		if yaml.Unmarshal(text, &m) == nil {
			b.instance, b.epoch = m.InstanceID, n.MTime
			return b
		}
	}
	return b
}

// WireDisk is a device in the words of the protocol.
func WireDisk(d *blockdev.Device) wire.Disk {
	w := wire.Disk{Name: d.Name, Size: d.Size, SectorSize: int(d.SectorSize), Model: d.Model, Serial: d.Serial, WWN: d.WWN,
		Transport: d.Transport, Rotational: d.Rotational, ByPath: d.ByPath}
	var holds []string
	if d.Table != nil {
		holds = append(holds, d.Table.Type)
	}
	for _, s := range d.Signatures {
		holds = append(holds, s.Name)
	}
	for _, p := range d.Partitions {
		for _, s := range p.Signatures {
			holds = append(holds, s.Name)
		}
	}
	w.Holds = strings.Join(holds[:min(len(holds), 16)], ", ")
	return w
}

func describe(d *blockdev.Device) string {
	s := fmt.Sprintf("%s, %.1f GB in sectors of %d", d.Path, float64(d.Size)/1e9, d.SectorSize)
	for _, t := range []string{d.Model, d.Serial} {
		if t != "" {
			s += ", " + t
		}
	}
	return s
}
