package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// filled makes an image that is larger than the memory of the machines which write
// it, and of which a third does not compress.
func (f forge) filled(t *testing.T, name string) {
	t.Helper()
	const size = 576 * mib
	b, _ := bootDisk(t, size, name, name+" boots", goBack)
	random := rand.NewChaCha8([32]byte{2})
	for at := 16 * mib; at < size-64*mib; at += 64 * mib {
		_, _ = random.Read(b[at : at+20*mib]) // never fails
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(raw, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ref := "oci:" + f.store + "/" + name + ":1"
	for _, args := range [][]string{
		{f.imgbuild, "import", raw, "-o", ref, "--name", name, "--arch", "amd64", "--epoch", "2026-11-01"},
		{f.imgbuild, "sign", ref, "--key", f.key + ".key"}} {
		if out, err := f.run(args...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// metal builds the environment for bare machines.
func (f forge) metal(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile("../../recipes/environment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, "environment-metal.yaml"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	f.build(t, "metal", "extends: environment-metal.yaml\nname: metal\njobs: authenticated\ntrust: {keys: [release.pub]}\nserver: {ca: [state/ca.crt]}\n")
}

// TestNetbootMemory holds how much memory a machine needs to boot an environment
// and to write an image with it, and that with less it says so before it touches
// the disk. IMGPIPE_MEMORY=ENVIRONMENT:FIRMWARE:MIB asks for one alone.
func TestNetbootMemory(t *testing.T) {
	one := os.Getenv("IMGPIPE_MEMORY")
	if one == "" {
		soak(t)
	}
	f := netbootForge(t)
	f.filled(t, "filled")
	cases := []string{"environment:bios:384", "metal:bios:384", "environment:http:512", "metal:http:512", "environment:bios:160"}
	if one != "" {
		cases = strings.Split(one, ",")
	}
	if strings.Contains(strings.Join(cases, ","), "metal:") {
		f.metal(t)
	}
	for _, c := range cases {
		t.Run(c, func(t *testing.T) {
			var env, firmware string
			var memory int
			if _, err := fmt.Sscanf(strings.ReplaceAll(c, ":", " "), "%s %s %d", &env, &firmware, &memory); err != nil {
				t.Fatal(err)
			}
			n := newNetSite(t, siteSpec{
				defaults: fmt.Sprintf("  image: %s/filled:1\n  bootTimeout: none\n  attempts: 1\n  config: {phoneHome: 'off'}\n", registryAt),
				machines: "  - name: one\n    match: {mac: '52:54:00:77:00:01'}\n"})
			if env != "environment" {
				n.rewrite("/environment:1", "/"+env+":1")
			}
			n.order("deploy", "one")
			m := n.Machine(netlab.Spec{Name: "one", Number: 1, MemoryMiB: memory, Firmware: map[string]netlab.Firmware{"bios": netlab.BIOS, "http": netlab.HTTP}[firmware]})
			m.PowerOn()
			m.Wait(bootTime, "imgpipe agent")
			if memory > 160 {
				m.Wait(bootTime, "committed and acknowledged", "memory: this program had")
			} else {
				m.Wait(bootTime, "MiB of memory are free, and writing takes")
				untouched(t, m)
			}
			for _, line := range regexp.MustCompile(`(?m)^.*(MiB of memory|MiB at most|first byte).*$`).FindAllString(m.Text(), -1) {
				t.Log(line)
			}
		})
	}
}
