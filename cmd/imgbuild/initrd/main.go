//go:build linux

// Command initrd is /init of native initramfs (docs/initramfs.md). imgbuild carries
// it compiled: see package initprogram.
package main

import "github.com/imgpipe/imgpipe/pkg/diskimage/initramfs/initrd"

func main() { initrd.Main() }
