// Package place says where things lie that are to stay there when others change:
// at places that follow from their names, as docs/ext4.md has it under "Hashes".
//
//	key := place.Hash("libssl3")
//	for r := range 64 {
//		chunk := place.Probe(key, r, chunks)    // the r-th choice
//	}
//
// Names says which inodes there are to be placed, and what each is called.
package place

// Mix is the finalizer of splitMix: every bit of the result depends on
// every bit of h.
func Mix(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

// Hash is 64-bit FNV-1a, mixed.
func Hash(s string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 0x100000001b3
	}
	return Mix(h)
}

// Probe is the r-th place in [0, n) to try for a key. It is the jump
// consistent hash of Lamping and Veach: when n grows to m, only the share
// (m-n)/m of all places moves, and all of it into [n, m).
func Probe(key uint64, r int, n int64) int64 {
	k := Mix(key + uint64(r)*0x9e3779b97f4a7c15)
	b, j := int64(-1), int64(0)
	for j < n {
		b = j
		k = k*2862933555777941757 + 1
		j = int64(float64(b+1) * (float64(int64(1)<<31) / float64(k>>33+1)))
	}
	return b
}
