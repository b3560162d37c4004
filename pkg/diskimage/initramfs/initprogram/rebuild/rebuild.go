// Package rebuild compiles the init that initprogram carries, for `go generate` and for the
// test that compares. Programs do not link it: it starts the Go tool, and wants this repository.
package rebuild

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const program = "github.com/imgpipe/imgpipe/cmd/imgbuild/initrd"

// environment is fixed, so that neither the user's settings nor the machine's decide.
var environment = []string{"CGO_ENABLED=0", "GOOS=linux", "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GODEBUG=", "GOTOOLCHAIN=local"}

// Program compiles the init for an architecture with the Go in the PATH.
func Program(arch string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "imgpipe-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, program)
	cmd.Env = append(append(os.Environ(), environment...), "GOARCH="+arch)
	if talk, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build %s: %w\n%s", program, err, talk)
	}
	return os.ReadFile(out)
}

// Sources returns the SHA-256 over the files of this repository that the programs are made of.
func Sources() (string, error) {
	var text bytes.Buffer
	for _, arch := range []string{"amd64", "arm64"} {
		list := exec.Command("go", "list", "-deps", "-f", `{{if .Module}}{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{end}}`, program)
		list.Env = append(append(os.Environ(), environment...), "GOARCH="+arch)
		out, err := list.Output()
		if err != nil {
			return "", fmt.Errorf("go list: %w", err)
		}
		text.Write(out)
	}
	names := strings.Fields(text.String())
	slices.Sort(names)
	h := sha256.New()
	for _, name := range slices.Compact(names) {
		b, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", filepath.Base(name), len(b))
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
