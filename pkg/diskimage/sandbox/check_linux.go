package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/internal/binfmt"
	"github.com/imgpipe/imgpipe/pkg/internal/workdir"
)

// Check runs a program in a sandbox, and returns why that cannot be done. A host that
// can run no step can still build what has no steps.
func Check(ctx context.Context, cacheDir, workDir string) (err error) {
	t := tree.New()
	if err := t.Put("/probe", &tree.Inode{Mode: 0o755, Data: diskimage.Bytes(binfmt.Program(runtime.GOARCH))}); err != nil {
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

// Foreign returns why programs of an architecture, amd64 or arm64, do not run here. The
// error names the line that mends it.
func Foreign(arch string) error { return binfmt.Check(arch) }

// foreign does the same for the program that a step starts with, in the tree.
func foreign(t *tree.Tree, script string) error {
	name := "/bin/sh"
	if first, _, _ := strings.Cut(script, "\n"); strings.HasPrefix(first, "#!") {
		fields := strings.Fields(first[2:])
		if len(fields) == 0 {
			return nil
		}
		name = fields[0]
	}
	real, err := t.Resolve(name)
	if err != nil {
		return nil // which the step's start says better
	}
	n := t.Get(real)
	if n == nil || n.Kind != tree.Regular || n.Data == nil {
		return nil
	}
	var start [20]byte
	if _, err := n.Data.ReadAt(start[:], 0); err != nil && err != io.EOF {
		return err
	}
	if arch := binfmt.Arch(start[:]); arch != "" && arch != runtime.GOARCH {
		return binfmt.Check(arch)
	}
	return nil
}
