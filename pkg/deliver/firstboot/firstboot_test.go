package firstboot_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/imgpipe/imgpipe/pkg/deliver/firstboot"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func table(sector, size int64) *diskimage.Table {
	return &diskimage.Table{DiskSize: 64 << 20, SectorSize: sector, Partitions: []diskimage.Partition{
		{Name: "config", Role: diskimage.RoleConfig, Extent: diskimage.Extent{Off: 4 << 20, Len: size}},
	}}
}

func volume(t *testing.T, o diskimage.Overlay) []byte {
	t.Helper()
	b := make([]byte, o.Data.Size())
	if n, err := o.Data.ReadAt(b, 0); n < len(b) {
		t.Fatalf("read %d of %d: %v", n, len(b), err)
	}
	return b
}

func tool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s: %v", name, err)
	}
}

// TestVolumeIsASeed has fsck.fat judge the volume and reads it with mtools.
func TestVolumeIsASeed(t *testing.T) {
	tool(t, "fsck.fat")
	tool(t, "mtype")
	tool(t, "blkid")
	c := firstboot.Config{
		UserData:      []byte("#cloud-config\nfqdn: x\n"),
		NetworkConfig: []byte("version: 2\n"),
		Hostname:      "db1: \"quoted\"",
		SSHKeys:       []string{"ssh-ed25519 AAAA ops"},
	}
	for _, sector := range []int64{512, 4096} {
		o, err := firstboot.Overlay(table(sector, 8<<20), c, epoch)
		if err != nil {
			t.Fatal(err)
		}
		if o.Extent() != (diskimage.Extent{Off: 4 << 20, Len: 8 << 20}) {
			t.Errorf("extent %v", o.Extent())
		}
		file := filepath.Join(t.TempDir(), "seed")
		if err := os.WriteFile(file, volume(t, o), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("fsck.fat", "-nv", file).CombinedOutput(); err != nil {
			t.Errorf("fsck.fat: %v\n%s", err, out)
		}
		if out, err := exec.Command("blkid", "-p", "-s", "LABEL", "-s", "TYPE", "-o", "export", file).CombinedOutput(); err != nil ||
			!strings.Contains(string(out), "LABEL=CIDATA") || !strings.Contains(string(out), "TYPE=vfat") {
			t.Errorf("blkid: %v\n%s", err, out)
		}
		read := func(name string) []byte {
			out, err := exec.Command("mtype", "-i", file, "::"+name).Output()
			if err != nil {
				t.Errorf("mtype %s: %v", name, err)
			}
			return out
		}
		if got := read("user-data"); !bytes.Equal(got, c.UserData) {
			t.Errorf("user-data %q", got)
		}
		if got := read("network-config"); !bytes.Equal(got, c.NetworkConfig) {
			t.Errorf("network-config %q", got)
		}
		var meta map[string]any
		if err := yaml.Unmarshal(read("meta-data"), &meta); err != nil {
			t.Fatal(err)
		}
		if id, ok := meta["instance-id"].(string); !ok || !strings.HasPrefix(id, "imgpipe-") || meta["local-hostname"] != c.Hostname ||
			meta["public-keys"].([]any)[0] != c.SSHKeys[0] {
			t.Errorf("meta-data %v", meta)
		}
	}
}

func TestMetaData(t *testing.T) {
	for _, c := range []struct {
		name   string
		config firstboot.Config
		want   map[string]any // as cloud-init reads it
		err    string
	}{
		{name: "blank", want: map[string]any{"instance-id": "nocloud"}},
		{name: "given", config: firstboot.Config{MetaData: []byte("# mine\ninstance-id: i-1\n")}, want: map[string]any{"instance-id": "i-1"}},
		{name: "completed", config: firstboot.Config{MetaData: []byte("{a: 1}"), InstanceID: "job-7", Hostname: "h"},
			want: map[string]any{"a": uint64(1), "instance-id": "job-7", "local-hostname": "h"}},
		{name: "agrees", config: firstboot.Config{MetaData: []byte("instance-id: 7\n"), InstanceID: "7"}, want: map[string]any{"instance-id": uint64(7)}},
		{name: "contradicts", config: firstboot.Config{MetaData: []byte("instance-id: a\n"), InstanceID: "b"}, err: "instance-id is there"},
		{name: "no mapping", config: firstboot.Config{MetaData: []byte("- a\n")}, err: "meta-data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tool(t, "mtype")
			o, err := firstboot.Overlay(table(512, 4<<20), c.config, epoch)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "seed")
			if err := os.WriteFile(file, volume(t, o), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("mtype", "-i", file, "::meta-data").Output()
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := yaml.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			if len(got) != len(c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			for k, v := range c.want {
				if got[k] != v {
					t.Errorf("%s: got %v (%T), want %v", k, got[k], got[k], v)
				}
			}
		})
	}
}

func TestSameConfigSameBytes(t *testing.T) {
	make := func(c firstboot.Config) []byte {
		o, err := firstboot.Overlay(table(512, 4<<20), c, epoch)
		if err != nil {
			t.Fatal(err)
		}
		return volume(t, o)
	}
	a := make(firstboot.Config{Hostname: "a", UserData: []byte("x")})
	if !bytes.Equal(a, make(firstboot.Config{Hostname: "a", UserData: []byte("x")})) {
		t.Error("the same config gave other bytes")
	}
	if bytes.Equal(a, make(firstboot.Config{Hostname: "b", UserData: []byte("x")})) {
		t.Error("another host name gave the same bytes")
	}
}

func TestRefused(t *testing.T) {
	big := make([]byte, 5<<20)
	for name, c := range map[string]struct {
		table *diskimage.Table
		user  []byte
		want  error
	}{
		"no table":       {nil, nil, firstboot.ErrNoPartition},
		"no partition":   {&diskimage.Table{}, nil, firstboot.ErrNoPartition},
		"more than all":  {table(512, 4<<20), big, firstboot.ErrTooLarge},
		"no room beside": {table(512, 4<<20), big[:4<<20-8192], firstboot.ErrTooLarge},
	} {
		if _, err := firstboot.Overlay(c.table, firstboot.Config{UserData: c.user}, epoch); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestErrorsTellNothingOfWhatIsInMetaData(t *testing.T) {
	for meta, want := range map[string]string{
		"a: b\npassword: hunter2\n bad: [\n": "meta-data: line 2, column 11: not a mapping in YAML",
		"hunter2\n":                          "meta-data: line 1, column 1: not a mapping in YAML",
		"- a\n- hunter2\n":                   "meta-data: line 1, column 1: not a mapping in YAML",
		"a: *hunter2\n":                      "meta-data: ",
		"local-hostname: hunter2\n":          "meta-data: local-hostname is there, and another was asked for",
		"a: .inf\n":                          "meta-data: a value that JSON has not",
	} {
		_, err := firstboot.Overlay(table(512, 4<<20), firstboot.Config{MetaData: []byte(meta), Hostname: "db1"}, epoch)
		if !errors.Is(err, firstboot.ErrMetaData) || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: got %v, want %q", meta, err, want)
		}
	}
}

func TestDigestTellsFieldsApart(t *testing.T) {
	a := firstboot.Config{UserData: []byte("ab")}
	b := firstboot.Config{UserData: []byte("a"), MetaData: []byte("b")}
	if a.Digest() == b.Digest() {
		t.Error("two configs have one digest")
	}
	if !(firstboot.Config{}).IsZero() || a.IsZero() {
		t.Error("IsZero is wrong")
	}
}
