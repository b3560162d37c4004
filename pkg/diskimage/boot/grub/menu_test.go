package grub

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMenu(t *testing.T) {
	m := Menu{Timeout: 3 * time.Second, Serial: &Serial{Unit: 1, Speed: 9600}, Entries: []Entry{
		{ID: "x", Title: "It's one", Cmdline: `root=PARTUUID=1 ro  dyndbg="file a.c +p" $x`, Kernel: "/boot/vmlinuz-1", Initrd: "/boot/initrd.img-1"},
		{ID: "y", Title: "two", Cmdline: "quiet", UKI: &UKI{Path: "/EFI/BOOT/BOOTX64.EFI", Kernel: Blocks{128, 9000}, Initrd: Blocks{9128, 7}}},
		{ID: "z", Title: "three", UKI: &UKI{Path: "/EFI/Linux/a_1*.efi", Kernel: Blocks{128, 9000}}},
	}}
	got, err := m.Config()
	if err != nil {
		t.Fatal(err)
	}
	const want = `# made by imgbuild; docs/loaders.md
if serial --unit=1 --speed=9600; then
	terminal_input --append serial
	terminal_output --append serial
fi
set timeout=3
set timeout_style=menu
set default=0
menuentry 'It'\''s one' --id 'x' {
	linux '/boot/vmlinuz-1' 'root=PARTUUID=1' 'ro' 'dyndbg=file a.c +p' '$x'
	initrd '/boot/initrd.img-1'
}
menuentry 'two' --id 'y' {
	loopback uki /EFI/BOOT/BOOTX64.EFI
	linux (uki)128+9000 'quiet'
	initrd (uki)9128+7
}
menuentry 'three' --id 'z' {
	for f in ($root)/EFI/Linux/a_1*.efi; do set file="$f"; done
	loopback uki "$file"
	linux (uki)128+9000
}
`
	if got != want {
		t.Errorf("got:\n%s", got)
	}
	judgeScript(t, got)
}

// judgeScript lets grub-script-check parse it.
func judgeScript(t *testing.T, text string) {
	t.Helper()
	program := os.Getenv("IMGPIPE_GRUB_SCRIPT_CHECK")
	if program == "" {
		program = "grub-script-check"
	}
	if _, err := exec.LookPath(program); err != nil {
		t.Log("not judged: apt-get install grub-common")
		return
	}
	name := filepath.Join(t.TempDir(), "grub.cfg")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, name).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestNothingGetsOutOfItsWord: no text of a recipe is a command of GRUB's.
func TestNothingGetsOutOfItsWord(t *testing.T) {
	for _, e := range []Entry{
		{Title: "a\nreboot"}, {ID: "a\x00"}, {Cmdline: "a\nb"}, {Cmdline: `a\b`}, {Cmdline: "it's"},
		{UKI: &UKI{Path: "/EFI/a; reboot"}}, {UKI: &UKI{Path: "/EFI/$x"}},
	} {
		if got, err := (Menu{Entries: []Entry{e}}).Config(); err == nil {
			t.Errorf("%+v: no error:\n%s", e, got)
		}
	}
	if _, err := (Menu{}).Config(); err == nil || !strings.Contains(err.Error(), "without entries") {
		t.Errorf("no entries: %v", err)
	}
}
