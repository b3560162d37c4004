package oci

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Config says what an image is: docs/format.md, section 3.
type Config struct {
	OS           string    `json:"os"`           // linux
	Architecture string    `json:"architecture"` // amd64, arm64
	Name         string    `json:"name"`
	Version      string    `json:"version"` // the recipe's release
	Flavour      string    `json:"flavour,omitempty"`
	Epoch        time.Time `json:"epoch"`
	// Requires names features without which the image must not be used.
	Requires   []string          `json:"requires,omitempty"`
	Disk       DiskConfig        `json:"disk"`
	Compressor Compressor        `json:"compressor"`       // set by Pack
	Recipe     *diskimage.Digest `json:"recipe,omitempty"` // of the resolved recipe
	Lock       *diskimage.Digest `json:"lock,omitempty"`
	Boot       *BootConfig       `json:"boot,omitempty"`
	Test       *TestConfig       `json:"test,omitempty"`
	Archives   []Archive         `json:"archives,omitempty"`
	Packages   []Package         `json:"packages,omitempty"`
}

// DiskConfig describes the disk. Pack sets size, chunk size and digests.
type DiskConfig struct {
	Size       int64            `json:"size"`       // bytes
	SectorSize int64            `json:"sectorSize"` // bytes: 512 (also for 0 in Pack) or 4096
	ChunkSize  int64            `json:"chunkSize"`
	Digest     diskimage.Digest `json:"digest"` // see DiskDigest
	Index      diskimage.Digest `json:"index"`  // of the index blob
	Table      *diskimage.Table `json:"table,omitempty"`
	// Of an imported disk without a GPT, at most one of these; only to be shown.
	MBR        *diskimage.MBR        `json:"mbr,omitempty"`
	Filesystem *diskimage.Filesystem `json:"filesystem,omitempty"` // of the whole disk
}

// Compressor names what made the frames. Equal values compress equal chunks to
// equal bytes.
type Compressor struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Level   string `json:"level"`
}

// BootConfig is the resolved boot section of the recipe.
type BootConfig struct {
	Firmware string `json:"firmware"`
	Loader   string `json:"loader"`
	Cmdline  string `json:"cmdline,omitempty"`
}

// TestConfig is the resolved test section of the recipe.
type TestConfig struct {
	TimeoutSeconds int64    `json:"timeoutSeconds"`
	Expect         []string `json:"expect,omitempty"`
	Reject         []string `json:"reject,omitempty"`
}

// Archive is the state of a package archive that the image was made from.
type Archive struct {
	Suite  string           `json:"suite"`  // bookworm-security
	Digest diskimage.Digest `json:"digest"` // of its signed index: Debian's InRelease
}

// Package is one package in the image.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture,omitempty"`
}

// Validate checks the config by itself; Open also compares it with the index.
func (c *Config) Validate() error {
	if c.OS == "" || c.Architecture == "" || c.Name == "" {
		return fmt.Errorf("config: os, architecture and name must be set")
	}
	for _, r := range c.Requires {
		return fmt.Errorf("config: the image requires %q, which this version of imgpipe does not know", r)
	}
	if y := c.Epoch.UTC().Year(); y < 1970 || y > 9999 {
		return fmt.Errorf("config: epoch %v is not in the years 1970 to 9999", c.Epoch)
	}
	d := c.Disk
	if err := checkDisk(d.Size, d.SectorSize); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if d.MBR != nil {
		if err := d.MBR.Validate(d.Size); err != nil {
			return fmt.Errorf("config: %w", err)
		}
	}
	if d.Table == nil {
		return nil
	}
	if err := d.Table.Validate(); err != nil {
		return fmt.Errorf("config: table: %w", err)
	}
	if d.Table.DiskSize != d.Size || d.Table.SectorSize != d.SectorSize {
		return fmt.Errorf("config: table is for %d bytes in sectors of %d, the disk has %d in sectors of %d",
			d.Table.DiskSize, d.Table.SectorSize, d.Size, d.SectorSize)
	}
	return nil
}

// matches compares the config with the index that the same manifest names.
func (c *Config) matches(x *diskimage.Index, index diskimage.Digest) error {
	d := c.Disk
	if d.Size != x.DiskSize || d.SectorSize != x.SectorSize || d.ChunkSize != x.ChunkSize ||
		d.Digest != x.DiskDigest || d.Index != index {
		return fmt.Errorf("config describes another disk (%v) than the index (%v)", d.Digest, x.DiskDigest)
	}
	return nil
}

func checkDisk(size, sector int64) error {
	if sector != 512 && sector != 4096 {
		return fmt.Errorf("sector size %d: want 512 or 4096", sector)
	}
	if size <= 0 || size > MaxDisk || size%sector != 0 {
		return fmt.Errorf("disk size %d is not a positive multiple of the %d-byte sector, at most %d", size, sector, int64(MaxDisk))
	}
	return nil
}

func (c *Config) encode() ([]byte, error) {
	c.Epoch = c.Epoch.UTC()
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(b) > MaxConfig {
		return nil, fmt.Errorf("config has %d bytes, at most %d are allowed", len(b), MaxConfig)
	}
	return b, nil
}

// ParseConfig reads and validates the config of an artifact.
func ParseConfig(b []byte) (*Config, error) {
	if len(b) > MaxConfig {
		return nil, fmt.Errorf("config has %d bytes, at most %d are allowed", len(b), MaxConfig)
	}
	c := new(Config)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}
