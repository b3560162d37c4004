package initramfs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// TestDepmodJudges compares the dependencies and aliases of a distribution's
// modules, in the folder IMGPIPE_QEMU_ROOT, with what depmod finds in their symbols.
func TestDepmodJudges(t *testing.T) {
	root := os.Getenv("IMGPIPE_QEMU_ROOT")
	if root == "" {
		t.Skip("IMGPIPE_QEMU_ROOT is not set: a folder with lib/modules")
	}
	if _, err := exec.LookPath("depmod"); err != nil {
		t.Skip("depmod is not installed (apt-get install kmod)")
	}
	found, err := filepath.Glob(root + "/lib/modules/*")
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	release := filepath.Base(found[0])
	tr, err := tree.FromDir(root, tree.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := initramfs.Open(tr, release)
	if err != nil {
		t.Fatal(err)
	}
	modules, err := k.Closure(k.Wanted(initramfs.StorageClasses(), initramfs.NetworkClasses())...)
	if err != nil || len(modules) < 40 {
		t.Fatalf("%d modules: %v", len(modules), err)
	}
	files, err := initramfs.Tree(k, modules)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("depmod", "-n", "-b", root, release).Output()
	if err != nil {
		t.Fatal(err)
	}
	depmod := strings.Split(string(out), "\n")
	compare := func(name string, same func(line string) bool) {
		b, err := files.ReadFile("/lib/modules/"+release+"/"+name, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSuffix(line, "\n"); !strings.HasPrefix(line, "#") {
				if n++; !same(line) {
					t.Errorf("%s: depmod does not say %q", name, line)
				}
			}
		}
		t.Logf("%s: %d lines as depmod has them", name, n)
	}
	var deps, lines []string
	for _, l := range depmod {
		if strings.Contains(l, ".ko:") {
			l = sorted(l)
			deps = append(deps, l)
		} else {
			lines = append(lines, l)
		}
	}
	slices.Sort(deps)
	slices.Sort(lines)
	compare("modules.dep", func(line string) bool { _, ok := slices.BinarySearch(deps, sorted(line)); return ok })
	compare("modules.alias", func(line string) bool { _, ok := slices.BinarySearch(lines, line); return ok })
	compare("modules.softdep", func(line string) bool { _, ok := slices.BinarySearch(lines, line); return ok })
	if len(deps) < 100 {
		t.Errorf("depmod knows %d modules", len(deps))
	}
}

// sorted puts what a module needs in order: where two do not need each other,
// which is loaded first means nothing.
func sorted(line string) string {
	name, rest, _ := strings.Cut(line, ":")
	words := strings.Fields(rest)
	slices.Sort(words)
	return name + ": " + strings.Join(words, " ")
}
