package initrd

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/verity"
)

func superblockOf(t testing.TB, salt []byte) []byte {
	t.Helper()
	h, err := verity.New(t.Context(), diskimage.Bytes(make([]byte, 300*4096)), verity.Options{UUID: diskimage.DeriveGUID("v"), Salt: salt})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 512)
	if _, err := h.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSuperblock(t *testing.T) {
	s, err := readSuperblock(bytes.NewReader(superblockOf(t, []byte{1, 0xab})))
	if err != nil {
		t.Fatal(err)
	}
	if want := "1 254:2 254:3 4096 4096 300 1 sha256 R 01ab 1 restart_on_corruption"; s.target("254:2", "254:3", "R", []string{"restart-on-corruption"}) != want {
		t.Errorf("table %q, want %q", s.target("254:2", "254:3", "R", []string{"restart-on-corruption"}), want)
	}
	if s, err = readSuperblock(bytes.NewReader(superblockOf(t, nil))); err != nil || !strings.HasSuffix(s.target("a", "b", "R", nil), " sha256 R -") {
		t.Errorf("without a salt: %q, %v", s.target("a", "b", "R", nil), err)
	}
	for off, want := range map[int]string{0: "no dm-verity", 8: "version", 12: "version", 32: "another hash", 64: "another hash", 68: "another hash", 79: "sizes", 81: "sizes"} {
		b := superblockOf(t, []byte{1})
		b[off] ^= 0x40
		if _, err := readSuperblock(bytes.NewReader(b)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("byte %d changed: %v, want %q", off, err, want)
		}
	}
	if _, err := readSuperblock(bytes.NewReader(nil)); err == nil {
		t.Error("an empty device has a superblock")
	}
}

// TestRequestIsWhatTheKernelReads takes a request apart as linux/dm-ioctl.h has it.
func TestRequestIsWhatTheKernelReads(t *testing.T) {
	b := dmRequest("root", "CRYPT-VERITY-x-root", "verity", "1 a b", 800)
	le := binary.LittleEndian
	if le.Uint32(b) != 4 || le.Uint32(b[12:]) != uint32(len(b)) || le.Uint32(b[16:]) != 312 || le.Uint32(b[20:]) != 1 || le.Uint32(b[28:]) != 1 ||
		text(b[48:176]) != "root" || text(b[176:305]) != "CRYPT-VERITY-x-root" {
		t.Errorf("header % x", b[:312])
	}
	target := b[312:]
	if le.Uint64(target) != 0 || le.Uint64(target[8:]) != 800 || int(le.Uint32(target[20:])) != len(target) || text(target[24:40]) != "verity" ||
		text(target[40:]) != "1 a b" || len(target)%8 != 0 || target[len(target)-1] != 0 {
		t.Errorf("target %q", target)
	}
	for _, n := range []int{7, 8, 9} { // the parameters always end with a NUL
		if b := dmRequest("r", "", "verity", strings.Repeat("x", n), 1); b[len(b)-1] != 0 || text(b[352:]) != strings.Repeat("x", n) {
			t.Errorf("%d bytes of parameters: % x", n, b[312:])
		}
	}
	for dev, want := range map[uint64]int{0xfd00: 0, 0xfd07: 7, 0x100fd23: 0x1023} { // bits 20 and up are the minor's from bit 8 on
		put64(b[40:], dev)
		if got := dmMinor(b); got != want {
			t.Errorf("device %#x has minor %#x, want %#x", dev, got, want)
		}
	}
}
