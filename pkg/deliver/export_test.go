package deliver

// Held returns how many bytes copying holds at most.
func (p *Plan) Held() (most int64) {
	size := int64(0)
	for _, r := range p.rounds {
		for _, i := range r.read {
			size += p.copies.extent(i).Len
		}
		most = max(most, size)
		for _, i := range r.write {
			size -= p.copies.extent(i).Len
		}
	}
	return most
}

// SetStaging says how many bytes chunks that are copied may wait in.
func (h *Have) SetStaging(n int64) { h.staging = n }
