package initrd

import (
	"errors"
	"io"
	"strconv"
	"strings"
)

// corruption are the options of dm-verity by systemd's words for them.
var corruption = map[string]string{"restart-on-corruption": "restart_on_corruption", "panic-on-corruption": "panic_on_corruption"}

// superblock is what lies before a hash tree.
type superblock struct {
	uuid   string // 32 hexadecimal digits
	blocks int64  // of data, of 4096 bytes
	salt   string // hexadecimal
}

// readSuperblock reads version 1 of cryptsetup's (lib/verity/verity.c). What it says is not
// trusted: with another salt or size the root hash does not fit.
func readSuperblock(r io.ReaderAt) (superblock, error) {
	b, ok := read(r, 0, 512)
	switch {
	case !ok || string(b[:8]) != "verity\x00\x00":
		return superblock{}, errors.New("no dm-verity superblock")
	case le32(b[8:]) != 1 || le32(b[12:]) != 1:
		return superblock{}, errors.New("a dm-verity superblock of another version or hash type than 1")
	case text(b[32:64]) != "sha256" || le32(b[64:]) != 4096 || le32(b[68:]) != 4096:
		return superblock{}, errors.New("dm-verity with another hash than sha256, or other blocks than of 4096 bytes")
	}
	s := superblock{uuid: hexOf(b[16:32]), blocks: int64(le64(b[72:])), salt: "-"}
	n := le16(b[80:])
	if s.blocks <= 0 || s.blocks > 1<<40 || n > 256 {
		return superblock{}, errors.New("a dm-verity superblock with sizes that cannot be")
	}
	if n > 0 {
		s.salt = hexOf(b[88 : 88+n])
	}
	return s, nil
}

// target is the parameters of the kernel's verity target
// (Documentation/admin-guide/device-mapper/verity.rst).
func (s superblock) target(data, hash, root string, options []string) string {
	words := []string{"1", data, hash, "4096", "4096", strconv.FormatInt(s.blocks, 10), "1", "sha256", root, s.salt}
	if len(options) > 0 {
		words = append(words, strconv.Itoa(len(options)))
		for _, o := range options {
			words = append(words, corruption[o])
		}
	}
	return strings.Join(words, " ")
}

// The ioctls of /dev/mapper/control (include/uapi/linux/dm-ioctl.h).
const (
	dmHeader   = 312 // bytes of struct dm_ioctl
	dmTarget   = 40  // and of struct dm_target_spec
	dmCreate   = 3
	dmRemove   = 4
	dmSuspend  = 6
	dmLoad     = 9
	dmReadOnly = 1
)

// dmRequest is a struct dm_ioctl, with a table of one target if it has a type.
func dmRequest(name, uuid, kind, parameters string, sectors int64) []byte {
	b := make([]byte, dmHeader)
	if kind != "" {
		b = append(b, make([]byte, dmTarget+(len(parameters)+8)&^7)...)
	}
	put32(b, 4) // version 4.0.0
	put32(b[12:], uint32(len(b)))
	put32(b[16:], dmHeader)
	copy(b[48:48+127], name)
	copy(b[176:176+128], uuid)
	if kind == "" {
		return b
	}
	put32(b[20:], 1) // targets
	put32(b[28:], dmReadOnly)
	t := b[dmHeader:]
	put64(t[8:], uint64(sectors))
	put32(t[20:], uint32(len(t)))
	copy(t[24:40], kind)
	copy(t[dmTarget:], parameters)
	return b
}

// dmMinor is the minor of the device that a request was answered with (new_encode_dev).
func dmMinor(b []byte) int {
	dev := le64(b[40:])
	return int(dev&0xff | dev>>12&0xfff00)
}
