package fstab

import (
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	got := Parse([]byte("# a comment\nUUID=1 / ext4 defaults 0 1\nPARTUUID=AB /boot/efi vfat ro\nLABEL=a\\040b /var/my\\040data ext4\n" +
		"/dev/disk/by-partlabel/x /boot ext4\nUUID=2 none swap sw\nUUID=3 relative ext4\nUUID=4 /../.. ext4\nshort /x\n"))
	want := []Mount{{"/dev/disk/by-partlabel/x", "/boot"}, {"PARTUUID=AB", "/boot/efi"}, {"LABEL=a b", "/var/my data"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMeans(t *testing.T) {
	id := Identity{UUID: "AB-1", Label: "root", PartUUID: "cd-2", PartLabel: "data"}
	for what, want := range map[string]bool{
		"UUID=ab-1": true, `UUID="AB-1"`: true, "LABEL=root": true, "LABEL=ROOT": false, "PARTUUID=CD-2": true, "PARTLABEL=data": true,
		"/dev/disk/by-uuid/AB-1": true, "/dev/disk/by-label/root": true, "/dev/sda1": false, "UUID=": false, "ID=ab-1": false, "": false,
	} {
		if got := (Mount{What: what}).Means(id); got != want {
			t.Errorf("%q: got %v, want %v", what, got, want)
		}
	}
	if (Mount{What: "UUID="}).Means(Identity{}) || (Mount{What: "LABEL=''"}).Means(Identity{}) {
		t.Error("nothing means a partition that has no identity")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("LABEL=a\\040b /var/my\\040data ext4\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range Parse(b) {
			if m.Where == "/" || m.Where == "" || m.Where[0] != '/' {
				t.Fatalf("%q", m.Where)
			}
		}
	})
}
