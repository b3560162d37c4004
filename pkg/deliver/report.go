package deliver

import (
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Report is what Apply did. It is filled in as far as things went when Apply
// fails, too. Byte counts are int64 bytes; times need Options.Now.
type Report struct {
	DiskDigest diskimage.Digest `json:"diskDigest"` // of the image: Index.DiskDigest
	State      State            `json:"state"`
	Target     TargetInfo       `json:"target"`
	Bytes      Bytes            `json:"bytes"`
	Phases     []PhaseTime      `json:"phases,omitempty"`
	ReadBack   ReadMode         `json:"readback,omitempty"` // empty: nothing was written
	Limit      string           `json:"limit,omitempty"`    // what took the most time: wire, cores or disk
	Retries    int64            `json:"retries"`            // of fetches
	Before     TableSummary     `json:"before"`             // the partition table found on the target
	After      TableSummary     `json:"after"`              // the one it shall have
}

// Bytes says where the bytes of the target came from.
type Bytes struct {
	Looked   int64 `json:"looked"`   // read to find what is already there
	Skipped  int64 `json:"skipped"`  // already there
	Fetched  int64 `json:"fetched"`  // over the wire, compressed; with several targets: for all of them
	Decoded  int64 `json:"decoded"`  // the same, plain
	BlockMap int64 `json:"blockMap"` // fetched of the block map, to find what is elsewhere
	Copied   int64 `json:"copied"`   // found elsewhere on the target, verified, and written
	Overlay  int64 `json:"overlay"`  // bytes that overlays had a part in
	Written  int64 `json:"written"`  // data written
	Zeroed   int64 `json:"zeroed"`   // made zeros without sending data, where the target can
	ReadBack int64 `json:"readback"` // read after the flush and compared
}

// PhaseTime is how long a phase took, and what was moved in it. The first MiB
// and the backup GPT are cleared uncounted.
type PhaseTime struct {
	Phase   string  `json:"phase"`
	Seconds float64 `json:"seconds"`
	Moved
}

// Moved is counters, in bytes, as in Bytes.
type Moved struct {
	Looked   int64 `json:"looked,omitempty"`
	Fetched  int64 `json:"fetched,omitempty"`
	Copied   int64 `json:"copied,omitempty"`
	Written  int64 `json:"written,omitempty"`
	Zeroed   int64 `json:"zeroed,omitempty"`
	ReadBack int64 `json:"readback,omitempty"`
}

func (m Moved) since(o Moved) Moved {
	return Moved{m.Looked - o.Looked, m.Fetched - o.Fetched, m.Copied - o.Copied, m.Written - o.Written, m.Zeroed - o.Zeroed, m.ReadBack - o.ReadBack}
}

// TableSummary is a partition table in short. The zero value means none.
type TableSummary struct {
	DiskGUID   *diskimage.GUID    `json:"diskGUID,omitempty"`
	Partitions []PartitionSummary `json:"partitions,omitempty"`
}

// PartitionSummary is one partition of a TableSummary.
type PartitionSummary struct {
	Name   string           `json:"name"`
	Extent diskimage.Extent `json:"extent"`
}

// Summarize returns a table in short; nil gives the zero value.
func Summarize(t *diskimage.Table) (s TableSummary) {
	if t == nil {
		return s
	}
	id := t.DiskGUID
	s.DiskGUID = &id
	for _, p := range t.Partitions {
		s.Partitions = append(s.Partitions, PartitionSummary{p.Name, p.Extent})
	}
	return s
}

// report takes stock.
func (m *meter) report(p *Plan, state State) *Report {
	m.enter(PhaseDone)
	phases := m.phases
	if p.have.looked > 0 {
		phases = append([]PhaseTime{{PhaseLook.String(), p.have.took.Seconds(), Moved{Looked: p.have.looked}}}, phases...)
	}
	r := &Report{
		DiskDigest: p.want.index.DiskDigest, State: state, Target: p.want.target, Phases: phases,
		Bytes: Bytes{
			Looked: p.have.looked, Skipped: p.Bytes(Skip), Fetched: m.wire.Fetched.Load(), Decoded: m.wire.decoded.Load(),
			BlockMap: p.have.mapped, Copied: m.Copied.Load(), Overlay: m.overlaid.Load(), Written: m.Written.Load(), Zeroed: m.Zeroed.Load(), ReadBack: m.ReadBack.Load(),
		},
		Retries: m.wire.retries.Load(), Before: p.have.before, After: Summarize(p.want.table),
	}
	if !p.Empty() {
		wire, cores, disk := m.wire.source.Load(), m.wire.cores.Load(), m.disk.Load()
		switch longest := max(wire, cores, disk); {
		case longest == 0:
		case longest == wire:
			r.Limit = "wire"
		case longest == cores:
			r.Limit = "cores"
		default:
			r.Limit = "disk"
		}
	}
	return r
}
