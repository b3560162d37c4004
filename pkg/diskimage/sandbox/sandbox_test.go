package sandbox

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/internal/binfmt"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// busybox is a tree with a shell in it.
func busybox(t *testing.T) *tree.Tree {
	t.Helper()
	const programs = "cat ls mkdir rm mv cp ln chmod chown touch sleep id stat find ps mount mknod hostname ip nc dd env pwd kill sed grep head tr wc truncate sync test sort printf nproc du mkfifo wget uname tail seq rmdir hexdump setsid whoami basename yes true false nohup readlink"
	return disktest.Busybox(t, epoch.Add(-time.Hour), programs, map[string]string{
		"/etc/passwd": "root:x:0:0::/root:/bin/sh\nops:x:1000:1000::/home/ops:/bin/sh\n",
		"/etc/group":  "root:x:0:\nops:x:1000:\nadm:x:4:ops\n",
	})
}

func newBox(t *testing.T) *Sandbox {
	t.Helper()
	return boxWith(t, Options{})
}

func boxWith(t *testing.T, o Options) *Sandbox {
	t.Helper()
	if o.CacheDir == "" {
		o.CacheDir = t.TempDir()
		t.Cleanup(func() { // before TempDir's: files in it may belong to other ids
			if err := RemoveCaches(o.CacheDir); err != nil {
				t.Error(err)
			}
		})
	}
	o.Epoch = epoch
	box := New(o)
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	})
	return box
}

func run(t *testing.T, box *Sandbox, in *tree.Tree, script string) *tree.Tree {
	t.Helper()
	out, err := box.Run(t.Context(), in, Step{Name: "step", Script: script})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wantDiff compares what a step changed with lines of tree.Diff.
func wantDiff(t *testing.T, in, out *tree.Tree, want string) {
	t.Helper()
	if got := strings.Join(tree.Diff(in, out), "\n"); got != strings.TrimSpace(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func layerOf(t *testing.T, in, out *tree.Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tree.WriteLayer(&b, in, out); err != nil {
		t.Fatal(err)
	}
	again := in.Clone()
	if err := again.ApplyLayer(bytes.NewReader(b.Bytes()), int64(b.Len())); err != nil {
		t.Fatal(err)
	}
	if d := tree.DiffContents(out, again); len(d) > 0 {
		t.Errorf("the layer makes another tree: %q", d)
	}
	return b.Bytes()
}

// TestStepsOfAnotherArchitecture runs a program of one where the kernel has an interpreter,
// which is not in the tree; else the step is refused with the line that mends it.
func TestStepsOfAnotherArchitecture(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	in := tree.New()
	for _, name := range []string{"/probe", "/bin/sh"} {
		if err := in.Put(name, &tree.Inode{Mode: 0o755, Data: diskimage.Bytes(binfmt.Program(other))}); err != nil {
			t.Fatal(err)
		}
	}
	missing := Foreign(other)
	for _, script := range []string{"#!/probe\n", "#! /probe x\n", "true\n"} {
		_, err := newBox(t).Run(t.Context(), in, Step{Name: "s", Script: script, User: "root"})
		var e *binfmt.Error
		switch {
		case missing == nil && err != nil:
			t.Errorf("%q: %v", script, err)
		case missing != nil && (!errors.As(err, &e) || e.Fix == ""):
			t.Errorf("%q: %v; want %v", script, err, missing)
		}
	}
}
