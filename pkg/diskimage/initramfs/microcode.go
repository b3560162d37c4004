package initramfs

import (
	"bufio"
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// microcodes are where distributions have the processors' microcode, and what the kernel looks for before
// it unpacks anything (Documentation/arch/x86/microcode.rst).
var microcodes = []struct{ folder, suffix, to string }{
	{"amd-ucode", ".bin", "AuthenticAMD.bin"},
	{"intel-ucode", "", "GenuineIntel.bin"},
}

// maxMicrocode bounds a file of microcode, in bytes.
const maxMicrocode = 64 << 20

// microcodeAlign is what the data is aligned to in the archive: processors want it so (Intel SDM, volume 3, 10.11).
const microcodeAlign = 16

// Microcode returns the archive that carries all microcode of a tree, nil if it has none. It is not
// compressed, since the kernel reads it in place, and goes before any other.
func Microcode(t *tree.Tree) ([]byte, error) {
	var b bytes.Buffer
	c := &cpio{w: bufio.NewWriter(&b)}
	for _, m := range microcodes {
		data, err := microcode(t, m.folder, m.suffix)
		if err != nil {
			return nil, fmt.Errorf("initramfs: microcode: %w", err)
		}
		if data == nil {
			continue
		}
		if c.n == 0 {
			for _, dir := range []string{"kernel", "kernel/x86", "kernel/x86/microcode"} {
				if err := c.header(header{mode: kinds[tree.Dir] | 0o755, nlink: 2, name: dir}); err != nil {
					return nil, err
				}
			}
		}
		// NULs behind the name move the data: 110 bytes of header, the name, a NUL.
		name := "kernel/x86/microcode/" + m.to
		name += strings.Repeat("\x00", int(-(c.n+110+int64(len(name))+1)&(microcodeAlign-1)))
		if err := c.header(header{mode: kinds[tree.Regular] | 0o644, nlink: 1, size: uint32(len(data)), name: name}); err != nil {
			return nil, err
		}
		if err := c.contents(&tree.Inode{Data: diskimage.Bytes(data)}); err != nil {
			return nil, err
		}
		if err := c.pad(4); err != nil {
			return nil, err
		}
	}
	if c.n == 0 {
		return nil, nil
	}
	err := c.end() // before the bytes are asked for
	return b.Bytes(), err
}

// microcode joins the files of a folder of firmware.
func microcode(t *tree.Tree, folder, suffix string) (out []byte, err error) {
	for _, dir := range firmwareDirs {
		real, err := t.Resolve(dir + "/" + folder)
		if err != nil {
			return nil, err
		}
		for _, name := range t.Children(real) {
			p := path.Join(real, name)
			if n := t.Get(p); n.Kind != tree.Regular || !strings.HasSuffix(name, suffix) {
				continue
			}
			b, err := t.ReadFile(p, maxMicrocode)
			if err != nil {
				return nil, err
			}
			if out = append(out, b...); len(out) > maxMicrocode {
				return nil, fmt.Errorf("%s: more than %d MiB", real, maxMicrocode>>20)
			}
		}
		if out != nil {
			return out, nil
		}
	}
	return nil, nil
}
