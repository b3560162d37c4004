package build

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// efiNames is what differs between architectures: where firmware looks for a
// disk's program when no boot entry names one (UEFI 2.10, section 3.5.1.1), and
// what systemd-boot is called.
var efiNames = map[string]struct{ fallback, loader string }{
	"amd64": {"/EFI/BOOT/BOOTX64.EFI", "systemd-bootx64.efi"},
	"arm64": {"/EFI/BOOT/BOOTAA64.EFI", "systemd-bootaa64.efi"},
}

// Where systemd keeps its loader in a tree, and what its files may have.
const (
	loaderDir  = "/usr/lib/systemd/boot/efi/"
	blessBoot  = "systemd-bless-boot"
	maxLoader  = 16 << 20
	maxKeyFile = 1 << 20
)

// espFile is a file of the EFI system partition.
type espFile struct {
	path string
	data diskimage.Disk
}

func (b *builder) onESP(path string, data diskimage.Disk) { b.esp = append(b.esp, espFile{path, data}) }

// espTree is what the EFI system partition holds.
func (b *builder) espTree() (*tree.Tree, error) {
	t := tree.New()
	for _, f := range b.esp {
		for dir := path.Dir(f.path); dir != "/"; dir = path.Dir(dir) {
			if err := t.Put(dir, &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: b.recipe.Epoch}); err != nil {
				return nil, err
			}
		}
		if err := t.Put(f.path, &tree.Inode{Mode: 0o644, MTime: b.recipe.Epoch, Data: f.data}); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// menuEntry is one way to start the image.
type menuEntry struct{ name, title, cmdline string }

// entries lists them, the image's own first: its name is "".
func (b *builder) entries() []menuEntry {
	r := b.recipe
	own := r.Name + " " + r.Release
	out := []menuEntry{{"", own, b.cmdline(r.Boot.Cmdline)}}
	for _, e := range r.Boot.Entries {
		title := e.Title
		if title == "" {
			title = own + " (" + e.Name + ")"
		}
		out = append(out, menuEntry{e.Name, title, b.cmdline(e.Cmdline)})
	}
	return out
}

// programs makes what UEFI starts (docs/loaders.md): the UKI alone, or
// systemd-boot and a UKI for each entry.
func (b *builder) programs(u boot.UKI) error {
	s, err := b.signer()
	if err != nil {
		return err
	}
	if s != nil {
		b.image.Record.SecureBoot = fmt.Sprintf("%x", sha256.Sum256(s.Cert.Raw))
	}
	menu, release := b.recipe.Boot.Loader == "systemd-boot", u.OSRelease
	for i, e := range b.entries() {
		u.Cmdline = e.cmdline
		at := efiNames[b.recipe.Arch].fallback
		if menu {
			at = b.ukiName(e)
			u.OSRelease = setRelease(release, "PRETTY_NAME", e.title)
			if e.name != "" {
				u.OSRelease = setRelease(u.OSRelease, "IMAGE_ID", b.recipe.Name+"-"+e.name)
			}
		}
		image, err := u.Build()
		if err == nil {
			image, err = signProgram(image, s)
		}
		if err != nil {
			return err
		}
		b.onESP(at, image)
		if i == 0 {
			b.image.made.bootPath, b.image.made.uki = at, image
		}
	}
	if menu {
		return b.systemdBoot(s)
	}
	return nil
}

// ukiName is where systemd-boot looks for an entry's UKI. The entry's name comes
// before the release: for systemd-sysupdate what follows NAME_ is a release.
func (b *builder) ukiName(e menuEntry) string {
	r, name, tries := b.recipe, b.recipe.Name, ""
	if e.name != "" {
		name += "-" + e.name
	} else if r.Boot.Tries > 0 {
		tries = fmt.Sprintf("+%d", r.Boot.Tries)
	}
	return "/EFI/Linux/" + name + "_" + r.Release + tries + ".efi"
}

// systemdBoot puts the loader and its configuration beside the UKIs.
func (b *builder) systemdBoot(s *authenticode.Signer) error {
	r, names := b.recipe, efiNames[b.recipe.Arch]
	text, err := b.tree.ReadFile(loaderDir+names.loader, maxLoader)
	if err != nil {
		return r.Errorf("boot.loader", "%v", &boot.MissingError{What: "systemd-boot (" + loaderDir + names.loader + ")", Packages: []string{"systemd-boot-efi"}})
	}
	loader, err := signProgram(diskimage.Bytes(text), s)
	if err != nil {
		return fmt.Errorf("systemd-boot: %w", err)
	}
	b.onESP(names.fallback, loader)
	b.onESP("/EFI/systemd/"+names.loader, loader)
	conf := fmt.Sprintf("timeout %d\n", int64(r.Boot.Timeout.Seconds()))
	if s != nil {
		conf += "editor no\n"
	}
	b.onESP("/loader/loader.conf", diskimage.Bytes([]byte(conf)))
	if r.Boot.Tries == 0 {
		return nil
	}
	for _, dir := range []string{"/usr/lib/systemd/", "/lib/systemd/"} {
		if p, err := b.tree.Resolve(dir + blessBoot); err == nil && b.tree.Get(p) != nil {
			return nil
		}
	}
	return r.Errorf("boot.tries", "%v", &boot.MissingError{What: "program that marks a boot as good (/usr/lib/systemd/" + blessBoot + ")", Packages: []string{"systemd-boot"}})
}

// identify says in the tree's os-release which image it is.
func (b *builder) identify(at string) error {
	n := b.tree.Get(at)
	text, err := b.tree.ReadFile(at, maxKeyFile)
	if err != nil {
		return err
	}
	release := setRelease(setRelease(string(text), "IMAGE_ID", b.recipe.Name), "IMAGE_VERSION", b.recipe.Release)
	copied := *n
	copied.Data, copied.MTime = diskimage.Bytes([]byte(release)), b.recipe.Epoch
	return b.tree.Put(at, &copied)
}

// setRelease gives a field of os-release (os-release(5)) a value, at the end.
func setRelease(text, field, value string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, field+"=") {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(value)
	return b.String() + field + `="` + quoted + "\"\n"
}

func signProgram(d diskimage.Disk, s *authenticode.Signer) (diskimage.Disk, error) {
	if s == nil {
		return d, nil
	}
	return authenticode.Sign(d, *s)
}

// signer is who signs what UEFI starts, nil for nobody: the builder's, else the
// recipe's.
func (b *builder) signer() (*authenticode.Signer, error) {
	r := b.recipe
	if s := b.options.SecureBoot; s != nil || r.Boot.SecureBoot.Key == "" {
		return s, nil
	}
	var pems [2][]byte
	for i, name := range []string{r.Boot.SecureBoot.Key, r.Boot.SecureBoot.Cert} {
		field := []string{"boot.secureBoot.key", "boot.secureBoot.cert"}[i]
		info, err := os.Stat(name)
		if err == nil && info.Size() > maxKeyFile {
			err = errors.New("too large for a PEM file")
		}
		if err == nil {
			pems[i], err = os.ReadFile(name)
		}
		if err != nil {
			return nil, r.Errorf(field, "%v", err)
		}
	}
	s, err := authenticode.ParseSigner(bytes.TrimSpace(pems[0]), pems[1])
	if err != nil {
		return nil, r.Errorf("boot.secureBoot", "%v", err)
	}
	return &s, nil
}
