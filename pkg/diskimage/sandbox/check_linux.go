package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/internal/workdir"
)

// exitCode are programs that do nothing but exit(0), by architecture.
var exitCode = map[string]struct {
	machine uint16
	code    []byte
}{
	"amd64": {62, []byte{0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05}},                // xor edi, edi; mov eax, 60; syscall
	"arm64": {183, []byte{0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4}}, // mov x0, 0; mov x8, 93; svc 0
}

// exitProgram is such a program as ELF (System V ABI, chapter 4): a header, one
// segment, the code.
func exitProgram(arch string) []byte {
	const at, head = 0x400000, 64 + 56
	e := exitCode[arch]
	b := make([]byte, head, head+len(e.code))
	le := binary.LittleEndian
	copy(b, "\x7fELF\x02\x01\x01")
	for off, v := range map[int]uint16{16: 2, 18: e.machine, 52: 64, 54: 56, 56: 1} {
		le.PutUint16(b[off:], v)
	}
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], at+head) // entry
	le.PutUint64(b[32:], 64)      // program headers
	le.PutUint32(b[64:], 1)       // load
	le.PutUint32(b[68:], 5)       // read, execute
	size := uint64(head + len(e.code))
	for off, v := range map[int]uint64{80: at, 88: at, 96: size, 104: size, 112: 0x1000} {
		le.PutUint64(b[off:], v)
	}
	return append(b, e.code...)
}

// Check runs a program in a sandbox, and returns why that cannot be done. A host that
// can run no step can still build what has no steps.
func Check(ctx context.Context, cacheDir, workDir string) (err error) {
	t := tree.New()
	if err := t.Put("/probe", &tree.Inode{Mode: 0o755, Data: diskimage.Bytes(exitProgram(runtime.GOARCH))}); err != nil {
		return err
	}
	box := New(Options{CacheDir: cacheDir, WorkDir: workDir, Epoch: time.Unix(1<<30, 0)})
	defer func() { err = errors.Join(err, box.Close()) }()
	_, err = box.Run(ctx, t, Step{Name: "check", Script: "#!/probe\n"})
	return err
}

// IDs says which ids of this host stand for those of a tree, or why none can. The
// error names the line that mends it.
func IDs() (string, error) {
	i, err := hostIDs()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d from %d", i.uids[0].Size, i.first()), nil
}

// Room returns the bytes free of memory, and where work directories on disk lie.
func Room(workDir string) (memory, disk int64, where string) {
	if workDir == "" {
		workDir = workdir.VarTmp
	}
	return workdir.Memory(), workdir.Room(workDir), workDir
}
