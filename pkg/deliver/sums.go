package deliver

import "hash/maphash"

// sums remembers what was written of each chunk, by a keyed hash of 64 bits that
// costs a tenth of SHA-256: to tell, in the same run, whether what is read back
// is what was written. They are taken from bytes that were verified by then, by
// the digest of their chunk. The key is drawn anew for each run, so that nothing
// that a disk or a source holds can be made to fit. 8 bytes for each chunk.
type sums struct {
	seed maphash.Seed
	of   []uint64 // by chunk; 0: not known
}

func newSums(chunks int) *sums {
	return &sums{maphash.MakeSeed(), make([]uint64, chunks)}
}

func (s *sums) take(chunk int32, b []byte) { s.of[chunk] = maphash.Bytes(s.seed, b) }

// match reports whether b is what was taken. It knows nothing of other chunks.
func (s *sums) match(chunk int32, b []byte) (same, known bool) {
	if s == nil || s.of[chunk] == 0 {
		return false, false
	}
	return s.of[chunk] == maphash.Bytes(s.seed, b), true
}
