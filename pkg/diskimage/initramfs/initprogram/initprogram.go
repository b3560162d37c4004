// Package initprogram carries the init of native initramfs, compiled:
// cmd/imgbuild/initrd for each architecture.
//
//	program, err := initprogram.Program("amd64")   // a static ELF file
//
// The programs are checked in, since a build of imgbuild cannot make them first. They are
// reproducible: `go generate` makes the same bytes with the Go of the file
// "go-version", whatever the machine, and a test holds them to that, and to their sources.
package initprogram

import (
	"embed"
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"
)

//go:generate go run generate.go

//go:embed init-amd64.zst init-arm64.zst go-version sources
var files embed.FS

// maxProgram bounds a program, in bytes.
const maxProgram = 16 << 20

// Program returns the init for an architecture, amd64 or arm64.
func Program(arch string) ([]byte, error) {
	packed, err := files.ReadFile("init-" + arch + ".zst")
	if err != nil {
		return nil, fmt.Errorf("initramfs: no init for architecture %q", arch)
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxProgram))
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	defer d.Close()
	return d.DecodeAll(packed, nil)
}

// GoVersion returns the Go that the programs were built with: go1.26.8.
func GoVersion() string { return field("go-version") }

// Sources returns the digest of the sources that they were built from.
func Sources() string { return field("sources") }

func field(name string) string {
	b, err := files.ReadFile(name)
	if err != nil {
		panic(err) // embedded
	}
	return strings.TrimSpace(string(b))
}

// Source says for people what the programs were made of: where, the SHA-256 of the
// sources, and the Go that compiled them.
func Source() string {
	return "built from github.com/imgpipe/imgpipe/cmd/imgbuild/initrd, sources SHA-256 " + Sources() + ", by " + field("go-version")
}
