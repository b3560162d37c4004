package ocitest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// Tool returns the path of a program that judges what we store: of build/judges
// in the repository, where make tools puts it, else of PATH. Without it the test
// is skipped.
func Tool(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
	}
	path, err := exec.LookPath(filepath.Join(dir, "build", "judges", name))
	if err != nil {
		path, err = exec.LookPath(name)
	}
	if err != nil {
		t.Skipf("%s is not installed: make tools", name)
	}
	return path
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)

// Distribution starts the registry of the CNCF's distribution project until the
// test ends, and returns its HOST:PORT. Without it the test is skipped.
func Distribution(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: \"127.0.0.1:0\", secret: test}\n",
		filepath.Join(dir, "data"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(Tool(t, "registry"), "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	var seen []byte
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		seen = append(seen, buf[:n]...)
		if m := listening.FindSubmatch(seen); m != nil {
			go func() { _, _ = io.Copy(io.Discard, out) }() // until it ends
			return string(m[1])
		}
		if err != nil {
			t.Fatalf("distribution's registry does not start: %s", seen)
		}
	}
}
