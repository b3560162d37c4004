package initramfs

import (
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// checksums are what filesystems and dm-verity ask the kernel's crypto API for by name, where no
// dependency of theirs says so: generic, and by the processors' own instructions.
var checksums = words(`crc32c_generic crc32c_intel crc32c_cryptoapi libcrc32c sha256_generic sha256_ssse3 sha256_arm64 sha2_ce crc32_ce`)

// Native is what a native initramfs is made of (docs/initramfs.md).
type Native struct {
	Init    []byte   // the program
	Modules []string // besides those of all storage: filesystems, dm_verity, overlay; any that the kernel lacks are left out
	Early   []byte   // an archive that comes before, such as Microcode's
}

// Native returns the initramfs, and the names of the modules in it.
func (k *Kernel) Native(n Native) (image []byte, names []string, err error) {
	var wanted []string
	for _, class := range StorageClasses() {
		wanted = append(wanted, storageClasses[class]...)
	}
	wanted = slices.DeleteFunc(slices.Concat(wanted, n.Modules, checksums), func(name string) bool { return !k.Has(name) })
	modules, err := k.Closure(wanted...)
	if err != nil {
		return nil, nil, err
	}
	files, err := Tree(k, modules)
	if err != nil {
		return nil, nil, err
	}
	if err := k.firmwareOf(files, modules); err != nil {
		return nil, nil, err
	}
	for p, inode := range map[string]*tree.Inode{
		"/dev/null":      {Kind: tree.CharDevice, Mode: 0o666, Major: 1, Minor: 3}, // a modprobe before /dev is mounted has no streams
		"/init":          {Mode: 0o755, Data: diskimage.Bytes(n.Init)},
		"/sbin/modprobe": {Kind: tree.Symlink, Mode: 0o777, Target: "/init"},
		"/proc":          {Kind: tree.Dir, Mode: 0o755}, "/sys": {Kind: tree.Dir, Mode: 0o755},
		"/run": {Kind: tree.Dir, Mode: 0o755}, "/sysroot": {Kind: tree.Dir, Mode: 0o755},
	} {
		if err := files.Put(p, inode); err != nil {
			return nil, nil, fmt.Errorf("initramfs: %w", err)
		}
	}
	for _, m := range modules {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	image, err = pack(files, zstd.SpeedBetterCompression) // half the time for a tenth more bytes, which lie on a disk
	return append(slices.Clip(n.Early), image...), names, err
}

// firmwareOf puts what modules may ask for, and the tree has, into t.
func (k *Kernel) firmwareOf(t *tree.Tree, modules []*Module) error {
	var have []string
	for name := range k.firmwareFiles() {
		have = append(have, name)
	}
	for _, m := range modules {
		if lacking := Lacking([]*Module{m}, have); len(m.Firmware) == 0 || lacking != nil {
			continue
		}
		if _, err := k.Firmware(t, modules, []string{m.Name}); err != nil {
			return err
		}
	}
	return nil
}
