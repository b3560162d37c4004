package initrd

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Main is the program: /init of an initramfs, and its /sbin/modprobe.
func Main() {
	if name := os.Args[0]; strings.HasSuffix(name, "modprobe") {
		os.Exit(modprobe(os.Args[1:]))
	}
	m := &machine{dev: Devices{"/sys", "/dev"}, config: Config{Panic: defaultPanic}}
	if os.Getpid() != 1 {
		m.say(3, "this is the init of an initramfs, for the kernel to start")
		os.Exit(2)
	}
	defer func() {
		if r := recover(); r != nil {
			text := "a bug"
			if err, ok := r.(error); ok {
				text = err.Error()
			}
			m.fail(errors.New(text))
		}
	}()
	m.fail(m.run())
}

// modprobe loads what the kernel asks for: "-q -- NAME".
func modprobe(args []string) int {
	rel, err := release()
	if err != nil || len(args) == 0 {
		return 1
	}
	m, err := OpenModules("/lib/modules/" + rel)
	if err != nil || m.Load(args[len(args)-1]) != nil {
		return 1
	}
	return 0
}

// machine is the one that starts.
type machine struct {
	config  Config
	dev     Devices
	modules *Modules
	events  *uevents
	kmsg    *os.File
	doing   string // for the message of a failure
}

// say writes a line to the kernel's log, at a level of syslog(2).
func (m *machine) say(level int, text string) {
	line := "<" + strconv.Itoa(level) + ">imgpipe-init: " + text + "\n"
	if m.kmsg != nil {
		if _, err := m.kmsg.WriteString(line[:min(len(line), 900)]); err == nil { // LOG_LINE_MAX is 1024
			return
		}
	}
	os.Stderr.WriteString(line[3:])
}

// fail says why, waits, and restarts.
func (m *machine) fail(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		m.say(3, m.doing+": "+line)
	}
	switch wait := m.config.Panic; {
	case wait == 0:
		m.say(3, "the system does not start; panic=0: it stays like this")
		for {
			time.Sleep(time.Hour)
		}
	case wait > 0:
		m.say(3, "the system does not start; restart in "+strconv.Itoa(int(wait/time.Second))+" s (panic= says how many)")
		time.Sleep(wait)
	}
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	select {} // it has not: still no reason to let the kernel panic
}

// run starts the system; it returns if it cannot.
func (m *machine) run() error {
	m.doing = "mounting /proc, /sys, /dev and /run"
	if err := mountAPI(); err != nil {
		return err
	}
	m.kmsg, _ = os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	m.doing = "reading the command line"
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if m.config, err = Parse(string(line)); err != nil {
		return err
	}
	m.doing = "reading the list of modules"
	rel, err := release()
	if err != nil {
		return err
	}
	if m.modules, err = OpenModules("/lib/modules/" + rel); err != nil {
		return err
	}
	m.doing = "listening for devices"
	if m.events, err = listen(); err != nil {
		return err
	}
	time.Sleep(m.config.Delay)
	m.coldplug()
	if err := m.mountRoot(); err != nil {
		return err
	}
	for _, mount := range m.config.Mounts {
		if err := m.mountBelow(mount); err != nil {
			return err
		}
	}
	for _, o := range m.config.Overlays {
		if err := m.overlay(o); err != nil {
			return err
		}
	}
	m.doing = "handing over to the root"
	return m.handOver()
}

// coldplug loads what the devices that are there ask for.
func (m *machine) coldplug() {
	for _, device := range modaliases(m.dev.Sys + "/devices") {
		m.load(device)
	}
}

func (m *machine) load(device string) {
	if err := m.modules.Device(device); err != nil {
		m.say(4, err.Error())
	}
}

// await waits until a spec means a device, and returns the first.
func (m *machine) await(spec string) (Block, error) {
	m.doing = "looking for " + spec
	begun, told := time.Now(), false
	for {
		found, err := m.dev.Find(spec)
		if err != nil {
			return Block{}, err
		}
		if len(found) > 0 {
			for _, other := range found[1:] {
				m.say(4, spec+" is on "+found[0].Name+" and on "+other.Name+": the first is taken")
			}
			return found[0], nil
		}
		waited := time.Since(begun)
		if m.config.Wait >= 0 && waited > m.config.Wait {
			return Block{}, errors.New("not there after " + strconv.Itoa(int(waited/time.Second)) + " s; there are: " + m.dev.Show())
		}
		if !told && waited > 5*time.Second {
			told = true
			m.say(5, "waiting for "+spec+"; there are: "+m.dev.Show())
		}
		m.listen(time.Second)
	}
}

// listen handles what devices come, until one of them may be a disk, or it is quiet, or
// it has been noisy for long.
func (m *machine) listen(quiet time.Duration) {
	for begun := time.Now(); time.Since(begun) < 5*quiet; {
		event := m.events.next(quiet)
		if event == "" {
			m.coldplug() // messages may have been lost
			return
		}
		for field := range strings.SplitSeq(event, "\x00") {
			if device, ok := strings.CutPrefix(field, "MODALIAS="); ok {
				m.load(device)
			}
			if field == "SUBSYSTEM=block" {
				return
			}
		}
	}
}

// modaliases returns what the devices below a folder of sysfs say they are, each once.
func modaliases(dir string) (out []string) {
	seen := map[string]bool{}
	var walk func(dir string, depth int)
	walk = func(dir string, depth int) {
		entries, err := os.ReadDir(dir)
		if err != nil || depth > 40 {
			return // a device that has just gone
		}
		for _, e := range entries {
			switch {
			case e.IsDir():
				walk(dir+"/"+e.Name(), depth+1)
			case e.Name() == "modalias":
				if s := attribute(dir + "/modalias"); s != "" && !seen[s] {
					seen[s] = true
					out = append(out, s)
				}
			}
		}
	}
	walk(dir, 0)
	return out
}
