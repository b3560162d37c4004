package deliver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// memory is a disk's bytes.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// usedDisk is a disk of 0xA5 with a GPT of two partitions, in which, and on the
// whole of which, a thing was.
func usedDisk(t testing.TB, size, sector int64, thing string) []byte {
	t.Helper()
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("used"), DiskSize: size, SectorSize: sector, Partitions: []diskimage.Partition{
		{Name: "a", Type: diskimage.TypeLinuxData, GUID: diskimage.DeriveGUID("used", "a"), Extent: diskimage.Extent{Off: mib, Len: size/2 - mib}},
		{Name: "b", Type: diskimage.TypeLinuxData, GUID: diskimage.DeriveGUID("used", "b"), Extent: diskimage.Extent{Off: size/2 + mib, Len: size/2 - 3*mib/2}},
	}}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	b := dirty(size)
	for _, e := range []diskimage.Extent{{Len: size}, table.Partitions[0].Extent, table.Partitions[1].Extent} {
		if err := delivertest.Plant(memory(b), thing, e); err != nil {
			t.Fatal(err)
		}
	}
	copy(b, primary)
	copy(b[len(b)-len(backup):], backup)
	return b
}

// probe lists what is on a disk, as it is and as the scene's table has it.
func (s *scene) probe(t testing.TB, r io.ReaderAt) []signature.Signature {
	t.Helper()
	var also []signature.Region
	if table := s.want(t).Table(); table != nil {
		for _, p := range table.Partitions {
			also = append(also, signature.Region{Extent: p.Extent, Name: p.Name})
		}
	}
	f, err := signature.Probe(r, s.size, s.sector, also...)
	if err != nil {
		t.Fatal(err)
	}
	return f.Signatures
}

// cleanPlan looks at a disk, and plans to erase all signatures beyond the image.
func (s *scene) cleanPlan(t testing.TB, disk *delivertest.Disk, rest deliver.Rest) *deliver.Plan {
	t.Helper()
	w := s.want(t)
	w.SetRest(rest)
	have, err := deliver.Look(ctx, w, disk, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range s.probe(t, disk) {
		have.Erase(w, sig.Extent)
	}
	p, err := deliver.NewPlan(w, have)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// cleaned is what a disk shall be afterwards: the image, and beyond it what was
// there before, but for the sectors of the signatures.
func (s *scene) cleaned(t testing.TB, before []byte) []byte {
	t.Helper()
	b := bytes.Clone(before)
	for _, sig := range s.probe(t, bytes.NewReader(before)) {
		for off := sig.Off / s.sector * s.sector; off < sig.End(); off++ {
			b[off] = 0
		}
		for off := sig.End(); off%s.sector != 0; off++ {
			b[off] = 0
		}
	}
	return s.expected(t, b)
}

// TestNoSignatureIsLeft writes over disks that were everything.
func TestNoSignatureIsLeft(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, thing := range delivertest.Plants() {
			t.Run(fmt.Sprintf("%d/%s", sector, thing), func(t *testing.T) {
				t.Parallel()
				s := newScene(t, sector, 10*mib)
				s.overlays = []diskimage.Overlay{{Off: 7 * mib, Data: diskimage.Bytes(bytes.Repeat([]byte("config  "), 8<<10)), Note: "config"}}
				before := usedDisk(t, s.size, sector, thing)
				disk := delivertest.NewDisk(before, sector)
				plan := s.cleanPlan(t, disk, deliver.RestKeep)
				if plan.Empty() || len(plan.Summary().Clear) < 4 {
					t.Fatalf("%+v", plan.Summary())
				}
				if _, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{}); err != nil {
					t.Fatal(err)
				}
				equalDisks(t, "disk", disk.Content(), s.cleaned(t, before))
				for _, sig := range s.probe(t, disk) {
					if sig.Name != "gpt" || sig.Off != sector && sig.Off != s.size-sector {
						t.Errorf("left: %v", sig)
					}
				}
				if p := s.cleanPlan(t, disk, deliver.RestKeep); !p.Empty() {
					t.Errorf("again: %v", p.Summary())
				}
			})
		}
	}
}

// TestOnlyASignatureIsLeft finds one beyond an image that is there already.
func TestOnlyASignatureIsLeft(t *testing.T) {
	s := newScene(t, 512, 10*mib)
	before := s.expected(t, dirty(s.size))
	root := s.want(t).Table().Partitions[1].Extent
	if err := delivertest.Plant(memory(before), "md1.0", root); err != nil {
		t.Fatal(err)
	}
	disk := delivertest.NewDisk(before, 512)
	plan := s.cleanPlan(t, disk, deliver.RestKeep)
	if _, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	equalDisks(t, "disk", disk.Content(), s.cleaned(t, before))
	if bytes.Equal(disk.Content(), before) {
		t.Error("nothing was erased")
	}
}

// TestPowerCutWhileErasing cuts the power everywhere, and writes again: what lay
// in old partitions is found again, or is gone.
func TestPowerCutWhileErasing(t *testing.T) {
	for _, thing := range []string{"md1.0", "zfs"} {
		t.Run(thing, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, 512, 7*mib)
			before := usedDisk(t, s.size, 512, thing)
			places := slices.DeleteFunc(s.probe(t, bytes.NewReader(before)), func(sig signature.Signature) bool { return sig.Name == "gpt" || sig.Off < 4*mib })
			want := s.cleaned(t, before)
			disk := delivertest.NewDisk(before, 512)
			if _, err := deliver.Apply(ctx, s.cleanPlan(t, disk, deliver.RestKeep), s.source, disk, deliver.Options{Workers: 2, Window: mib}); err != nil {
				t.Fatal(err)
			}
			equalDisks(t, "disk", disk.Content(), want)
			n, body := 0, false
			cuts := delivertest.Cuts{Subsets: 5, Samples: 6}
			if soak {
				cuts = s.thorough(0)
			}
			cuts.Visit = func(what string, state func() []byte) {
				if n++; body && n%150 != 50 { // nothing is erased any more
					return
				}
				left := state()
				body = body || !bytes.Equal(left[mib:4*mib], before[mib:4*mib])
				found := s.probe(t, bytes.NewReader(left))
				for _, sig := range places {
					if !slices.ContainsFunc(found, func(f signature.Signature) bool { return f.Extent == sig.Extent }) && bytes.Equal(left[sig.Off:sig.End()], before[sig.Off:sig.End()]) {
						t.Fatalf("%s: it is still there, and not found any more: %v", what, sig)
					}
				}
				if n%150 != 50 {
					return
				}
				again := delivertest.NewDisk(left, 512)
				if _, err := deliver.Apply(ctx, s.cleanPlan(t, again, deliver.RestKeep), s.source, again, deliver.Options{Workers: 2}); err != nil {
					t.Fatal(err)
				}
				for _, sig := range s.probe(t, again) {
					if sig.Name != "gpt" {
						t.Fatalf("%s, then written again: left %v", what, sig)
					}
				}
				if thing == "md1.0" { // every erased sector is one magic: nothing is erased in part
					equalDisks(t, what, again.Content(), want)
				}
			}
			_, err := disk.Survives(s.invariant(before, want, true), cuts)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states", n)
		})
	}
}

// TestPowerCutWhileErasingAStick has an installer's stick, which firmware starts
// whatever LBA 0 holds: that ends before anything beyond the image is erased.
func TestPowerCutWhileErasingAStick(t *testing.T) {
	s := newScene(t, 512, 7*mib)
	before := usedDisk(t, s.size, 512, "md1.0")
	stick(before)
	disk := delivertest.NewDisk(before, 512)
	if _, err := deliver.Apply(ctx, s.cleanPlan(t, disk, deliver.RestKeep), s.source, disk, deliver.Options{Workers: 2, Window: mib}); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Survives(s.invariant(before, disk.Content(), true), delivertest.Cuts{}); err != nil {
		t.Error(err)
	}
}

// TestNothingOfTheImageIsErased names everything, and the image and the
// overlays stay what they are.
func TestNothingOfTheImageIsErased(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	s.overlays = []diskimage.Overlay{{Off: 5 * mib, Data: diskimage.Bytes(bytes.Repeat([]byte{7}, 1024)), Note: "config"}}
	before := dirty(s.size)
	disk := delivertest.NewDisk(before, 512)
	w := s.want(t)
	have, err := deliver.Look(ctx, w, disk, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	have.Erase(w, diskimage.Extent{Off: 3, Len: s.size - 3})
	plan, err := deliver.NewPlan(w, have)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	equalDisks(t, "disk", disk.Content(), s.expected(t, make([]byte, s.size)))
}

// TestHolds tells the image's own from what is only at the same place.
func TestHolds(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	drifted := s.expected(t, dirty(s.size))
	drifted[2*mib+1000]++
	w := s.want(t)
	have, err := deliver.Look(ctx, w, delivertest.NewDisk(drifted, 512), deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		e    diskimage.Extent
		want bool
	}{
		{diskimage.Extent{Off: mib, Len: 8}, true},
		{diskimage.Extent{Off: 2*mib + 30<<10, Len: 512}, true},
		{diskimage.Extent{Off: 2*mib + 1000, Len: 8}, false},
		{diskimage.Extent{Off: 2*mib + chunkSize - 4, Len: 8}, false},
		{diskimage.Extent{Off: 6 * mib, Len: 8}, false},
		{diskimage.Extent{Off: 512, Len: 8}, true},
	} {
		if got := have.Holds(w, c.e); got != c.want {
			t.Errorf("%v: %v, want %v", c.e, got, c.want)
		}
	}
	if new(deliver.Have).Holds(w, diskimage.Extent{Len: 1}) {
		t.Error("nothing is known, and it holds")
	}
}

// wiper is a disk that discards, after which it holds anything, and erases.
type wiper struct {
	*delivertest.Disk
	why       error // it cannot be erased
	discarded []diskimage.Extent
	erased    int
}

func (d *wiper) CanDiscard() error { return d.why }

func (d *wiper) Discard(e diskimage.Extent) error {
	d.discarded = append(d.discarded, e)
	_, err := d.WriteAt(bytes.Repeat([]byte{0xDD}, int(e.Len)), e.Off)
	return err
}

func (d *wiper) CanSecureErase() error { return d.why }

func (d *wiper) SecureErase(context.Context) error {
	d.erased++
	if !bytes.Equal(d.Content()[:512], make([]byte, 512)) {
		return errors.New("it still boots")
	}
	_, err := d.WriteAt(bytes.Repeat([]byte{0xEE}, int(d.Size())), 0)
	return err
}

// TestWipes gives the target beyond the image each of the ends that it may have.
func TestWipes(t *testing.T) {
	for _, rest := range []deliver.Rest{deliver.RestDiscard, deliver.RestZero, deliver.RestSecure} {
		for _, written := range []bool{false, true} {
			s := newScene(t, 512, 10*mib)
			s.overlays = []diskimage.Overlay{{Off: 7 * mib, Data: diskimage.Bytes(bytes.Repeat([]byte("config  "), 8<<10)), Note: "config"}}
			before := usedDisk(t, s.size, 512, "md1.0")
			if written {
				before = s.expected(t, before)
			}
			disk := &wiper{Disk: delivertest.NewDisk(before, 512)}
			plan := s.cleanPlan(t, disk.Disk, rest)
			if plan.Empty() {
				t.Fatalf("%s: nothing to do", rest)
			}
			if _, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{Window: mib}); err != nil {
				t.Fatal(err)
			}
			want := s.cleaned(t, bytes.Repeat([]byte{map[deliver.Rest]byte{deliver.RestDiscard: 0xDD, deliver.RestSecure: 0xEE}[rest]}, int(s.size)))
			if rest != deliver.RestZero {
				for _, e := range plan.Clear()[1:] {
					if e.Off >= 4*mib && e.End() <= s.size-33*512 {
						clear(want[e.Off:e.End()])
					}
				}
			}
			equalDisks(t, string(rest), disk.Content(), want)
			if rest == deliver.RestZero && !s.cleanPlan(t, disk.Disk, rest).Empty() {
				t.Error("zeroed, and not yet")
			}
			if (disk.erased == 1) != (rest == deliver.RestSecure) || (len(disk.discarded) > 0) != (rest == deliver.RestDiscard) {
				t.Errorf("%s: %+v", rest, disk)
			}
		}
	}
}

// TestWipesWhatItCan refuses before anything is touched.
func TestWipesWhatItCan(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	plain := delivertest.NewDisk(dirty(s.size), 512)
	for _, c := range []struct {
		rest   deliver.Rest
		target deliver.Target
		why    string
	}{
		{deliver.RestDiscard, plain, "cannot discard"},
		{deliver.RestDiscard, &wiper{Disk: plain, why: errors.New("it takes none")}, "it takes none"},
		{deliver.RestSecure, plain, "cannot be erased securely"},
		{deliver.RestSecure, &wiper{Disk: plain, why: errors.New("it is frozen")}, "it is frozen"},
	} {
		_, err := deliver.Apply(ctx, s.cleanPlan(t, plain, c.rest), s.source, c.target, deliver.Options{})
		e, ok := errors.AsType[*deliver.Error](err)
		if !ok || e.Problem != deliver.ProblemTarget || e.State != deliver.StateUntouched || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", c.rest, err)
		}
	}
	equalDisks(t, "disk", plain.Content(), dirty(s.size))
}
