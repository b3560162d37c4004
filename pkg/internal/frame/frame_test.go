package frame

import (
	"bytes"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func chunks(n int) [][]byte {
	rnd := rand.New(rand.NewPCG(7, 7))
	out := make([][]byte, n)
	for i := range out {
		size := []int{1, 100, 255, 256, 1000, 4096, 65535, 65536, 65536, 65791, 65792}[rnd.IntN(11)]
		out[i] = make([]byte, size)
		for j := range out[i] {
			out[i][j] = byte(rnd.Uint32() >> (rnd.Uint32() % 32))
		}
		if rnd.IntN(3) == 0 {
			copy(out[i][size/2:], out[i])
		}
	}
	return out
}

func TestFramesDoNotDependOnWhatCameBefore(t *testing.T) {
	all := chunks(700) // the encoder clears its tables about every 250
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression} {
		long, err := NewEncoder(level)
		if err != nil {
			t.Fatal(err)
		}
		dec, err := NewDecoder()
		if err != nil {
			t.Fatal(err)
		}
		defer dec.Close()
		for i, c := range all {
			got := long.Append(nil, c)
			if int64(len(got)) > MaxLen(int64(len(c))) {
				t.Errorf("%d bytes became %d, at most %d are allowed", len(c), len(got), MaxLen(int64(len(c))))
			}
			plain := make([]byte, len(c))
			if err := dec.Decode(plain, got); err != nil || !bytes.Equal(plain, c) {
				t.Fatalf("chunk %d decodes differently (%v)", i, err)
			}
			if i%50 != 0 {
				continue
			}
			fresh, err := NewEncoder(level)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(fresh.Append(nil, c), got) {
				t.Fatalf("level %v: chunk %d has another frame after %d others", level, i, i)
			}
		}
	}
}

func TestZeroFramesAreWhatZstdAccepts(t *testing.T) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(MaxZeros), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	tool, _ := exec.LookPath("zstd")
	for _, n := range []int64{1, 255, 256, 4096, 65791, 65792, 128 << 10, 128<<10 + 1, 1 << 20, MaxZeros - 1, MaxZeros, MaxZeros + 1, 3*MaxZeros + 5} {
		b := AppendZeros(nil, n)
		if int64(len(b)) != ZerosLen(n) {
			t.Errorf("%d zeros: %d bytes, ZerosLen says %d", n, len(b), ZerosLen(n))
		}
		out, err := dec.DecodeAll(b, nil)
		if err != nil || !bytes.Equal(out, make([]byte, n)) {
			t.Errorf("%d zeros decode to %d bytes, %v", n, len(out), err)
		}
		if tool == "" {
			continue
		}
		cmd := exec.Command(tool, "-d", "-q", "-c", "--memory=8MB")
		cmd.Stdin = bytes.NewReader(b)
		if out, err := cmd.Output(); err != nil || !bytes.Equal(out, make([]byte, n)) {
			t.Errorf("%d zeros: zstd gives %d bytes, %v", n, len(out), err)
		}
	}
	if tool == "" {
		t.Skip("zstd is not installed: it did not judge")
	}
}

func TestDecodeRefuses(t *testing.T) {
	enc, err := NewEncoder(zstd.SpeedDefault)
	if err != nil {
		t.Fatal(err)
	}
	plain := bytes.Repeat([]byte("chunk"), 1000)
	good := enc.Append(nil, plain)
	other := func(o ...zstd.EOption) []byte {
		e, err := zstd.NewWriter(nil, o...)
		if err != nil {
			t.Fatal(err)
		}
		return e.EncodeAll(plain, nil)
	}
	huge := append([]byte(magic), 0xe0, 0, 0, 0, 0, 0, 1, 0, 0) // says 2^40 bytes
	for name, src := range map[string][]byte{
		"empty":     nil,
		"cut":       good[:len(good)-1],
		"header":    good[:6],
		"twice":     append(bytes.Clone(good), good...),
		"rubbish":   append(bytes.Clone(good), 1, 2, 3),
		"checksum":  other(zstd.WithEncoderCRC(true), zstd.WithSingleSegment(true)),
		"window":    other(zstd.WithEncoderCRC(false), zstd.WithSingleSegment(false)),
		"skippable": append([]byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"), good...),
		"huge":      huge,
	} {
		dec, err := NewDecoder()
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode(make([]byte, len(plain)), src); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if err := dec.Decode(make([]byte, len(plain)+1), good); err == nil {
			t.Errorf("%s: another length is accepted", name)
		}
		if err := dec.Decode(make([]byte, len(plain)), good); err != nil {
			t.Errorf("%s: the good frame after it: %v", name, err)
		}
		dec.Close()
	}
}

func FuzzDecode(f *testing.F) {
	enc, err := NewEncoder(zstd.SpeedDefault)
	if err != nil {
		f.Fatal(err)
	}
	dec, err := NewDecoder()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(enc.Append(nil, bytes.Repeat([]byte("chunk"), 1000)))
	f.Add(enc.Append(nil, []byte("x")))
	dst := make([]byte, 5000)
	guard := make([]byte, 64)
	buf := append(dst, guard...)
	f.Fuzz(func(t *testing.T, src []byte) {
		clear(buf)
		_ = dec.Decode(buf[:5000], src) // any result, but nothing beyond the chunk
		if !bytes.Equal(buf[5000:], guard) {
			t.Fatal("wrote beyond the chunk")
		}
	})
}
