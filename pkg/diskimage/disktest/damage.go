package disktest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// ReadAll reads the contents of all files of a tree, a little of each extent. An error is
// fine, an extent beyond its file is a panic.
func ReadAll(tr *tree.Tree) {
	buf := make([]byte, 1<<16)
	for e := range tr.All() {
		if e.Inode.Data == nil {
			continue
		}
		for _, x := range e.Inode.Data.Extents() {
			if x.Validate(e.Inode.Data.Size()) != nil {
				panic(fmt.Sprint(e.Path, x, " beyond the file"))
			}
			_, _ = e.Inode.Data.ReadAt(buf[:min(x.Len, int64(len(buf)))], x.Off)
		}
	}
}

// Damage overwrites one to four bytes of an image at a time, where at says, has read do
// what must not panic nor hang, and puts them back.
func Damage(image []byte, times int, read func([]byte), at func(*rand.Rand) int) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range times {
		damaged := map[int]byte{}
		for range 1 + rnd.IntN(4) {
			i := at(rnd)
			if _, again := damaged[i]; !again {
				damaged[i] = image[i]
			}
			image[i] = [...]byte{0, 0xff, image[i] ^ 1<<rnd.IntN(8), byte(rnd.Uint32())}[rnd.IntN(4)]
		}
		read(image)
		for i, b := range damaged {
			image[i] = b
		}
	}
}

// FuzzPatches fuzzes what read does with an image, by patches of it: offset (3 bytes,
// little-endian) and value.
func FuzzPatches(f *testing.F, image []byte, read func([]byte), seed []byte) {
	f.Add(seed)
	f.Fuzz(func(t *testing.T, patches []byte) {
		b := bytes.Clone(image)
		for ; len(patches) >= 4; patches = patches[4:] {
			at := int(patches[0]) | int(patches[1])<<8 | int(patches[2])<<16
			b[at%len(b)] = patches[3]
		}
		read(b)
	})
}
