package initrd

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

const hash = "0123456789abcdef0123456789abcdef00112233445566778899aabbccddeeff"

func TestParse(t *testing.T) {
	for line, want := range map[string]Config{
		"BOOT_IMAGE=x root=PARTUUID=a-b ro quiet console=ttyS0\n": {Root: "PARTUUID=a-b", Wait: defaultWait, Panic: defaultPanic},
		"root=/dev/vda1 ro rw rootfstype=ext4,xfs rootflags=noatime,data=ordered init=/bin/sh rootdelay=2 rootwait panic=-1 single": {
			Root: "/dev/vda1", Writable: true, RootTypes: []string{"ext4", "xfs"}, RootFlags: "noatime,data=ordered", Init: "/bin/sh", Delay: 2 * time.Second, Wait: -1, Panic: -time.Second},
		`root="LABEL=my root" rootwait=7 panic=0 -- root=/dev/other`:   {Root: "LABEL=my root", Wait: 7 * time.Second},
		`"root=LABEL=a b" rootflags=x="1 2"`:                           {Root: "LABEL=a b", RootFlags: `x="1 2"`, Wait: defaultWait, Panic: defaultPanic},
		"root=/dev/a imgpipe.mount=UUID=1:/var:ext4:noatime,x=a:b":     {Root: "/dev/a", Wait: defaultWait, Panic: defaultPanic, Mounts: []Mount{{"UUID=1", "/var", "ext4", "noatime,x=a:b"}}},
		"root=/dev/a imgpipe.overlay=/etc:/var/e imgpipe.overlay=/opt": {Root: "/dev/a", Wait: defaultWait, Panic: defaultPanic, Overlays: []Overlay{{"/etc", "/var/e"}, {"/opt", ""}}},
		"root=/dev/a imgpipe.overlay=/etc imgpipe.overlay=none":        {Root: "/dev/a", Wait: defaultWait, Panic: defaultPanic, NoOverlays: true},
		"root=/dev/mapper/root roothash=" + strings.ToUpper(hash) + " systemd.verity_root_options=restart-on-corruption": {Root: "/dev/mapper/root", Wait: defaultWait, Panic: defaultPanic,
			Verity: &Verity{hash, "PARTUUID=01234567-89ab-cdef-0123-456789abcdef", "PARTUUID=00112233-4455-6677-8899-aabbccddeeff", []string{"restart-on-corruption"}}},
		"systemd.verity_root_data=/dev/a systemd.verity_root_hash=/dev/b systemd.verity_root_options= roothash=" + hash: {Wait: defaultWait, Panic: defaultPanic,
			Verity: &Verity{hash, "/dev/a", "/dev/b", []string{}}},
	} {
		got, err := Parse(line)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v %+v\nwant %+v %+v\n%v", line, got, got.Verity, want, want.Verity, err)
		}
	}
}

// A word that is wrong is said, and what to do about it is still known.
func TestParseRefusals(t *testing.T) {
	for line, want := range map[string]string{
		"quiet":                                "no root=",
		"root=x roothash=" + hash[1:]:          "not a SHA-256",
		"root=x roothash=":                     "not a SHA-256",
		"root=x roothash=" + hash + "0":        "not a SHA-256",
		"root=x roothash=g" + hash[1:]:         "not a SHA-256",
		"root=x rootwait=soon":                 "rootwait=soon",
		"root=x rootdelay=99999999":            "not a number",
		"root=x imgpipe.mount=/dev/a":          "SPEC:PATH",
		"root=x imgpipe.mount=/dev/a:var":      "SPEC:PATH",
		"root=x imgpipe.mount=/dev/a:/../etc":  "SPEC:PATH",
		"root=x imgpipe.overlay=/":             "PATH[:FOLDER]",
		"root=x imgpipe.overlay=/etc:up":       "PATH[:FOLDER]",
		"root=x imgpipe.overlay=/e,lowerdir=/": "PATH[:FOLDER]",
		"roothash=" + hash + " systemd.verity_root_options=ignore-corruption": "ignore-corruption",
	} {
		c, err := Parse(line + " panic=3")
		if err == nil || !strings.Contains(err.Error(), want) || c.Panic != 3*time.Second {
			t.Errorf("%s: %v, panic %v", line, err, c.Panic)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`root="a b" imgpipe.mount=x:/y " = "="`)
	f.Fuzz(func(t *testing.T, line string) {
		c, err := Parse(line)
		if err != nil {
			return
		}
		for _, m := range c.Mounts {
			if !absolute(m.Path) || strings.Contains(m.Path, "..") && !strings.Contains(m.Path, "...") && strings.Contains(m.Path+"/", "/../") {
				t.Errorf("%q mounts at %q", line, m.Path)
			}
		}
	})
}
