//go:build linux

package blockdev

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sysfs makes files below a directory: path to content.
func sysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestInUse is a table of disks in sysfs and mount tables, for the guards that
// a kernel without the drivers cannot be asked about.
func TestInUse(t *testing.T) {
	disk := map[string]string{
		"sda/dev": "8:0\n", "sda/size": "100\n",
		"sda/sda1/partition": "1\n", "sda/sda1/dev": "8:1\n",
		"sda/sda2/partition": "2\n", "sda/sda2/dev": "8:2\n",
		"sda/queue/partition_like": "",
	}
	const other = "24 1 0:22 / /proc rw,nosuid - proc proc rw\n30 1 8:16 / /srv rw - ext4 /dev/sdb rw\n"
	for _, c := range []struct {
		name, mounts string
		holders      string
		want         string
	}{
		{name: "free", mounts: other},
		{name: "disk mounted", mounts: other + "31 1 8:0 / /mnt rw shared:1 - ext4 /dev/sda rw\n", want: "/dev/sda is mounted on /mnt"},
		{name: "partition mounted", mounts: other + "31 1 8:2 /sub /a\\040b rw - xfs /dev/sda2 rw\n", want: "/dev/sda2 is mounted on /a b"},
		{name: "root", mounts: "1 0 8:1 / / rw - ext4 /dev/root rw\n" + other, want: "/dev/sda1 is the disk of the running system"},
		{name: "root mounted elsewhere first", mounts: "9 0 8:1 / /mnt rw - ext4 x rw\n1 0 8:1 / / rw - ext4 x rw\n", want: "running system"},
		{name: "held by device-mapper", mounts: other, holders: "sda/sda2/holders/dm-7", want: "/dev/sda2 is held by dm-7"},
		{name: "held by md", mounts: other, holders: "sda/holders/md127", want: "/dev/sda is held by md127"},
		{name: "garbage", mounts: "\nx y - \n1 2 3\n" + other},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"mountinfo": c.mounts}
			for k, v := range disk {
				files[k] = v
			}
			if c.holders != "" {
				files[c.holders] = ""
			}
			root := sysfs(t, files)
			d, err := newDevice(filepath.Join(root, "sda"))
			if err != nil {
				t.Fatal(err)
			}
			if len(d.parts) != 2 {
				t.Errorf("partitions %+v", d.parts)
			}
			users, err := numbersInUse(filepath.Join(root, "mountinfo"))
			if err != nil {
				t.Fatal(err)
			}
			err = d.inUse(users)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	_, err := newDevice(filepath.Join(sysfs(t, disk), "sda", "sda1"))
	if err == nil || !strings.Contains(err.Error(), "goes to /dev/sda") {
		t.Errorf("a partition: %v", err)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`a\040b`: "a b", `\134`: `\`, `x\04`: `x\04`, `\999`: `\999`, "": ""} {
		if got := unescape(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
