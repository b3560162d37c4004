package packages

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// The real package manager, on the archive that mmdebstrap finds by itself. It
// takes minutes, so it runs only under IMGPIPE_NETWORK=1.
func network(t *testing.T) Request {
	t.Helper()
	if os.Getenv("IMGPIPE_NETWORK") != "1" {
		t.Skip("needs a Debian archive: IMGPIPE_NETWORK=1")
	}
	return Request{
		Debian:   recipe.DebianBase{Suite: "bookworm"},
		Arch:     "amd64",
		Packages: []string{"openssh-server", "systemd-sysv", "python3-minimal"},
		Epoch:    time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

func goldenTree(t *testing.T, name string, epoch time.Time) *tree.Tree {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tree.FromTar(f, s.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := Golden(tr, epoch); err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestOrdinaryUserBuildsTheSameTree builds as root, and again as an ordinary
// user with another umask, time zone, locale and path: the test binary runs
// itself as that user.
func TestOrdinaryUserBuildsTheSameTree(t *testing.T) {
	req := network(t)
	if dir := os.Getenv("IMGPIPE_CHILD_CACHE"); dir != "" {
		syscall.Umask(0o077)
		res, err := Debian(t.Context(), req, Options{CacheDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "result"), []byte(res.Tar), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to build as root and to become someone else")
	}
	root, err := Debian(t.Context(), req, Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	child := buildAsUser(t)
	if diff := tree.DiffContents(goldenTree(t, root.Tar, req.Epoch), goldenTree(t, child, req.Epoch)); len(diff) > 0 {
		t.Errorf("%d differences between root's tree and the user's, the first: %s", len(diff), diff[0])
	}
	if a, b := hashFile(t, root.Tar), hashFile(t, child); a != b {
		t.Errorf("the tars differ before Golden: %s, %s", a, b)
	}
	for e := range goldenTree(t, root.Tar, req.Epoch).All() {
		if e.Inode.MTime.After(req.Epoch) {
			t.Errorf("%s is of %v", e.Path, e.Inode.MTime)
		}
	}
}

func hashFile(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("sha256sum", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out[:64])
}

// buildAsUser makes a user with subordinate ids, builds as that user, and
// returns the tar's path.
func buildAsUser(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("imgpipe-test-%d", os.Getpid())
	if out, err := exec.Command("useradd", "--no-create-home", name).CombinedOutput(); err != nil {
		t.Skipf("useradd: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("userdel", name).CombinedOutput(); err != nil {
			t.Errorf("userdel: %v: %s", err, out)
		}
	})
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	// t.TempDir's parents are closed to others
	dir, err := os.MkdirTemp("/var/tmp", "imgpipe-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	bin := filepath.Join(dir, "test")
	copyFile(t, bin, "/proc/self/exe")
	cache := filepath.Join(dir, "cache")
	for _, err := range []error{os.Mkdir(cache, 0o700), os.Chown(cache, uid, gid), os.Chmod(dir, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), bin, "-test.run=^TestOrdinaryUserBuildsTheSameTree$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = []string{"IMGPIPE_NETWORK=1", "IMGPIPE_CHILD_CACHE=" + cache, "HOME=/nonexistent",
		"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "TZ=Asia/Tokyo", "LC_ALL=POSIX", "USER=" + name}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("as %s: %v\n%s", name, err, out)
	}
	res, err := os.ReadFile(filepath.Join(cache, "result"))
	if err != nil {
		t.Fatal(err)
	}
	return string(res)
}

func copyFile(t *testing.T, dst, src string) {
	t.Helper()
	in, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Close()); err != nil {
		t.Fatal(err)
	}
}
