package efi_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
)

// dumps are load options as firmware has made them: a line each, hexadecimal,
// then the device path that is meant.
func dumps(t testing.TB) map[string]string {
	t.Helper()
	b, err := os.ReadFile("testdata/entries.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if data, path, ok := strings.Cut(strings.TrimSpace(line), " "); ok && data[0] != '#' {
			out[data] = path
		}
	}
	return out
}

func TestRealEntries(t *testing.T) {
	for data, want := range dumps(t) {
		b, err := hex.DecodeString(data)
		if err != nil {
			t.Fatal(err)
		}
		o, err := efi.ParseLoadOption(b)
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		again, err := o.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q: encodes to %x, %v, and was %x", o.Description, again, err, b)
		}
		if got := o.PathString(); got != want {
			t.Errorf("%q: path %s, want %s", o.Description, got, want)
		}
		if network := strings.Contains(want, "MAC("); o.Network() != network {
			t.Errorf("%q: network is %v", o.Description, o.Network())
		}
	}
}

func TestParseLoadOptionErrors(t *testing.T) {
	good, err := option("pxe").Encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(good) {
		if _, err := efi.ParseLoadOption(good[:n]); err == nil {
			t.Errorf("cut to %d of %d bytes it is taken", n, len(good))
		}
	}
	for want, b := range map[string][]byte{
		"not UTF-16":                   {1, 0, 0, 0, 0, 0, 0, 0xd8, 0, 0},
		"a node of 3 bytes":            {1, 0, 0, 0, 4, 0, 0, 0, 4, 1, 3, 0},
		"1 bytes behind its last node": {1, 0, 0, 0, 5, 0, 0, 0, 0x7f, 0xff, 4, 0, 9},
		"of at most 65536":             make([]byte, 65537),
	} {
		if _, err := efi.ParseLoadOption(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// FuzzLoadOption has what is accepted encode to the same bytes.
func FuzzLoadOption(f *testing.F) {
	for data := range dumps(f) {
		b, _ := hex.DecodeString(data)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := efi.ParseLoadOption(b)
		if err != nil {
			return
		}
		again, err := o.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x became %x, %v", b, again, err)
		}
		o.Network()
		o.Partition()
		for _, c := range o.PathString() {
			if c < ' ' || c == 0x7f {
				t.Errorf("%q disturbs a terminal", o.PathString())
			}
		}
	})
}

func TestRead(t *testing.T) {
	vars := firmware(t, option("pxe"))
	vars[global("SecureBoot")] = efi.Variable{Attributes: 6, Data: []byte{1}}
	vars[global("SetupMode")] = efi.Variable{Attributes: 6, Data: []byte{0}}
	vars[global("BootNext")] = efi.Variable{Attributes: 7, Data: []byte{0x34, 0x12}}
	s := state(t, vars)
	if s.Secure.String() != "enabled" || s.Next == nil || *s.Next != 0x1234 || s.Current != nil || len(s.Lines()) != 4 {
		t.Errorf("got %v", s.Lines())
	}
	vars[global("SecureBoot")] = efi.Variable{Attributes: 6, Data: []byte{0}}
	if got := state(t, vars).Secure.String(); got != "disabled" {
		t.Errorf("got %s", got)
	}
	vars[global("SetupMode")] = efi.Variable{Attributes: 6, Data: []byte{1}}
	if got := state(t, vars).Secure.String(); got != "setup mode" {
		t.Errorf("got %s", got)
	}
	if got := state(t, efi.Memory{}).Secure.String(); got != "unknown" {
		t.Errorf("got %s", got)
	}
	vars[global("BootOrder")] = efi.Variable{Attributes: 7, Data: []byte{1}}
	if _, problems := efi.Read(vars); len(problems) != 1 {
		t.Errorf("an odd order: %v", problems)
	}
}
