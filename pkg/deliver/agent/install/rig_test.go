//go:build linux

package install

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/nocloud"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const mib = 1 << 20

// november is the epoch of the images unless a test says otherwise.
var november = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// imageOf is an image in memory: an ESP, a config partition, a root of bytes that
// do not compress.
func imageOf(t *testing.T, name string, epoch time.Time) *Image {
	t.Helper()
	id := func(part string) diskimage.GUID { return diskimage.DeriveGUID(name, part) }
	table := &diskimage.Table{DiskGUID: id("disk"), DiskSize: 8 * mib, SectorSize: 512}
	raw := make([]byte, table.DiskSize)
	add := func(p diskimage.Partition, off, size int64, fs diskimage.Disk) {
		p.GUID, p.Extent = id(p.Name), diskimage.Extent{Off: off, Len: size}
		table.Partitions = append(table.Partitions, p)
		if _, err := fs.ReadAt(raw[off:off+size], 0); err != nil {
			t.Fatal(err)
		}
	}
	volume := func(files *tree.Tree, label string) diskimage.Disk {
		fs, err := fat.New(files, fat.Options{Size: 2 * mib, SectorSize: 512, Label: label, VolumeID: 7, Epoch: epoch})
		if err != nil {
			t.Fatal(err)
		}
		return fs
	}
	programs := tree.New()
	if err := programs.Put("/EFI/BOOT/BOOTX64.EFI", &tree.Inode{Data: diskimage.Bytes([]byte("MZ " + epoch.String())), MTime: epoch}); err != nil {
		t.Fatal(err)
	}
	blank, err := nocloud.Blank(epoch)
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 2*mib)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(random) // never fails
	add(diskimage.Partition{Name: "esp", Type: diskimage.TypeESP, Role: diskimage.RoleESP}, mib, 2*mib, volume(programs, "ESP"))
	add(diskimage.Partition{Name: "config", Type: diskimage.TypeBasicData, Role: diskimage.RoleConfig}, 3*mib, 2*mib, volume(blank, nocloud.Label))
	add(diskimage.Partition{Name: "root", Type: diskimage.TypeRootX86_64, Role: diskimage.RoleRoot, Grow: true}, 5*mib, 2*mib, diskimage.Bytes(random))
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	copy(raw, primary)
	copy(raw[len(raw)-len(backup):], backup)
	source, err := delivertest.NewImage(raw, 512, 64<<10, 4*mib)
	if err != nil {
		t.Fatal(err)
	}
	return &Image{Source: source, Digest: diskimage.DigestOf([]byte(name + epoch.String())), Name: name, Version: epoch.Format("2006.1"), Architecture: "amd64",
		Epoch: epoch, SectorSize: 512, Table: table, Trusted: "signed by a test"}
}

// rig is a machine of raw files, and a site that has images by their digest.
type rig struct {
	t       *testing.T
	i       *Installer
	devices []blockdev.Device
	images  map[string]*Image
	opened  int
	said    strings.Builder
}

// newRig makes a machine with a disk of 16 MiB for each content; "" is zeros.
func newRig(t *testing.T, contents ...string) *rig {
	r := &rig{t: t, images: map[string]*Image{}}
	for n, c := range contents {
		path := filepath.Join(t.TempDir(), "disk")
		f, err := os.Create(path)
		if err == nil {
			err = f.Truncate(16 * mib)
		}
		if err == nil && c != "" {
			err = delivertest.Plant(f, c, diskimage.Extent{Len: 16 * mib})
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		d := blockdev.Device{Name: fmt.Sprintf("vd%c", 'a'+n), Path: path, Kind: blockdev.KindDisk, Fit: blockdev.FitQuery, Size: 16 * mib, SectorSize: 512,
			Serial: fmt.Sprint("DISK", n), Transport: "virtio"}
		if n > 0 {
			d.Number = fmt.Sprintf("253:%d", 16*n) // a raw file has none: the first is that
		}
		r.devices = append(r.devices, d)
	}
	r.i = &Installer{Architecture: "amd64", Appear: time.Nanosecond,
		List: func(context.Context) ([]blockdev.Device, error) { return r.devices, nil },
		Open: func(_ context.Context, im wire.Image) (*Image, error) {
			r.opened++
			return r.images[im.Digest], nil
		}}
	return r
}

// job has an image written onto the first disk.
func (r *rig) job(id string, im *Image) *wire.Job {
	r.images[im.Digest.String()] = im
	return &wire.Job{ID: id, Attempt: 1, Disk: "serial=DISK0", Image: wire.Image{Repository: "os", Digest: im.Digest.String(), Reference: "x.example/os:1"},
		Config: wire.Config{UserData: []byte("#cloud-config\n"), Hostname: "one"}}
}

func (r *rig) prepare(job *wire.Job) (agent.Prepared, error) {
	return r.i.Prepare(r.t.Context(), job, new(deliver.Progress), func(step, state, format string, args ...any) {
		fmt.Fprintf(&r.said, "%s: %s: %s\n", step, state, fmt.Sprintf(format, args...))
	})
}

// write does a job to its commit.
func (r *rig) write(job *wire.Job) *deliver.Report {
	r.t.Helper()
	p, err := r.prepare(job)
	if err != nil {
		r.t.Fatal(err)
	}
	report, err := p.Apply(r.t.Context())
	if err == nil {
		err = p.Close()
	}
	if err != nil || report.State != deliver.StateComplete {
		r.t.Fatalf("%+v, %v", report, err)
	}
	return report
}

func (r *rig) content(n int) []byte {
	r.t.Helper()
	b, err := os.ReadFile(r.devices[n].Path)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rig) sums() (out [][32]byte) {
	for n := range r.devices {
		out = append(out, sha256.Sum256(r.content(n)))
	}
	return out
}

// change writes some bytes into a disk behind everybody's back.
func (r *rig) change(n int, off int64, b []byte) {
	r.t.Helper()
	f, err := os.OpenFile(r.devices[n].Path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, off)
		f.Close()
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func truncate(path string, size int64) error { return os.Truncate(path, size) }

// open opens a disk for looking at it.
func (r *rig) open(n int) *blockdev.Disk {
	r.t.Helper()
	d, err := blockdev.Open(r.t.Context(), r.devices[n].Path, blockdev.Options{ReadOnly: true})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = d.Close() })
	return d
}

func entriesOf(t *testing.T, im *Image, order wire.BootOrder) func(deliver.Target, *diskimage.Table, *Image, wire.BootOrder) []string {
	return func(disk deliver.Target, table *diskimage.Table, got *Image, o wire.BootOrder) []string {
		if disk.Size() != 16*mib || table.DiskSize != 16*mib || (got == nil) != (im == nil) || got != nil && got.Digest != im.Digest || o != order {
			t.Errorf("got %d, %+v, %v, %s", disk.Size(), table, got, o)
		}
		return []string{"no room"}
	}
}
