//go:build ignore

// Generate builds the programs: `go generate` here.
package main

import (
	"log"
	"os"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs/initprogram/rebuild"
)

func main() {
	log.SetFlags(0)
	for _, arch := range []string{"amd64", "arm64"} {
		program, err := rebuild.Program(arch)
		if err != nil {
			log.Fatal(err)
		}
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
		if err != nil {
			log.Fatal(err)
		}
		write("init-"+arch+".zst", e.EncodeAll(program, nil))
	}
	sources, err := rebuild.Sources()
	if err != nil {
		log.Fatal(err)
	}
	write("sources", []byte(sources+"\n"))
	write("go-version", []byte(runtime.Version()+"\n"))
}

func write(name string, b []byte) {
	if err := os.WriteFile(name, b, 0o644); err != nil {
		log.Fatal(err)
	}
}
