// Command init is /init of the test of environments: it checks the files beside it
// by their manifest, loads modules for the hardware it finds until there is
// nothing new, and tells the console what it sees.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/environment"
)

func main() {
	if err := report(); err != nil {
		fmt.Println("INIT FAILED:", err)
	}
	fmt.Println("INIT DONE")
	unix.Sync()
	time.Sleep(time.Second) // for the serial port
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func report() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	up, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	fmt.Println("UPTIME", strings.Fields(string(up))[0])
	b, err := os.ReadFile(environment.ConfigPath)
	if err != nil {
		return err
	}
	c, err := environment.Parse(b)
	if err != nil {
		return err
	}
	if b, err = os.ReadFile(environment.ManifestPath); err != nil {
		return err
	}
	manifest, err := environment.ParseManifest(b)
	if err != nil {
		return err
	}
	problems, err := manifest.Verify(os.DirFS("/"), 3)
	if err != nil || len(problems) > 0 {
		return fmt.Errorf("manifest: %+v %w", problems, err)
	}
	fmt.Println("MANIFEST OK", len(manifest), c.Name, c.Kernel)
	if err := modules("/lib/modules/" + c.Kernel); err != nil {
		return err
	}
	if err := unix.Mount("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", 0, ""); err != nil {
		return fmt.Errorf("efivarfs: %w", err)
	}
	for _, class := range []string{"net", "block"} {
		entries, err := os.ReadDir("/sys/class/" + class)
		if err != nil {
			return err
		}
		for _, e := range entries {
			fmt.Println("DEVICE", class, e.Name())
		}
	}
	return nil
}

// modules loads what the modaliases ask for, until a round finds nothing new.
func modules(dir string) error {
	dep, err := os.ReadFile(dir + "/modules.dep")
	if err != nil {
		return err
	}
	order, byName := map[string][]string{}, map[string]string{}
	for line := range strings.Lines(string(dep)) {
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		order[file] = append([]string{file}, strings.Fields(needs)...)
		byName[strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")] = file
	}
	text, err := os.ReadFile(dir + "/modules.alias")
	if err != nil {
		return err
	}
	loaded := map[string]bool{}
	load := func(file string) error {
		for _, f := range slices.Backward(order[file]) { // dependencies come last
			if loaded[f] {
				continue
			}
			b, err := os.ReadFile(dir + "/" + f)
			if err != nil {
				return err
			}
			if err := unix.InitModule(b, ""); err != nil && err != unix.EEXIST && err != unix.ENODEV {
				return fmt.Errorf("%s: %w", f, err)
			}
			loaded[f] = true
		}
		return nil
	}
	for n := -1; n != len(loaded); time.Sleep(200 * time.Millisecond) {
		n = len(loaded)
		found, err := filepath.Glob("/sys/bus/*/devices/*/modalias")
		if err != nil {
			return err
		}
		for _, p := range found {
			alias, err := os.ReadFile(p)
			if err != nil {
				continue // gone
			}
			for line := range bytes.Lines(text) {
				f := strings.Fields(string(line))
				if len(f) != 3 || f[0] != "alias" {
					continue
				}
				if ok, _ := path.Match(f[1], strings.TrimSpace(string(alias))); ok {
					if err := load(byName[f[2]]); err != nil {
						return err
					}
				}
			}
		}
	}
	fmt.Println("LOADED", len(loaded))
	return load(byName["efivarfs"])
}
