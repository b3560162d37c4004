package grub

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// MenuModules are what a Menu needs, whatever it says: the partition table and
// filesystems, the kernel's loader, and a shell that can say what is wrong.
var MenuModules = []string{
	"biosdisk", "part_gpt", "fat", "ext2", "normal", "configfile", "test", "linux", "loopback", "regexp",
	"serial", "terminal", "echo", "ls", "cat", "minicmd", "sleep", "reboot", "halt",
}

// Menu is a grub.cfg that needs no module beside MenuModules.
type Menu struct {
	Timeout time.Duration // for which it shows; 0 starts the first entry at once
	Serial  *Serial       // where else it shows
	Entries []Entry       // the first is the default
}

// Serial is a serial port.
type Serial struct {
	Unit  int
	Speed int // bits a second
}

// Entry starts a kernel. Paths are on the filesystem that grub.cfg is on.
type Entry struct {
	ID      string
	Title   string
	Cmdline string
	Kernel  string // with Initrd: files
	Initrd  string
	UKI     *UKI // instead: both are in it
}

// UKI is where a unified kernel image has its parts.
type UKI struct {
	Path           string // may have * and ? in it: systemd-boot changes a counter in names
	Kernel, Initrd Blocks // no Initrd: zero
}

// Blocks are whole sectors of a file.
type Blocks struct{ First, Count int64 }

// Config returns the text.
func (m Menu) Config() (string, error) {
	if len(m.Entries) == 0 {
		return "", errors.New("grub: a menu without entries")
	}
	var b strings.Builder
	b.WriteString("# made by imgbuild; docs/loaders.md\n")
	if s := m.Serial; s != nil { // a machine without that port keeps its screen
		fmt.Fprintf(&b, "if serial --unit=%d --speed=%d; then\n\tterminal_input --append serial\n\tterminal_output --append serial\nfi\n", s.Unit, s.Speed)
	}
	fmt.Fprintf(&b, "set timeout=%d\nset timeout_style=%s\nset default=0\n", int64(m.Timeout.Seconds()), map[bool]string{true: "menu", false: "hidden"}[m.Timeout > 0])
	for _, e := range m.Entries {
		if err := e.config(&b); err != nil {
			return "", fmt.Errorf("grub: entry %q: %w", e.ID, err)
		}
	}
	return b.String(), nil
}

func (e Entry) config(b *strings.Builder) error {
	cmdline, err := quote(e.Cmdline)
	if err != nil {
		return err
	}
	var texts [5]string
	for i, s := range []string{e.Title, e.ID, e.Kernel, e.Initrd} {
		if texts[i], err = word(s); err != nil {
			return err
		}
	}
	fmt.Fprintf(b, "menuentry %s --id %s {\n", texts[0], texts[1])
	if u := e.UKI; u == nil {
		fmt.Fprintf(b, "\tlinux %s%s\n", texts[2], cmdline)
		if e.Initrd != "" {
			fmt.Fprintf(b, "\tinitrd %s\n", texts[3])
		}
	} else {
		if strings.ContainsAny(u.Path, " '\"\\$;{}()\n\x00") {
			return fmt.Errorf("%q: a character that is not for a path here", u.Path)
		}
		if strings.ContainsAny(u.Path, "*?") {
			fmt.Fprintf(b, "\tfor f in ($root)%s; do set file=\"$f\"; done\n\tloopback uki \"$file\"\n", u.Path)
		} else {
			fmt.Fprintf(b, "\tloopback uki %s\n", u.Path)
		}
		fmt.Fprintf(b, "\tlinux (uki)%d+%d%s\n", u.Kernel.First, u.Kernel.Count, cmdline)
		if u.Initrd.Count > 0 {
			fmt.Fprintf(b, "\tinitrd (uki)%d+%d\n", u.Initrd.First, u.Initrd.Count)
		}
	}
	b.WriteString("}\n")
	return nil
}

// quote writes a kernel's command line as words of GRUB's shell.
func quote(cmdline string) (string, error) {
	if i := strings.IndexAny(cmdline, CannotPass); i >= 0 {
		return "", fmt.Errorf("command line %q: GRUB does not pass %q unchanged", cmdline, cmdline[i:i+1])
	}
	var b strings.Builder
	for _, f := range fields(cmdline) {
		w, err := word(f)
		if err != nil {
			return "", err
		}
		b.WriteByte(' ')
		b.WriteString(w)
	}
	return b.String(), nil
}

// CannotPass are the characters that GRUB changes on a kernel's command line: it
// puts a backslash before them (grub-core/lib/cmdline.c), which Linux keeps.
const CannotPass = `\'`

// fields splits at the spaces that are not between double quotes, as the kernel
// does (lib/cmdline.c, next_arg), and drops the quotes: GRUB puts its own around a
// word with spaces, and Linux reads name="a b" and "name=a b" alike.
func fields(cmdline string) (out []string) {
	quoted := false
	for _, f := range strings.FieldsFunc(cmdline, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t')
	}) {
		out = append(out, strings.ReplaceAll(f, `"`, ""))
	}
	return out
}

// word is a text as one word, nothing in it having a meaning for the shell.
func word(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", fmt.Errorf("%q: a line feed or NUL in it", s)
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'", nil
}
