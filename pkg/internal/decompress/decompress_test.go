package decompress

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// The tools that write such files judge.
func TestDecompress(t *testing.T) {
	plain := []byte(strings.Repeat("compress me ", 20_000))
	for _, args := range [][]string{{"cat"}, {"gzip", "-9"}, {"zstd", "-q"}, {"zstd", "-q", "--long=27"}, {"xz", "-1"}, {"xz", "-9"}, {"xz", "-T2", "--block-size=50000"},
		{"xz", "--check=none"}, {"bzip2"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Skip(err)
			}
			compress := func() []byte {
				cmd := exec.Command(args[0], args[1:]...)
				cmd.Stdin = bytes.NewReader(plain)
				b, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			b := compress()
			got, err := plainOf(b)
			if err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%d bytes, %v; want %d", len(got), err, len(plain))
			}
			if args[0] == "cat" {
				return
			}
			got, err = plainOf(append(b, compress()...)) // as pigz, pzstd and pixz write
			if err != nil || !bytes.Equal(got, append(bytes.Clone(plain), plain...)) {
				t.Errorf("two members: %d bytes, %v", len(got), err)
			}
			for _, n := range []int{len(b) / 2, len(b) - 1, 7} {
				if _, err := plainOf(b[:n]); err == nil {
					t.Errorf("the first %d of %d bytes are accepted", n, len(b))
				}
			}
			b[len(b)/2] ^= 0x40
			if got, err := plainOf(b); err == nil && !bytes.Equal(got, plain) && !strings.Contains(args[len(args)-1], "none") {
				t.Error("a flipped bit is accepted")
			}
		})
	}
}

func plainOf(b []byte) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestDecompressOfLittle(t *testing.T) {
	for _, s := range []string{"", "x", "\x1f", "BZ"} {
		if got, err := plainOf([]byte(s)); err != nil || string(got) != s {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
}

func TestDecompressBoundsMemory(t *testing.T) {
	// xz: a stream header and a block header that asks for a 4 GiB dictionary.
	x := []byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36")
	block := []byte{2, 0, 0x21, 1, 40, 0, 0, 0}
	x = append(append(x, block...), binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(block))...)
	_, err := plainOf(append(x, make([]byte, 64)...))
	if err == nil || !strings.Contains(err.Error(), "xz: dictionary of 4096 MiB, at most 128") {
		t.Errorf("xz: %v", err)
	}
	// zstd: a frame header with a window of 2 GiB (RFC 8878, section 3.1.1.1.2).
	_, err = plainOf(append([]byte("\x28\xb5\x2f\xfd\x00\xa8"), make([]byte, 64)...))
	if err == nil || !strings.Contains(err.Error(), "window") {
		t.Errorf("zstd: %v", err)
	}
}
