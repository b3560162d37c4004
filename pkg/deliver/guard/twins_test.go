package guard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

type paper []byte

func (p paper) WriteAt(b []byte, off int64) (int, error) { return copy(p[off:], b), nil }

// TestTwinsOfTheMachine looks through disks of every kind.
func TestTwinsOfTheMachine(t *testing.T) {
	const size = 8 << 20
	copyOf := make(paper, size)
	if err := delivertest.Plant(copyOf, "ext4", diskimage.Extent{Len: size}); err != nil {
		t.Fatal(err)
	}
	seed := make(paper, size)
	if err := delivertest.Plant(seed, "iso9660", diskimage.Extent{Len: size}); err != nil {
		t.Fatal(err)
	}
	contents := map[string][]byte{"/dev/target": copyOf, "/dev/path2": copyOf, "/dev/copy": copyOf, "/dev/copy2": copyOf, "/dev/blank": make([]byte, size), "/dev/seed": seed, "/dev/loop0": copyOf, "/dev/sr0": seed}
	device := func(path, number string, kind blockdev.Kind, wwn string) blockdev.Device {
		return blockdev.Device{Path: path, Number: number, Kind: kind, Size: size, SectorSize: 512, WWN: wwn, Serial: "S"}
	}
	devices := []blockdev.Device{
		device("/dev/target", "8:0", blockdev.KindDisk, "0x5000c500a1b2c3d4"), device("/dev/path2", "8:16", blockdev.KindDisk, "0x5000c500a1b2c3d4"),
		device("/dev/copy", "8:32", blockdev.KindDisk, "0x5000c500a1b2c3d5"), device("/dev/copy2", "8:48", blockdev.KindDisk, ""), device("/dev/blank", "8:64", blockdev.KindDisk, ""),
		device("/dev/seed", "8:80", blockdev.KindDisk, ""), device("/dev/loop0", "7:0", blockdev.KindLoop, ""), device("/dev/sr0", "11:0", blockdev.KindOptical, ""),
		device("/dev/broken", "8:96", blockdev.KindDisk, ""), {Path: "/dev/empty", Number: "8:112", Kind: blockdev.KindDisk},
	}
	closed := 0
	open := func(d blockdev.Device) (io.ReaderAt, func() error, error) {
		b, ok := contents[d.Path]
		if !ok {
			return nil, nil, errors.New("input/output error")
		}
		return bytes.NewReader(b), func() error { closed++; return nil }, nil
	}
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("t"), Partitions: []diskimage.Partition{
		{GUID: diskimage.DeriveGUID("p"), Role: diskimage.RoleConfig}, {GUID: diskimage.DeriveGUID("r"), Filesystem: diskimage.Filesystem{UUID: "0fa51e77-8b3c-4d01-9a60-112233445566"}},
	}}
	target := blockdev.Info{Path: "/dev/target", Number: "8:0", Size: size, WWN: "0x5000c500a1b2c3d4", Serial: "S"}
	retired := blockdev.Info{Path: "/dev/copy2", Number: "8:48", Size: size}
	var said string
	say := func(format string, args ...any) { said += fmt.Sprintf(format, args...) }
	got := Twins(t.Context(), say, devices, open, signature.IdentitiesOf(table, nil, nil), target, retired)
	var paths []string
	for _, g := range got {
		paths = append(paths, g.Path+" "+fmt.Sprint(g.Shares))
	}
	want := "/dev/copy [filesystem UUID 0fa51e77-8b3c-4d01-9a60-112233445566]; /dev/seed [label CIDATA]"
	if s := strings.Join(paths, "; "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
	if said != "/dev/broken cannot be read: whether it is a copy of this image is not known (input/output error)" {
		t.Errorf("said %q", said)
	}
	if closed != 3 {
		t.Errorf("%d disks were opened and closed, want copy, blank and seed", closed)
	}
	err := RefuseTwins(got)
	e, ok := errors.AsType[*deliver.Error](err)
	if !ok || e.Problem != deliver.ProblemTarget || !strings.Contains(err.Error(), "nothing was written") || !strings.HasSuffix(e.Try, "--retire /dev/copy --retire /dev/seed to make it not bootable, or --allow-twin if the target goes into another machine") {
		t.Errorf("%v, %+v", err, e)
	}
	if RefuseTwins(nil) != nil {
		t.Error("refused without a twin")
	}
}

// TestAllowedTwins names the copies that stay, one after the other.
func TestAllowedTwins(t *testing.T) {
	found := []Twin{
		{Path: "/dev/sda", Shares: []signature.Identity{{Kind: "disk GUID", Value: "1"}}},
		{Path: "/dev/sdb", Shares: []signature.Identity{{Kind: "label", Value: "CIDATA"}}},
	}
	links := map[string]string{"/dev/disk/by-id/a": "/dev/sda", "/dev/sdb": "/dev/sdb", "/dev/sdc": "/dev/sdc"}
	allow := func(paths ...string) (said []string, err error) {
		say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
		return said, AllowTwins(say, found, paths, func(a, b string) bool { return links[a] == b })
	}
	if said, err := allow("/dev/sdc"); err == nil || len(said) > 0 || !strings.Contains(err.Error(), "/dev/sdc is no copy of this image") {
		t.Errorf("a disk that is no copy: %v, %q", err, said)
	}
	said, err := allow("/dev/disk/by-id/a")
	if want := "warning: /dev/sda shares disk GUID 1 with what is written: while both are in one machine, it boots, and is configured from, either"; err != nil || len(said) != 1 || said[0] != want {
		t.Errorf("%v, %q, want %q", err, said, want)
	}
	if err := RefuseTwins(found); err == nil || strings.Contains(err.Error(), "sda") || !strings.Contains(err.Error(), "/dev/sdb shares label CIDATA") {
		t.Errorf("one of two is allowed: %v", err)
	}
	if said, err := allow("/dev/disk/by-id/a", "/dev/sdb", "/dev/sdb"); err != nil || len(said) != 1 || RefuseTwins(found) != nil {
		t.Errorf("both are allowed: %v, %q, %v", err, said, RefuseTwins(found))
	}
}
