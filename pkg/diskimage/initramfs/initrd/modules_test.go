package initrd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func modulesOf(t *testing.T, lists map[string]string) (*Modules, *[]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range lists {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := OpenModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	var loaded []string
	m.insert = func(file string) error {
		name := strings.TrimPrefix(file, dir+"/")
		if strings.Contains(name, "broken") {
			return errors.New("exec format error")
		}
		loaded = append(loaded, name)
		return nil
	}
	return m, &loaded
}

var lists = map[string]string{
	"modules.dep":     "k/virtio-blk.ko: k/virtio_ring.ko k/virtio.ko\nk/virtio_ring.ko: k/virtio.ko\nk/virtio.ko:\nk/ext4.ko: k/jbd2.ko\nk/jbd2.ko:\nk/crc32c_generic.ko:\nk/late.ko:\nk/broken.ko:\nk/needs.ko: k/broken.ko\nk/round.ko:\n",
	"modules.alias":   "# comment\nalias virtio:d00000002v* virtio_blk\nalias fs-ext4 ext4\nalias crypto-crc32c crc32c_generic\nalias pci:v*d*sv*sd*bc01sc06i01* needs\nalias acpi*:PNP0A0[38]:* late\n",
	"modules.softdep": "softdep ext4 pre: crc32c_generic nothing post: late\nsoftdep round pre: round\n",
	"modules.builtin": "kernel/fs/erofs.ko\n",
}

func TestModulesLoadBehindWhatTheyNeed(t *testing.T) {
	for name, want := range map[string]string{
		"virtio-blk":    "k/virtio.ko k/virtio_ring.ko k/virtio-blk.ko",
		"fs-ext4":       "k/jbd2.ko k/crc32c_generic.ko k/ext4.ko k/late.ko",
		"crypto-crc32c": "k/crc32c_generic.ko",
		"erofs":         "",
		"round":         "k/round.ko",
	} {
		m, loaded := modulesOf(t, lists)
		for range 2 { // once is enough
			if err := m.Load(name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := strings.Join(*loaded, " "); got != want {
			t.Errorf("%s: loaded %s, want %s", name, got, want)
		}
	}
	m, _ := modulesOf(t, lists)
	if err := m.Load("nosuch"); !errors.Is(err, errNoModule) {
		t.Errorf("nosuch: %v", err)
	}
}

// A device's module that does not load is said once.
func TestDevice(t *testing.T) {
	m, loaded := modulesOf(t, lists)
	if err := m.Device("virtio:d00000002v00001AF4"); err != nil || len(*loaded) != 3 {
		t.Errorf("%v, %v", *loaded, err)
	}
	const ahci = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"
	if err := m.Device(ahci); err == nil || !strings.Contains(err.Error(), "module broken: exec format error") {
		t.Errorf("got %v", err)
	}
	if err := m.Device(ahci); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if got := m.For("acpi:PNP0A08:PNP0A03:"); len(got) != 1 || got[0] != "late" {
		t.Errorf("got %v", got)
	}
	if m, err := OpenModules(t.TempDir()); err != nil || m.Device(ahci) != nil {
		t.Errorf("without lists: %v", err)
	}
}
