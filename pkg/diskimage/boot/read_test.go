package boot_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
)

// TestOpen holds that what was built is read back, byte for byte.
func TestOpen(t *testing.T) {
	stubs := map[string][]byte{"made up": stub()}
	if b, err := os.ReadFile(debianStub); err == nil {
		stubs["Debian's"] = b
	}
	for name, s := range stubs {
		u := sample(s)
		b := build(t, u)
		c, err := boot.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		k, err := io.ReadAll(c.Kernel)
		if err != nil || !bytes.Equal(k, read(t, u.Kernel)) {
			t.Errorf("%s: the kernel has %d bytes, want %d; %v", name, len(k), u.Kernel.Size(), err)
		}
		if len(c.Initrds) != 1 {
			t.Fatalf("%s: %d initrds", name, len(c.Initrds))
		}
		i, err := io.ReadAll(c.Initrds[0])
		if err != nil || !bytes.Equal(i, read(t, u.Initrd)) {
			t.Errorf("%s: the initrd has %d bytes, want %d; %v", name, len(i), u.Initrd.Size(), err)
		}
		if c.Cmdline != strings.TrimSpace(u.Cmdline) || c.Uname != u.Uname {
			t.Errorf("%s: got %q, %q", name, c.Cmdline, c.Uname)
		}
	}
}

// TestOpenErrors holds that what is no UKI, or one that is cut short, is refused.
func TestOpenErrors(t *testing.T) {
	whole := build(t, sample(stub()))
	open := func(b []byte) error {
		_, err := boot.Open(bytes.NewReader(b), int64(len(b)))
		return err
	}
	at := int(binary.LittleEndian.Uint32(whole[60:]))
	count := int(binary.LittleEndian.Uint16(whole[at+6:]))
	table := at + 24 + int(binary.LittleEndian.Uint16(whole[at+20:]))
	twice := bytes.Clone(whole)
	for i := range count {
		if e := table + 40*i; string(bytes.TrimRight(twice[e:e+8], "\x00")) == ".osrel" {
			copy(twice[e:e+8], ".linux\x00\x00")
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "text": []byte(strings.Repeat("x", 4096)), "a boot loader": stub(), "cut": whole[:len(whole)-600], "two kernels": twice} {
		if err := open(b); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	for n := 0; n < table+40*count; n += 7 {
		if err := open(whole[:n]); err == nil {
			t.Errorf("the first %d bytes are taken", n)
		}
	}
}

func FuzzOpen(f *testing.F) {
	b := build(f, sample(stub()))
	f.Add(b)
	f.Add(b[:4096])
	f.Add(program(amd64, 0, sect{".linux", 0x1000, 100}, sect{".initrd", 0x2000, 60}, sect{".cmdline", 0x3000, 20}))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := boot.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, s := range append(c.Initrds, c.Kernel) {
			if got, err := io.ReadAll(s); err != nil || int64(len(got)) != s.Size() {
				t.Errorf("%d bytes of %d: %v", len(got), s.Size(), err)
			}
		}
	})
}
