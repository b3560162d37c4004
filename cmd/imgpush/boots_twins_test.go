package main

import (
	"bytes"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
)

// TestFirmwareTwins has two disks with the same identities in one machine, the
// old one first in the firmware's order: it starts that, whatever was written
// onto the other. It starts the other once the old one is retired, and so it does
// when the power fails after LBA 0, which goes first.
func TestFirmwareTwins(t *testing.T) {
	host := firmwareHost(t)
	const size = 6 * mib
	old, table := bootDisk(t, size, "twins", started+"the old copy", turnOff)
	image, _ := bootDisk(t, size, "twins", started+"the image", turnOff)
	found, err := signature.Probe(bytes.NewReader(old), size, 512)
	if err != nil {
		t.Fatal(err)
	}
	shared := signature.Twins(signature.IdentitiesOf(table, nil, nil), found)
	if len(shared) != 2 { // the disk's and the partition's
		t.Fatalf("the disks share %v", shared)
	}
	boot := found.BootBytes(size, 512, shared...)

	vars := newVars(t, host)
	expect := func(what, want string) {
		t.Helper()
		console, after := runOVMF(t, host, vars, false, old, image)
		if got := startedBy(console); got != want {
			t.Errorf("%s: OVMF starts %q, want %q\n%s", what, got, want, console)
		}
		t.Logf("%s:\n%s", what, console)
		if !bytes.Equal(after[0], old) || !bytes.Equal(after[1], image) {
			t.Errorf("%s: firmware wrote to a disk", what)
		}
	}
	expect("both", "the old copy")
	clear(old[boot[0].Off:boot[0].End()])
	expect("LBA 0 of the old one cleared", "the image")
	for _, e := range boot[1:] {
		clear(old[e.Off:e.End()])
	}
	expect("the old one retired", "the image")
	if found, err := signature.Probe(bytes.NewReader(old), size, 512); err != nil || len(signature.Twins(shared, found)) > 0 {
		t.Errorf("the retired disk is still a twin: %v, %v", signature.Twins(shared, found), err)
	}
}
