package cache_test

import (
	"io/fs"
	"syscall"
)

// blocksOf returns how many bytes of disk a file takes.
func blocksOf(info fs.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks * 512 }
