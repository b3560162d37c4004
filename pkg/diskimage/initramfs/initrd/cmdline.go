package initrd

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Config is what a kernel's command line asks of the init.
type Config struct {
	Root       string // PARTUUID=…, UUID=…, LABEL=…, PARTLABEL=…, /dev/…
	RootTypes  []string
	RootFlags  string
	Writable   bool
	Init       string
	Wait       time.Duration // for the root; negative is for ever
	Delay      time.Duration // before it is looked for
	Panic      time.Duration // between a failure and the restart; negative: none, 0: it stays
	Verity     *Verity       // nil: no root hash
	Mounts     []Mount
	Overlays   []Overlay
	NoOverlays bool
}

// Verity is how a sealed root is opened.
type Verity struct {
	RootHash   string // 64 lower-case hexadecimal digits
	Data, Hash string // devices, as Config.Root
	Options    []string
}

// Mount is a device that is mounted below the root.
type Mount struct{ Spec, Path, Type, Options string }

// Overlay is a folder of the root that can be written to. Folder is where the
// changes are, "" is in memory.
type Overlay struct{ Path, Folder string }

// Defaults of what the command line does not say.
const (
	defaultWait  = 60 * time.Second
	defaultPanic = 30 * time.Second
)

// Parse reads a command line. A word that it cannot follow is an error, beside a
// Config that has the others: what to do about a failure is in it.
func Parse(line string) (Config, error) {
	c := Config{Wait: defaultWait, Panic: defaultPanic}
	v := Verity{}
	var errs []error
	for _, w := range words(line) {
		switch w.key {
		case "root":
			c.Root = w.value
		case "rootfstype":
			c.RootTypes = strings.Split(w.value, ",")
		case "rootflags":
			c.RootFlags = w.value
		case "ro":
			c.Writable = false
		case "rw":
			c.Writable = true
		case "init":
			c.Init = w.value
		case "rootwait":
			if c.Wait = -1; w.value != "" {
				c.Wait = seconds(w, &errs)
			}
		case "rootdelay":
			c.Delay = seconds(w, &errs)
		case "panic":
			c.Panic = seconds(w, &errs)
		case "roothash":
			v.RootHash = strings.ToLower(w.value)
			c.Verity = &v
		case "systemd.verity_root_data":
			v.Data = w.value
		case "systemd.verity_root_hash":
			v.Hash = w.value
		case "systemd.verity_root_options":
			v.Options = strings.FieldsFunc(w.value, func(r rune) bool { return r == ',' })
		case "imgpipe.mount":
			c.Mounts = append(c.Mounts, parseMount(w, &errs))
		case "imgpipe.overlay":
			if w.value == "none" {
				c.NoOverlays = true
				continue
			}
			c.Overlays = append(c.Overlays, parseOverlay(w, &errs))
		}
	}
	if c.NoOverlays {
		c.Overlays = nil
	}
	if c.Verity != nil {
		errs = append(errs, v.complete())
	} else if c.Root == "" {
		errs = append(errs, errors.New("the command line has no root="))
	}
	return c, errors.Join(errs...)
}

// complete fills in the devices that the Discoverable Partitions Specification has a
// root hash name: the halves of the hash are the PARTUUIDs of data and hashes.
func (v *Verity) complete() error {
	if len(v.RootHash) != 64 || strings.Trim(v.RootHash, "0123456789abcdef") != "" {
		return errors.New("roothash=" + v.RootHash + ": not a SHA-256 in hexadecimal")
	}
	if v.Data == "" {
		v.Data = "PARTUUID=" + uuidText(v.RootHash[:32])
	}
	if v.Hash == "" {
		v.Hash = "PARTUUID=" + uuidText(v.RootHash[32:])
	}
	for _, o := range v.Options {
		if corruption[o] == "" {
			return errors.New("systemd.verity_root_options=" + o + ": want restart-on-corruption or panic-on-corruption")
		}
	}
	return nil
}

// uuidText puts hyphens between 32 hexadecimal digits.
func uuidText(h string) string {
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func seconds(w word, errs *[]error) time.Duration {
	n, err := strconv.Atoi(w.value)
	if err != nil || n > 1<<20 || n < -1<<20 {
		*errs = append(*errs, errors.New(w.key+"="+w.value+": not a number of seconds"))
		n = int(defaultPanic / time.Second)
	}
	return time.Duration(n) * time.Second
}

func parseMount(w word, errs *[]error) Mount {
	f := strings.SplitN(w.value, ":", 4)
	f = append(f, "", "", "")
	if !absolute(f[1]) || f[0] == "" {
		*errs = append(*errs, errors.New(w.key+"="+w.value+": want SPEC:PATH[:TYPE[:OPTIONS]]"))
	}
	return Mount{f[0], f[1], f[2], f[3]}
}

func parseOverlay(w word, errs *[]error) Overlay {
	path, folder, _ := strings.Cut(w.value, ":")
	if !absolute(path) || folder != "" && !absolute(folder) || strings.ContainsAny(w.value, `,\`) {
		*errs = append(*errs, errors.New(w.key+"="+w.value+": want PATH[:FOLDER]"))
	}
	return Overlay{path, folder}
}

// absolute says that a path is that, below the root, and has no way out of it.
func absolute(p string) bool {
	if len(p) < 2 || p[0] != '/' {
		return false
	}
	for name := range strings.SplitSeq(p[1:], "/") {
		if name == "" || name == "." || name == ".." {
			return false
		}
	}
	return true
}

// word is one parameter. Quotes are off, where the kernel takes them off.
type word struct{ key, value string }

// words divides a command line as the kernel does (lib/cmdline.c, next_arg): at
// spaces outside of double quotes; quotes around a value, or around all, go. What
// is behind "--" is the init's.
func words(line string) (out []word) {
	for rest := strings.Trim(line, " \t\n\x00"); rest != ""; {
		quoted, end := false, len(rest)
		for i := 0; i < len(rest); i++ {
			if c := rest[i]; c == '"' {
				quoted = !quoted
			} else if !quoted && (c == ' ' || c == '\t' || c == '\n') {
				end = i
				break
			}
		}
		text := rest[:end]
		rest = strings.TrimLeft(rest[end:], " \t\n")
		if text == "--" {
			break
		}
		if strings.HasPrefix(text, `"`) {
			text = strings.TrimSuffix(text[1:], `"`)
		}
		key, value, _ := strings.Cut(text, "=")
		if strings.HasPrefix(value, `"`) {
			value = strings.TrimSuffix(value[1:], `"`)
		}
		out = append(out, word{key, value})
	}
	return out
}
