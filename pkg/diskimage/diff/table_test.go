package diff

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func guid(name string) diskimage.GUID { return diskimage.DeriveGUID(name) }

func TestTables(t *testing.T) {
	const mib = 1 << 20
	esp := diskimage.Partition{Name: "esp", GUID: guid("esp"), Type: diskimage.TypeESP, Extent: diskimage.Extent{Off: mib, Len: mib}}
	root := diskimage.Partition{Name: "root", GUID: guid("root"), Extent: diskimage.Extent{Off: 2 * mib, Len: mib}, Filesystem: diskimage.Filesystem{Type: "ext4", Label: "r"}}
	table := func(p ...diskimage.Partition) *diskimage.Table { return &diskimage.Table{Partitions: p} }
	edit := func(p diskimage.Partition, f func(*diskimage.Partition)) diskimage.Partition { f(&p); return p }
	for _, c := range []struct {
		a, b *diskimage.Table
		want string
	}{
		{table(esp, root), table(esp, root), "esp same, root same"},
		{nil, nil, ""},
		{nil, table(esp), "esp added"},
		{table(esp, root), table(root), "root same, esp removed"},
		{table(root), table(edit(root, func(p *diskimage.Partition) { p.Name = "system" })), "system changed name"},
		{table(root), table(edit(root, func(p *diskimage.Partition) { p.GUID = guid("other") })), "root changed guid"},
		{table(root), table(edit(root, func(p *diskimage.Partition) { p.GUID, p.Name = guid("other"), "other" })), "other added, root removed"},
		{table(root), table(edit(root, func(p *diskimage.Partition) { p.Extent.Off, p.Extent.Len = 4*mib, 9 })), "root changed start size"},
		{table(root), table(edit(root, func(p *diskimage.Partition) {
			p.Type, p.Attributes, p.Number, p.Role, p.Grow = guid("type"), 1, 7, diskimage.RoleRoot, true
			p.Filesystem = diskimage.Filesystem{Type: "ext3", Label: "s", UUID: "u"}
		})), "root changed type attributes number role grow filesystem label uuid"},
		{table(diskimage.Partition{Number: 2}), table(diskimage.Partition{Number: 2, Grow: true}, diskimage.Partition{}), "partition 2 changed grow, partition 2 added"},
		{TableOf(&diskimage.MBR{Partitions: []diskimage.MBRPartition{{Number: 5, Type: 0x83}}}, diskimage.Filesystem{}, mib),
			TableOf(&diskimage.MBR{Partitions: []diskimage.MBRPartition{{Number: 5, Type: 0x0c}}}, diskimage.Filesystem{}, mib), "partition 5 (0x0c) changed name"},
		{TableOf(nil, diskimage.Filesystem{Type: "ext4"}, mib), TableOf(nil, diskimage.Filesystem{Type: "ext4", Label: "x"}, 2*mib), "disk changed size label"},
		{TableOf(nil, diskimage.Filesystem{}, mib), table(esp), "esp added"},
		// The GUID decides before the name.
		{table(esp, root), table(edit(root, func(p *diskimage.Partition) { p.Name = "esp" }), edit(esp, func(p *diskimage.Partition) { p.Name = "root" })), "esp changed name, root changed name"},
	} {
		var got []string
		for _, p := range Tables(c.a, c.b) {
			got = append(got, strings.TrimSpace(p.Name+" "+p.Change+" "+strings.Join(p.What, " ")))
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("got %q, want %q", text, c.want)
		}
	}
}

func TestLocate(t *testing.T) {
	a := make([]byte, 20*chunk)
	for i := range a {
		a[i] = 1
	}
	b := slices.Clone(a)
	b[3*chunk]++                // p1
	clear(b[8*chunk : 9*chunk]) // p2: zeros now
	part := func(name string, first, n int64) diskimage.Partition {
		return diskimage.Partition{Name: name, GUID: guid(name), Extent: diskimage.Extent{Off: first * chunk, Len: n * chunk}}
	}
	table := &diskimage.Table{Partitions: []diskimage.Partition{part("p0", 1, 1), part("p1", 2, 2), part("p2", 8, 2), part("p3", 12, 2)}}
	xb := indexOf(t, b, chunk)
	parts := Tables(table, table)
	Indexes(indexOf(t, a, chunk), xb).Locate(xb, parts)
	got := ""
	for _, p := range parts {
		got += fmt.Sprintf("%s %s %v %d %v; ", p.Name, p.Change, p.What, p.Chunks, p.Wire > 0)
	}
	if want := "p0 same [] 0 false; p1 changed [contents] 1 true; p2 changed [contents] 0 false; p3 same [] 0 false; "; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestPackages(t *testing.T) {
	list := func(text string) (out []Package) {
		for _, p := range strings.Fields(text) {
			f := strings.Split(p, "/")
			out = append(out, Package{f[0], f[1], f[2]})
		}
		return out
	}
	for _, c := range []struct{ a, b, want string }{
		{"a/1/x b/2/x", "b/2/x a/1/x", ""},
		{"a/1/x", "a/2/x", "a upgraded 1/x 2/x;"},
		{"a/1.0/x", "a/1.0~rc1/x", "a downgraded 1.0/x 1.0~rc1/x;"},
		{"a/1.0/x", "a/1.00/x", "a changed 1.0/x 1.00/x;"},
		{"a/1/x", "a/1/all", "a changed 1/x 1/all;"},
		{"a/1/x", "a/2/all", "a upgraded 1/x 2/all;"},
		{"b/1/x", "a/1/x", "a added - 1/x;b removed 1/x -;"},
		{"a/1/x", "a/1/x a/1/y", "a added - 1/y;"},
		{"a/1/x a/1/y", "a/2/y a/2/x", "a upgraded 1/x 2/x;a upgraded 1/y 2/y;"},
		{"a/1/x a/1/y", "a/1/z", "a removed 1/x -;a removed 1/y -;a added - 1/z;"},
		{"a/1/x a/2/x", "a/2/x", "a removed 1/x -;"},
		{"a/1/x", "", "a removed 1/x -;"},
	} {
		got := ""
		for _, p := range Packages(list(c.a), list(c.b)) {
			got += p.Name + " " + p.Change
			for _, v := range []*Version{p.Before, p.After} {
				if v == nil {
					got += " -"
				} else {
					got += " " + v.Version + "/" + v.Architecture
				}
			}
			got += ";"
		}
		if got != c.want {
			t.Errorf("%s to %s: %s, want %s", c.a, c.b, got, c.want)
		}
	}
}

// TestPackagesTurnOneListIntoTheOther takes out what was and puts in what is.
func TestPackagesTurnOneListIntoTheOther(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 5))
	random := func() (out []Package) {
		for range rnd.IntN(12) {
			out = append(out, Package{string(rune('a' + rnd.IntN(3))), fmt.Sprint(rnd.IntN(3)), string(rune('x' + rnd.IntN(3)))})
		}
		return out
	}
	for range 1000 {
		a, b := random(), random()
		now := map[Package]int{}
		for _, p := range a {
			now[p]++
		}
		for _, c := range Packages(a, b) {
			if c.Before != nil {
				now[Package{c.Name, c.Before.Version, c.Before.Architecture}]--
			}
			if c.After != nil {
				now[Package{c.Name, c.After.Version, c.After.Architecture}]++
			}
		}
		for _, p := range b {
			now[p]--
		}
		for p, n := range now {
			if n != 0 {
				t.Fatalf("%v to %v: %v is %d too many", a, b, p, n)
			}
		}
	}
}
