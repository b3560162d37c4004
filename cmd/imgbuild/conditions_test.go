package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seen is what a child sees of its conditions.
type seen map[string]string

// tell is a program of the tests: it prints what it sees.
func tell() {
	host, _ := os.Hostname()
	umask := unix.Umask(0)
	s := seen{"host": host, "uid": fmt.Sprint(os.Getuid()), "gid": fmt.Sprint(os.Getgid()), "umask": fmt.Sprintf("%03o", umask),
		"processors": fmt.Sprint(runtime.GOMAXPROCS(0)), "tmp": os.TempDir()}
	_, offset := time.Now().Zone()
	s["offset"] = fmt.Sprint(offset)
	if u, err := user.LookupId(s["uid"]); err == nil {
		s["user"] = u.Username
	}
	s["home"], _ = os.UserHomeDir()
	s["cache"], _ = os.UserCacheDir()
	s["language"] = os.Getenv("LC_ALL") + " " + os.Getenv("LANG")
	_ = json.NewEncoder(os.Stdout).Encode(s)
}

func ask(t *testing.T, dir string) (k *conditions, s seen) {
	t.Helper()
	old := os.Args[0]
	os.Args[0] = "imgbuild" // what tries the user is this program, too
	defer func() { os.Args[0] = old }()
	err := under(t.Context(), dir, func(got *conditions) error {
		k = got
		cmd := k.command(t.Context())
		cmd.Args[0] = "tell"
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return err
		}
		return json.Unmarshal(out, &s)
	})
	if err != nil {
		t.Fatal(err)
	}
	return k, s
}

// Each variation reaches the child, and only the child.
func TestSecondBuildsConditions(t *testing.T) {
	before := unix.Umask(0o022)
	unix.Umask(before)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	k, got := ask(t, dir)
	want := seen{"umask": "077", "processors": "1", "offset": "20700", "language": "tr_TR.UTF-8 tr_TR.UTF-8",
		"tmp": filepath.Join(dir, "tmp"), "home": filepath.Join(dir, "home"), "cache": filepath.Join(dir, "home", "cache")}
	varied := func(what string) bool {
		return !slices.ContainsFunc(k.Same, func(s string) bool { return strings.HasPrefix(s, what) })
	}
	t.Logf("not varied: %q", k.Same)
	if varied("the host name") {
		want["host"] = elsewhere
	}
	if varied("the user") {
		want["uid"], want["gid"], want["user"] = "60577", "60577", stranger
	}
	if os.Getuid() != 0 && len(k.Same) != 2 {
		t.Errorf("an ordinary user cannot vary two things; said: %q", k.Same)
	}
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: got %q, want %q", name, got[name], w)
		}
	}
	if now, _ := os.Hostname(); now != host {
		t.Errorf("the host is now %q, was %q", now, host)
	}
	if now := unix.Umask(before); now != before {
		t.Errorf("umask is now %03o, was %03o", now, before)
	}
	for _, name := range []string{"passwd", "group", "subuid", "subgid"} {
		f, err := os.Open(filepath.Join("/etc", name))
		if err != nil {
			continue
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if strings.HasPrefix(s.Text(), stranger) {
				t.Errorf("/etc/%s of everybody has %q", name, s.Text())
			}
		}
	}
}

// A folder that an ordinary user cannot reach keeps the user, and that is said.
func TestSecondBuildSaysWhatIsTheSame(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root only: another user cannot be had")
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	k, got := ask(t, dir)
	if want := fmt.Sprintf("the user (%s is for few; set TMPDIR to a folder that all users reach)", filepath.Dir(dir)); !slices.Contains(k.Same, want) {
		t.Errorf("said %q, want %q", k.Same, want)
	}
	if got["uid"] != "0" {
		t.Errorf("uid %s", got["uid"])
	}
}

// The host's accounts may change while a build runs.
func TestSecondBuildsUserStays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root only: another user cannot be had")
	}
	// A host's own /etc is not for a test to change: this one is the thread's.
	dir, etc := t.TempDir(), t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group", "subuid", "subgid"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	resolver := filepath.Join(t.TempDir(), "resolver")
	if err := os.WriteFile(resolver, []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(etc, "resolv.conf"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			err := unix.Unshare(unix.CLONE_NEWNS)
			if err == nil {
				err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
			}
			if err == nil {
				err = unix.Mount(etc, "/etc", "", unix.MS_BIND, "")
			}
			if err == nil {
				err = unix.Mount(resolver, "/etc/resolv.conf", "", unix.MS_BIND, "")
			}
			if err != nil {
				return err
			}
			k := &conditions{dir: dir}
			if err := k.ownEtc(); err != nil {
				return err
			}
			for _, name := range []string{"passwd", "subuid"} { // as usermod does, elsewhere
				replaced := filepath.Join(etc, name+"+")
				if err := os.WriteFile(replaced, []byte("other:x:1:1::/:/bin/sh\n"), 0o644); err != nil {
					return err
				}
				if err := os.Rename(replaced, filepath.Join(etc, name)); err != nil {
					return err
				}
			}
			for name, want := range map[string]string{"passwd": stranger + ":x:60577:", "subuid": stranger + ":1073741824:65536", "resolv.conf": "192.0.2.1"} {
				if b, err := os.ReadFile(filepath.Join("/etc", name)); err != nil || !strings.Contains(string(b), want) {
					return fmt.Errorf("/etc/%s is now %q, %w; want it to have %q", name, b, err, want)
				}
			}
			return nil
		}()
	}()
	err := <-done
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
		t.Skip("no mounts of its own: ", err)
	}
	if err != nil {
		t.Error(err)
	}
}
