package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Halves of a root hash, as an update's files are named.
const (
	rootHalf = "00112233-4455-6677-8899-aabbccddeeff"
	hashHalf = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
)

// edgeDisk is a disk with two slots in a file, release 1 in the one that runs, beside files that stand in for its
// partitions, and what sysfs says of them and of the root.
type edgeDisk struct {
	t      *testing.T
	dir    string
	script string
}

func newEdgeDisk(t *testing.T, sealed bool) *edgeDisk {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	if _, err := exec.LookPath("sfdisk"); err != nil {
		t.Skip("needs sfdisk: make deps")
	}
	d := &edgeDisk{t: t, dir: t.TempDir()}
	const root, hashes = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5"
	table := "label: gpt\nsize=4M, name=esp\n"
	for _, p := range [][2]string{{"edge_1", root}, {"edge_0", root}, {"edge_1_verity", hashes}, {"edge_0_verity", hashes}} {
		table += fmt.Sprintf("size=1M, name=%q, type=%s\n", p[0], p[1])
	}
	d.write("dev/vda", "")
	if err := os.Truncate(filepath.Join(d.dir, "dev/vda"), 16<<20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "--quiet", filepath.Join(d.dir, "dev/vda"))
	cmd.Stdin = strings.NewReader(table)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for n := 1; n <= 5; n++ {
		at := fmt.Sprintf("sys/devices/vda/vda%d/", n)
		d.write(at+"partition", fmt.Sprint(n))
		d.write(at+"size", "2048")
		d.write(fmt.Sprintf("dev/vda%d", n), "old")
		d.link(fmt.Sprintf("../../devices/vda/vda%d", n), fmt.Sprintf("sys/class/block/vda%d", n))
	}
	d.link("../../devices/vda", "sys/class/block/vda")
	d.link("../../devices/vda/vda2", "sys/dev/block/8:0")
	if sealed {
		d.link("../../vda/vda2", "sys/devices/dm-0/slaves/vda2")
		d.link("../../vda/vda4", "sys/devices/dm-0/slaves/vda4")
		d.link("../../devices/dm-0", "sys/class/block/dm-0")
		d.link("../../devices/dm-0", "sys/dev/block/8:1")
	}
	d.write("os-release", "IMAGE_ID=\"edge\"\nIMAGE_VERSION=\"1\"\n")
	d.write("efi/EFI/Linux/edge_1.efi", "uki 1")
	d.write("efi/EFI/Linux/edge_0+0-3.efi", "uki 0")
	d.write("bin/findmnt", map[bool]string{false: "#!/bin/sh\necho '  8:0  '\n", true: "#!/bin/sh\necho '  8:1  '\n"}[sealed])
	d.write("bin/blockdev", "#!/bin/sh\n[ \"$1 $#\" = '--flushbufs 2' ] && [ -e \"$2\" ]\n")
	t.Setenv("PATH", filepath.Join(d.dir, "bin")+":"+os.Getenv("PATH"))
	b, err := os.ReadFile("../../recipes/edge/edge-update")
	if err != nil {
		t.Fatal(err)
	}
	d.script = strings.NewReplacer("/sys/", d.dir+"/sys/", "/efi/EFI", d.dir+"/efi/EFI", "/usr/lib/os-release", d.dir+"/os-release",
		`"/dev/$`, `"`+d.dir+`/dev/$`, "of="+`"/dev/`, "of="+`"`+d.dir+"/dev/").Replace(string(b))
	return d
}

func (d *edgeDisk) write(name, text string) {
	d.t.Helper()
	at := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), 0o755); err != nil {
		d.t.Fatal(err)
	}
}

func (d *edgeDisk) link(to, name string) {
	d.t.Helper()
	at := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Symlink(to, at); err != nil {
		d.t.Fatal(err)
	}
}

// update runs it with a folder of these files, and their sums.
func (d *edgeDisk) update(files map[string]string) (string, error) {
	d.t.Helper()
	folder, err := os.MkdirTemp(d.dir, "update")
	if err != nil {
		d.t.Fatal(err)
	}
	var sums bytes.Buffer
	for name, text := range files {
		d.write(filepath.Base(folder)+"/"+name, text)
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256([]byte(text)), name)
	}
	d.write(filepath.Base(folder)+"/SHA256SUMS", sums.String())
	out, err := exec.CommandContext(d.t.Context(), "sh", "-c", d.script, "edge-update", folder).CombinedOutput()
	return string(out), err
}

// state is all that an update may change: names and PARTUUIDs, slots, UKIs.
func (d *edgeDisk) state() string {
	d.t.Helper()
	out, err := exec.Command("sfdisk", "--quiet", "-l", "-o", "UUID,Name", filepath.Join(d.dir, "dev/vda")).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%v\n%s", err, out)
	}
	for n := 1; n <= 5; n++ {
		b, err := os.ReadFile(filepath.Join(d.dir, fmt.Sprintf("dev/vda%d", n)))
		if err != nil {
			d.t.Fatal(err)
		}
		out = fmt.Appendf(out, "vda%d: %s\n", n, b)
	}
	ukis, err := filepath.Glob(filepath.Join(d.dir, "efi/EFI/Linux/*"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, uki := range ukis {
		out = append(out, filepath.Base(uki)+"\n"...)
	}
	return string(out)
}

// TestEdgeUpdate: into the slot that does not run, of a sealed root with its hashes and
// the PARTUUIDs that the root hash asks for; twice, as after a cut.
func TestEdgeUpdate(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"plain": {map[string]string{"edge_2.root.raw": "new", "edge_2.efi": "uki"},
			[]string{" edge_1\n", " edge_2\n", " edge_1_verity\n", " edge_0_verity\n", "vda2: old\nvda3: new\nvda4: old\nvda5: old\nedge_1.efi\nedge_2+3.efi\n"}},
		"sealed": {map[string]string{"edge_2_" + rootHalf + ".root.raw": "new", "edge_2_" + hashHalf + ".verity.raw": "hashes", "edge_2.efi": "uki"},
			[]string{" edge_1\n", strings.ToUpper(rootHalf) + " edge_2\n", " edge_1_verity\n", strings.ToUpper(hashHalf) + " edge_2_verity\n",
				"vda2: old\nvda3: new\nvda4: old\nvda5: hashes\nedge_1.efi\nedge_2+3.efi\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newEdgeDisk(t, name == "sealed")
			for range 2 {
				out, err := d.update(c.files)
				if err != nil || !strings.Contains(out, "edge_2 is in vda3") {
					t.Fatalf("%v\n%s", err, out)
				}
				state := d.state()
				for _, want := range c.want {
					if !strings.Contains(state, want) {
						t.Errorf("no %q in\n%s", want, state)
					}
				}
			}
		})
	}
}

// A disk that loses what it was given keeps the release that runs, and what is half there
// does not boot.
func TestEdgeUpdateReadsBack(t *testing.T) {
	d := newEdgeDisk(t, false)
	d.write("bin/blockdev", "#!/bin/sh\nprintf X >\"$2\"\n") // what the disk has after all
	out, err := d.update(map[string]string{"edge_2.root.raw": "new", "edge_2.efi": "uki"})
	if err == nil || !strings.Contains(out, "vda3 does not hold what was written; 1 stays what boots") {
		t.Errorf("%v\n%s", err, out)
	}
	if state := d.state(); !strings.Contains(state, " edge_1\n") || !strings.Contains(state, " _empty\n") || !strings.HasSuffix(state, "vda5: old\nedge_1.efi\n") {
		t.Errorf("state\n%s", state)
	}
}

// TestEdgeUpdateRefuses what does not belong there, and has then written nothing.
func TestEdgeUpdateRefuses(t *testing.T) {
	big := strings.Repeat("x", 1<<20+1)
	for name, c := range map[string]struct {
		sealed bool
		files  map[string]string
		want   string
	}{
		"what runs":              {false, map[string]string{"edge_1.root.raw": "new", "edge_1.efi": "uki"}, "edge_1 is what runs"},
		"another image":          {false, map[string]string{"other_2.root.raw": "new", "other_2.efi": "uki"}, "not one edge"},
		"two releases":           {false, map[string]string{"edge_2.root.raw": "new", "edge_2.efi": "uki", "edge_3.efi": "uki"}, "not one edge"},
		"no root":                {false, map[string]string{"edge_2.efi": "uki"}, "edge_2"},
		"a root too large":       {false, map[string]string{"edge_2.root.raw": big, "edge_2.efi": "uki"}, "larger than vda3"},
		"hashes too large":       {true, map[string]string{"edge_2_" + rootHalf + ".root.raw": "new", "edge_2_" + hashHalf + ".verity.raw": big, "edge_2.efi": "uki"}, "larger than vda5"},
		"sealed on a plain one":  {false, map[string]string{"edge_2_" + rootHalf + ".root.raw": "new", "edge_2.efi": "uki"}, "not sealed"},
		"plain on a sealed one":  {true, map[string]string{"edge_2.root.raw": "new", "edge_2.efi": "uki"}, "does not say its root hash"},
		"sealed, without hashes": {true, map[string]string{"edge_2_" + rootHalf + ".root.raw": "new", "edge_2.efi": "uki"}, "does not say its root hash"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newEdgeDisk(t, c.sealed)
			before := d.state()
			out, err := d.update(c.files)
			if err == nil || !strings.Contains(out, c.want) {
				t.Errorf("%v, want %q in\n%s", err, c.want, out)
			}
			if after := d.state(); after != before {
				t.Errorf("changed to\n%s, was\n%s", after, before)
			}
		})
	}
}
