package sandbox

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// said runs a step and returns what it printed.
func said(t *testing.T, box *Sandbox, in *tree.Tree, s Step) string {
	t.Helper()
	var log bytes.Buffer
	box.o.Log = &log
	if box.session != nil {
		box.session.o.Log = &log
	}
	s.Name = "step"
	if _, err := box.Run(t.Context(), in, s); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(log.String())
}

func TestView(t *testing.T) {
	in, box := busybox(t), newBox(t)
	for script, want := range map[string]string{
		"hostname":                            "localhost",
		"umask; pwd; echo $0":                 "0022\n/\n/run/imgpipe/step",
		"id -u; id -g; id -G":                 "0\n0\n0",
		"ls /proc | grep -v '^[0-9]*$'":       "self\nthread-self",
		"ls /sys":                             "block\nbus\nclass\ndev\ndevices\nfirmware\nfs\nkernel\nmodule\npower",
		"find /sys -type f":                   "",
		"touch /sys/x 2>/dev/null || echo no": "no",
		"ls /dev":                             "fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero",
		"ls /run /tmp":                        "/run:\nimgpipe\nlock\n\n/tmp:",
		"cat; readlink /proc/self/fd/0":       "/dev/null",
		"grep -E 'CapEff|CapBnd|NoNew|CapInh|CapAmb|^Seccomp:' /proc/self/status | tr -d '\\t'": "CapInh:0000000000000000\nCapEff:00000000800405ff\nCapBnd:00000000800405ff\nCapAmb:0000000000000000\nNoNewPrivs:1\nSeccomp:2",
		"cat /proc/self/cgroup | head -n1 | sed 's/.*://'":                                      "/",
		"grep -c : /proc/self/net/dev":                                                          "1",
		"ip link show lo | grep -c UP":                                                          "1",
		"mknod /x b 8 0 2>/dev/null || mknod /x c 1 3 2>/dev/null || echo no":                   "no",
		"mount -t tmpfs x /tmp 2>/dev/null || echo no":                                          "no",
		"sync; echo ok":               "ok",
		"head -c 4 /dev/zero | wc -c": "4",
		"cut -d' ' -f5- /proc/self/mountinfo | grep -vE '^/(proc|sys|dev|run|tmp)?[ /]' || echo none": "none",
		"echo $HOME $USER $TZ $LC_ALL $SOURCE_DATE_EPOCH $PATH":                                       "/root root UTC C.UTF-8 1793491200 /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"env | wc -l":    "13",
		"cat /etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost",
		"cat /etc/resolv.conf 2>/dev/null || echo none": "none",
	} {
		if strings.HasPrefix(script, "cut") && !has(in, "/bin/cut") {
			script = strings.Replace(script, "cut -d' ' -f5-", "sed -E 's/^([^ ]+ ){4}//'", 1)
		}
		if got := said(t, box, in, Step{Script: script + "\n"}); got != want {
			t.Errorf("%s\ngot\n%s\nwant\n%s", script, got, want)
		}
	}
	if got := said(t, box, in, Step{Script: "#!/bin/ls /proc/self/fd\n"}); got != "/run/imgpipe/step\n\n/proc/self/fd:\n0\n1\n2\n3" {
		t.Error(got)
	}
	got := said(t, box, in, Step{Script: "id -u; id -g; id -G; echo $HOME $USER $A; pwd; mkdir /x 2>/dev/null || echo no", User: "ops", Workdir: "/etc", Env: map[string]string{"A": "b c", "TZ": "x"}})
	if got != "1000\n1000\n1000 4\n/home/ops ops b c\n/etc\nno" {
		t.Error(got)
	}
	if got := said(t, box, in, Step{Script: "id -u; echo $HOME", User: "4711"}); got != "4711\n/" {
		t.Error(got)
	}
	if got := said(t, box, in, Step{Script: "#!/bin/cat\nas it is"}); got != "#!/bin/cat\nas it is" {
		t.Error(got)
	}
}

func TestMistakes(t *testing.T) {
	in, box := busybox(t), newBox(t)
	var mistake *StepError
	for _, c := range []struct {
		step Step
		want string
	}{
		{Step{Script: "true", User: "nobody"}, `user: the tree has no user "nobody"`},
		{Step{Script: "true", Secrets: []Secret{{"s", "/run/s", []byte("short\n")}}}, "secrets: the secret s has less than 8 bytes"},
	} {
		_, err := box.Run(t.Context(), in, c.step)
		if !errors.As(err, &mistake) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v", err)
		}
	}
	if _, err := box.Run(t.Context(), tree.New(), Step{Script: "true"}); !errors.As(err, &mistake) || mistake.Field != "script" {
		t.Errorf("%v", err)
	}
	for script, want := range map[string]string{
		"echo a; echo b >&2; exit 7": "step x: exit status 7; its last lines:\n\ta\n\tb",
		"kill -9 $$":                 "step x: signal: killed; it wrote nothing",
		"false; echo never":          "step x: exit status 1; it wrote nothing",
		"echo $nothing":              "nothing: parameter not set",
		"#!/bin/none\n":              "/run/imgpipe/x: no such file or directory: the program, or the interpreter that it names, is not in the tree",
	} {
		if _, err := box.Run(t.Context(), in, Step{Name: "x", Script: script}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", script, err)
		}
	}
	if _, err := box.Run(t.Context(), in, Step{Name: "x", Script: "true", Workdir: "/none"}); err == nil || !strings.Contains(err.Error(), "workdir") {
		t.Error(err)
	}
	// what failed has left nothing behind
	out := run(t, box, in, "test ! -e /lost && touch /kept")
	wantDiff(t, in, out, "/kept: new file")
	if _, err := box.Run(t.Context(), in, Step{Name: "x", Script: "touch /lost; exit 1"}); err == nil {
		t.Error("no error")
	}
	wantDiff(t, in, run(t, box, in, "test ! -e /lost"), "")
}

func TestWhatIsLeftRunningDies(t *testing.T) {
	in, box := busybox(t), newBox(t)
	if err := in.Put("/pub", &tree.Inode{Kind: tree.Dir, Mode: 0o777}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	// a bomb, of somebody whom the kernel limits
	out, err := box.Run(t.Context(), in, Step{Name: "x", User: "ops", Workdir: "/pub", Script: `ulimit -u 100
for i in 1 2 3; do setsid sleep 4711 & nohup sleep 4711 & done
touch kept
f() { f | f & }
(f) 2>/dev/null &
(while true; do echo >later; done) &
`})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 90*time.Second {
		t.Errorf("took %v", took)
	}
	if out.Get("/pub/kept") == nil {
		t.Error("lost")
	}
	if b, err := exec.Command("pgrep", "-f", "sleep 4711").Output(); err == nil {
		t.Errorf("still there: %s", b)
	}
	run(t, box, in, "true")
}

func TestCancel(t *testing.T) {
	in, box := busybox(t), newBox(t)
	ctx, cancel := context.WithCancel(t.Context())
	box.o.Line = func(string) { cancel() } // it runs
	_, err := box.Run(ctx, in, Step{Name: "x", Script: "echo here; sleep 4712"})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if b, err := exec.Command("pgrep", "-f", "sleep 4712").Output(); err == nil {
		t.Errorf("still there: %s", b)
	}
	box.o.Line = nil
	run(t, box, in, "true") // as if nothing had been
}

func TestNetwork(t *testing.T) {
	in, box := busybox(t), newBox(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("answer\n"))
			c.Close()
		}
	}()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	script := "nc -w 5 127.0.0.1 " + port + " </dev/null || echo nobody; cat /etc/resolv.conf 2>/dev/null | wc -c; echo ${http_proxy-none}"
	box.o.Env = []string{"http_proxy=http://proxy"}
	if got := said(t, box, in, Step{Script: script}); !strings.HasSuffix(got, "nobody\n0\nnone") {
		t.Error(got)
	}
	names, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		names = nil
	}
	want := "answer\n" + strconv.Itoa(len(names)) + "\nhttp://proxy"
	if got := said(t, box, in, Step{Script: script, Network: true}); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// the tree's own file is as it was, whether it was there or not
	with := in.Clone()
	if err := with.Put("/etc/resolv.conf", &tree.Inode{Mode: 0o644, MTime: epoch, Data: diskimage.Bytes([]byte("nameserver ::1\n"))}); err != nil {
		t.Fatal(err)
	}
	for _, before := range []*tree.Tree{in, with} {
		out, err := box.Run(t.Context(), before, Step{Name: "x", Script: "cat /etc/resolv.conf", Network: true})
		if err != nil {
			t.Fatal(err)
		}
		wantDiff(t, before, out, "")
		if out, err = box.Run(t.Context(), before, Step{Name: "x", Script: "rm -f /etc/resolv.conf; echo own >/etc/resolv.conf", Network: true}); err != nil {
			t.Fatal(err)
		}
		if b, err := out.ReadFile("/etc/resolv.conf", 100); err != nil || string(b) != "own\n" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	in, box := busybox(t), newBox(t)
	value := []byte("correct horse battery\n")
	step := func(script string) Step {
		return Step{Name: "x", Script: script, User: "ops", Secrets: []Secret{{"token", "/run/secrets/token", value}, {"rc", "/home/ops/.netrc", value}}}
	}
	s := step("stat -c '%a %u' /run/secrets/token; cat /home/ops/.netrc; cat /run/secrets/token; echo >/run/secrets/token || echo no")
	if got := said(t, box, in, s); !strings.HasPrefix(got, "400 1000\n***\n***\n") || !strings.HasSuffix(got, "no") {
		t.Error(got)
	}
	root := func(script string) Step {
		s := step(script)
		s.User = ""
		return s
	}
	for script, where := range map[string]string{
		"cp /run/secrets/token /etc/x":                                      "/etc/x",
		"head -c 2097145 /dev/zero >/big; cat /run/secrets/token >>/big":    "/big",
		`ln -s "$(cat /run/secrets/token)" /link`:                           "/link",
		`touch "/a $(cat /run/secrets/token)"`:                              "/a ***",
		`printf %s "$(cat /run/secrets/token)" >>/etc/passwd`:               "/etc/passwd",
		`mkdir /d; ln /etc/group /d/b; cat /run/secrets/token >>/etc/group`: "/d/b",
	} {
		var found *SecretError
		_, err := box.Run(t.Context(), in, root(script))
		if !errors.As(err, &found) || found.Path != where || found.Secret != "token" || strings.Contains(err.Error(), "horse") {
			t.Errorf("%s: %v", script, err)
		}
	}
	_, err := box.Run(t.Context(), in, root("cat /run/secrets/token; exit 3"))
	if err == nil || strings.Contains(err.Error(), "horse") || !strings.Contains(err.Error(), "***") {
		t.Error(err)
	}
	// neither they nor their places stay
	out, err := box.Run(t.Context(), in, root("echo fine >/etc/fine"))
	if err != nil {
		t.Fatal(err)
	}
	wantDiff(t, in, out, "/etc/fine: new file")
	if got := said(t, box, in, Step{Script: "find / -xdev -name token -o -name .netrc"}); got != "" {
		t.Error(got)
	}
}

func TestMountsAndCaches(t *testing.T) {
	in, cache := busybox(t), t.TempDir()
	t.Cleanup(func() {
		if err := RemoveCaches(cache); err != nil {
			t.Error(err)
		}
	})
	src := t.TempDir()
	for name, text := range map[string]string{"a": "A", "sub/b": "B"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := tree.FromDir(src, tree.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	single := tree.New()
	if err := single.Put("/file", &tree.Inode{Mode: 0o755, UID: 77, Data: diskimage.Bytes([]byte("#!/bin/sh\necho tool\n"))}); err != nil {
		t.Fatal(err)
	}
	step := Step{
		Name:   "x",
		Mounts: []Mount{{Path: "/src", Tree: folder}, {Path: "/usr/local/bin/tool", Tree: single, File: true}},
		Caches: []Cache{{Path: "/var/cache/x", Key: "k1"}, {Path: "/home/ops/.cache", Key: "k2"}},
		Script: "cat /src/a /src/sub/b; stat -c '%u %g %Y %a' /src/a; tool; touch /src/x 2>/dev/null || echo ro; cat /var/cache/x/was 2>/dev/null || echo first; echo kept >/var/cache/x/was; stat -c %u /var/cache/x; touch /var/cache/x/new; chown 33 /var/cache/x/new",
	}
	want := "AB0 0 1793491200 640\ntool\nro\n"
	if got := said(t, boxWith(t, Options{CacheDir: cache}), in, step); got != want+"first\n0" {
		t.Errorf("got %q", got)
	}
	box := boxWith(t, Options{CacheDir: cache})
	if got := said(t, box, in, step); got != want+"kept\n0" {
		t.Errorf("got %q", got)
	}
	out, err := box.Run(t.Context(), in, step)
	if err != nil {
		t.Fatal(err)
	}
	wantDiff(t, in, out, "") // no mount points either
	step.Script = "echo real >/home/ops/file"
	if out, err = box.Run(t.Context(), in, step); err != nil {
		t.Fatal(err)
	}
	wantDiff(t, in, out, "/home: new directory")
}

func TestTwoAtOnce(t *testing.T) {
	in, cache := busybox(t), t.TempDir()
	t.Cleanup(func() {
		if err := RemoveCaches(cache); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	results := make([][]byte, 4)
	errs := make([]error, len(results))
	for i := range results {
		wg.Go(func() {
			box := New(Options{CacheDir: cache, Epoch: epoch})
			defer box.Close()
			out, err := box.Run(t.Context(), in, Step{Name: "x", Script: "test ! -e /c/lock; touch /c/lock; seq 1 1000 >/out; rm /c/lock", Caches: []Cache{{"/c", "shared"}}})
			if err == nil {
				var b bytes.Buffer
				err = tree.WriteLayer(&b, in, out)
				results[i] = b.Bytes()
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil || !bytes.Equal(results[i], results[0]) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// mountsOf counts what this namespace has mounted from or at a folder.
func mountsOf(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte(dir))
}

// A build that is killed leaves no process and no mount, and the next one removes
// its folder.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("IMGPIPE_SANDBOX_KILL"); dir != "" {
		box := boxWith(t, Options{CacheDir: filepath.Join(dir, "cache"), WorkDir: dir})
		_, err := box.Run(t.Context(), busybox(t), Step{Name: "x", Script: "touch /var-is-full; echo started >/c/up; sleep 4713", Caches: []Cache{{"/c", "c"}}})
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := RemoveCaches(filepath.Join(dir, "cache")); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), "IMGPIPE_SANDBOX_KILL="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := func() bool {
		found, _ := filepath.Glob(filepath.Join(dir, "cache/mounts/*/x/c/up"))
		return len(found) > 0
	}
	for begun := time.Now(); !up(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatal("it does not start")
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	left := func() []string {
		found, _ := filepath.Glob(filepath.Join(dir, workPrefix+"*"))
		return found
	}
	if len(left()) == 0 {
		t.Fatal("nothing was left")
	}
	for begun := time.Now(); exec.Command("pgrep", "-f", "sleep 4713").Run() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatal("the step lives on")
		}
	}
	if n := mountsOf(t, dir); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
	was := left()
	box := boxWith(t, Options{CacheDir: filepath.Join(dir, "cache"), WorkDir: dir})
	run(t, box, busybox(t), "true")
	if now := left(); len(now) != 1 || slices.Contains(was, now[0]) {
		t.Errorf("left are %q, were %q", now, was)
	}
}

func TestFullMemoryGoesToDisk(t *testing.T) {
	if unix.Access("/var/tmp", unix.W_OK) != nil {
		t.Skip("/var/tmp is not for this user")
	}
	in, box := busybox(t), newBox(t)
	if err := box.start(in); err != nil {
		t.Fatal(err)
	}
	if err := box.session.close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if box.session, err = open(box.o, "", 8<<20); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	box.o.Log = &log
	out := run(t, box, in, "head -c 20000000 /dev/zero >/large")
	if n := out.Get("/large"); n.Size() != 20_000_000 || !box.onDisk {
		t.Errorf("%+v, on disk: %v", n, box.onDisk)
	}
}

// The same as an ordinary user, but for what only root can look at.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Getenv("IMGPIPE_JUDGES") != "1" {
		t.Skip("half a minute: IMGPIPE_JUDGES=1")
	}
	asUser(t, "Test(Changes|NothingChangesByItself|Scenario|View|Mistakes|WhatIsLeftRunningDies|Cancel|Network|Secrets|MountsAndCaches|TwoAtOnce|Killed|TooFewIDs|Check)$", "IMGPIPE_SANDBOX_USER")
}

func TestTooFewIDs(t *testing.T) {
	in := busybox(t)
	if err := in.Put("/far", &tree.Inode{UID: 100_000}); err != nil {
		t.Fatal(err)
	}
	out, err := newBox(t).Run(t.Context(), in, Step{Name: "x", Script: "true"})
	if os.Geteuid() == 0 {
		if err != nil || out.Get("/far").UID != 100_000 {
			t.Error(err)
		}
	} else if !errors.Is(err, ErrTooFewIDs) || !strings.Contains(err.Error(), "/far") {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	cache := t.TempDir()
	if err := Check(t.Context(), cache, ""); err != nil {
		t.Error(err)
	}
	if err := RemoveCaches(cache); err != nil {
		t.Error(err)
	}
}
