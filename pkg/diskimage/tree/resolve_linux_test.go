package tree_test

import (
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// The kernel judges: openat2(2) with RESOLVE_IN_ROOT finds the same file as
// Resolve in random trees full of symlinks.
func TestResolveAsTheKernel(t *testing.T) {
	compared, loops := 0, 0
	for seed := range int64(20) {
		r := rand.New(rand.NewSource(seed))
		some := func() string {
			words := []string{"a", "b", "c", "..", ".", "", "a", "b"}
			out := make([]string, 1+r.Intn(5))
			for i := range out {
				out[i] = words[r.Intn(len(words))]
			}
			return []string{"", "/"}[r.Intn(2)] + strings.Join(out, "/")
		}
		d := t.TempDir()
		in, err := os.OpenRoot(d) // or a symlink could lead this test out of its directory
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			p := filepath.Clean("/" + some())[1:]
			if r.Intn(2) == 0 {
				_ = in.Mkdir(p, 0o755) // may exist, or lie where nothing is
			} else if target := some(); target != "" {
				_ = in.Symlink(target, p)
			}
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		tr := fromDir(t, d, tree.DirOptions{})
		root, err := unix.Open(d, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			p := some()
			fd, err := unix.Openat2(root, p, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT})
			got, resolveErr := tr.Resolve(p)
			switch {
			case errors.Is(err, unix.ENOSYS):
				t.Skip("the kernel has no openat2: ", err)
			case errors.Is(err, unix.ELOOP):
				// Past a name that does not exist, Resolve goes on where the kernel stops.
				if loops++; !errors.Is(resolveErr, tree.ErrTooManyLinks) {
					t.Errorf("seed %d: Resolve(%q) = %q, %v; the kernel: %v", seed, p, got, resolveErr, err)
				}
				continue
			case err != nil: // not there
				continue
			}
			want, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			if err := errors.Join(err, unix.Close(fd)); err != nil {
				t.Fatal(err)
			}
			want = "/" + strings.TrimPrefix(strings.TrimPrefix(want, d), "/")
			if resolveErr != nil || got != want {
				t.Errorf("seed %d: Resolve(%q) = %q, %v; the kernel has %q", seed, p, got, resolveErr, want)
			}
			compared++
		}
		if err := unix.Close(root); err != nil {
			t.Fatal(err)
		}
	}
	if compared < 500 || loops == 0 {
		t.Errorf("only %d paths and %d loops compared", compared, loops)
	}
}
