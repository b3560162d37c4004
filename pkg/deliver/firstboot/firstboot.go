// Package firstboot turns the config of one machine into the bytes of a small
// volume that cloud-init reads on the first boot.
//
//	table, gptOverlays, err := deliver.Fit(artifact.Table(), info, deliver.FitOptions{Config: true})
//	seed, err := firstboot.Overlay(table, firstboot.Config{UserData: user, Hostname: "db1"}, epoch)
//	want, err := deliver.NewWant(artifact.Index(), table, info, append(gptOverlays, seed))
//
// It guarantees that the same config gives the same bytes, that the reserved
// partition is replaced as a whole, so that nothing of an earlier config is
// left in it, and that a config without its place, or too large for it, is an
// error here, before anything is written. No error quotes a config: it may hold
// secrets. It mounts nothing. It does not judge what user-data asks for.
package firstboot

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/nocloud"
)

// Errors of Overlay that someone may branch on.
var (
	ErrNoPartition = errors.New("the image reserves no config partition")
	ErrTooLarge    = errors.New("the config does not fit")
	ErrMetaData    = errors.New("meta-data") // what is wrong follows, but nothing of what is in it
)

// Config is what one machine gets on top of the image. The zero value is a
// machine without any: a blank seed.
type Config struct {
	UserData      []byte // as cloud-init takes it
	MetaData      []byte // YAML mapping; completed from the fields below
	NetworkConfig []byte
	VendorData    []byte

	// InstanceID is what cloud-init knows the machine by: a new one makes it
	// run its first-boot steps. Empty: derived from everything else here.
	InstanceID string
	Hostname   string   // local-hostname; empty: the image's
	SSHKeys    []string // public-keys: lines of authorized_keys
}

// IsZero reports whether there is nothing to say to the machine.
func (c Config) IsZero() bool {
	return len(c.UserData)+len(c.MetaData)+len(c.NetworkConfig)+len(c.VendorData)+len(c.SSHKeys) == 0 &&
		c.InstanceID == "" && c.Hostname == ""
}

// Digest identifies a config without showing it. It covers all fields.
func (c Config) Digest() diskimage.Digest {
	h := sha256.New()
	parts := [][]byte{c.UserData, c.MetaData, c.NetworkConfig, c.VendorData, []byte(c.InstanceID), []byte(c.Hostname)}
	for _, k := range c.SSHKeys {
		parts = append(parts, []byte(k))
	}
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		h.Write(p)
	}
	return diskimage.Digest(h.Sum(nil))
}

// Overlay returns the seed of a config as bytes for the table's config
// partition, all of it. Its files have the time of epoch.
func Overlay(table *diskimage.Table, c Config, epoch time.Time) (diskimage.Overlay, error) {
	var p *diskimage.Partition
	if table != nil {
		p = table.Find(diskimage.RoleConfig)
	}
	if p == nil {
		return diskimage.Overlay{}, ErrNoPartition
	}
	if n := int64(len(c.UserData) + len(c.MetaData) + len(c.NetworkConfig) + len(c.VendorData)); n > p.Extent.Len {
		return diskimage.Overlay{}, fmt.Errorf("%w: %d bytes, the partition %s has %d", ErrTooLarge, n, p.Name, p.Extent.Len)
	}
	seed := nocloud.Seed{UserData: c.UserData, NetworkConfig: c.NetworkConfig, VendorData: c.VendorData}
	if !c.IsZero() {
		var err error
		if seed.MetaData, err = c.metaData(); err != nil {
			return diskimage.Overlay{}, err
		}
	}
	t, err := seed.Tree(epoch)
	if err != nil {
		return diskimage.Overlay{}, err
	}
	id := c.Digest()
	volume, err := fat.New(t, fat.Options{
		Size: p.Extent.Len, SectorSize: table.SectorSize, Label: nocloud.Label,
		VolumeID: binary.BigEndian.Uint32(id[:]), Epoch: epoch,
	})
	if err != nil {
		return diskimage.Overlay{}, fmt.Errorf("%w in the partition %s of %d bytes: %w", ErrTooLarge, p.Name, p.Extent.Len, err)
	}
	return diskimage.Overlay{Off: p.Extent.Off, Data: volume, Note: nocloud.Label}, nil
}

// metaData completes what was given. What it writes is JSON, which is YAML.
func (c Config) metaData() ([]byte, error) {
	m := map[string]any{}
	if len(c.MetaData) > 0 {
		if err := yaml.Unmarshal(c.MetaData, &m); err != nil {
			return nil, fmt.Errorf("%w: %snot a mapping in YAML", ErrMetaData, position(err))
		}
	}
	if m == nil {
		m = map[string]any{}
	}
	complete := true
	set := func(key string, value any, given bool) error {
		old, there := m[key]
		if there && given && fmt.Sprint(old) != fmt.Sprint(value) {
			return fmt.Errorf("%w: %s is there, and another was asked for", ErrMetaData, key)
		}
		if !there && (given || key == "instance-id") {
			m[key], complete = value, false
		}
		return nil
	}
	id := c.Digest()
	if err := errors.Join(
		set("instance-id", cmp.Or(c.InstanceID, "imgpipe-"+hex.EncodeToString(id[:8])), c.InstanceID != ""),
		set("local-hostname", c.Hostname, c.Hostname != ""),
		set("public-keys", c.SSHKeys, len(c.SSHKeys) > 0),
	); err != nil {
		return nil, err
	}
	if complete {
		return c.MetaData, nil // as it was given, comments and all
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%w: a value that JSON has not", ErrMetaData)
	}
	return append(b, '\n'), nil
}

// position is where YAML is wrong. The parser's own words are not passed on:
// they quote lines, which may hold secrets.
func position(err error) string {
	e, ok := errors.AsType[yaml.Error](err)
	if !ok || e.GetToken() == nil || e.GetToken().Position == nil {
		return ""
	}
	p := e.GetToken().Position
	return fmt.Sprintf("line %d, column %d: ", p.Line, p.Column)
}
