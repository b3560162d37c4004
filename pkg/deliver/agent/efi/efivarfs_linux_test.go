package efi_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
)

// TestFiles runs on a plain directory: the kernel's own efivarfs is judged in a
// virtual machine.
func TestFiles(t *testing.T) {
	if _, err := efi.Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, efi.ErrNone) {
		t.Errorf("no directory: %v", err)
	}
	dir := t.TempDir()
	if _, err := efi.Open(dir); !errors.Is(err, efi.ErrNone) {
		t.Errorf("an empty directory: %v", err)
	}
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for n, v := range firmware(t, option("pxe"), option("debian")) {
		write(n.String(), append([]byte{byte(v.Attributes), 0, 0, 0}, v.Data...))
	}
	write("README", nil)
	write(global("Boot0009").String(), nil) // what a failed write leaves
	vars, err := efi.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := vars.Get(global("Boot0009")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a variable of no bytes: %v", err)
	}
	s, p := deploy(t, vars, efi.Wish{Disk: partition("ours")})
	if p.Entry != 2 || len(s.Entries) != 3 {
		t.Errorf("got %v", s.Lines())
	}
	b, err := os.ReadFile(filepath.Join(dir, global("BootOrder").String()))
	if want := "\x07\x00\x00\x00\x00\x00\x02\x00\x01\x00"; err != nil || string(b) != want {
		t.Errorf("BootOrder %x, %v, want %x", b, err, want)
	}
	if err := vars.Delete(global("Boot0002")); err != nil {
		t.Error(err)
	}
	if err := vars.Delete(global("Boot0002")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted twice: %v", err)
	}
	for _, name := range []string{"", "../x", "a\x00"} {
		if vars.Set(global(name), 7, nil) == nil || vars.Delete(global(name)) == nil {
			t.Errorf("%q is a name", name)
		}
	}
}
