package recipe

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var errBad = errors.New("bad value") // the caller says what was wanted

// matching is text of a pattern.
func matching(want, pattern string, max int) *scalarShape {
	return &scalarShape{want: want, class: text, pattern: regexp.MustCompile(`^(?:` + pattern + `)$`), max: max}
}

// oneWord is text out of a list.
func oneWord(words ...string) *scalarShape {
	want := strings.Join(words, ", ")
	if i := strings.LastIndex(want, ", "); i >= 0 {
		want = want[:i] + " or " + want[i+2:]
	}
	return &scalarShape{want: want, class: text, enum: words, plain: true}
}

// checked is text that a function judges.
func checked(want string, max int, check func(string) string) *scalarShape {
	return &scalarShape{want: want, class: text, max: max, check: check}
}

// one returns a shape of kind scalar.
func one(s *scalarShape) *shape { return &shape{kind: scalar, value: s} }

// many returns a list of scalars.
func many(noun string, s *scalarShape) *shape { return &shape{kind: list, item: one(s), noun: noun} }

// manyMaps returns a list of maps, told apart by the field key.
func manyMaps(noun, key string, s *shape) *shape {
	return &shape{kind: list, item: s, key: key, noun: noun}
}

// wholeNumber is an integer between two bounds, held as T.
func wholeNumber[T int | int64 | uint32](want string, least, most uint64) *scalarShape {
	return &scalarShape{want: want, class: number, plain: true, least: least, most: most,
		pattern: regexp.MustCompile(`^(?:0|[1-9][0-9]*)$`),
		parse: func(s string) (any, error) {
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil || n < least || n > most {
				return nil, errBad
			}
			return T(n), nil
		},
		format: func(v any) string { return fmt.Sprint(v) },
	}
}

// boolean is true, false, or one of them.
func boolean(words ...string) *scalarShape {
	s := oneWord(words...)
	s.class = truth
	s.parse = func(t string) (any, error) { return t == "true", nil }
	s.format = func(v any) string { return strconv.FormatBool(v.(bool)) }
	return s
}

// lineOf is text in one line, without control characters.
func lineOf(want string, max int) *scalarShape {
	return checked(want, max, func(s string) string {
		if s == "" || strings.ContainsFunc(s, unicode.IsControl) {
			return fmt.Sprintf("%q is not %s", clip(s), want)
		}
		return ""
	})
}

const (
	mib     = int64(1) << 20
	maxSize = int64(1) << 50 // a PiB: no sum of partitions overflows
)

var units = map[string]int64{"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

var sizeText = regexp.MustCompile(`^([0-9]{1,16})(|KiB|MiB|GiB|TiB)$`)

// size is bytes; auto is 0.
var sizeShape = &scalarShape{
	want: "a size such as 512MiB or 4GiB (KiB, MiB, GiB, TiB or plain bytes), or auto", class: text | number, plain: true,
	pattern: regexp.MustCompile(`^(?:auto|[0-9]{1,16}(?:|KiB|MiB|GiB|TiB))$`),
	parse: func(s string) (any, error) {
		if s == "auto" {
			return int64(0), nil
		}
		m := sizeText.FindStringSubmatch(s)
		if m == nil {
			return nil, errBad
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || n == 0 || n > maxSize/units[m[2]] {
			return nil, errBad
		}
		return n * units[m[2]], nil
	},
	format: func(v any) string { return formatSize(v.(int64)) },
}

// formatSize returns bytes in the largest unit that keeps them whole.
func formatSize(n int64) string {
	if n == 0 {
		return "auto"
	}
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if n%units[unit] == 0 {
			return strconv.FormatInt(n/units[unit], 10) + unit
		}
	}
	return strconv.FormatInt(n, 10)
}

var percentShape = &scalarShape{
	want: "a percentage from 1% to 1000%, such as 100%", class: text, plain: true,
	pattern: regexp.MustCompile(`^[1-9][0-9]{0,3}%$`),
	parse: func(s string) (any, error) {
		n, err := strconv.Atoi(strings.TrimSuffix(s, "%"))
		if err != nil || n == 0 || n > 1000 { // 0 is "not given" in Partition
			return nil, errBad
		}
		return n, nil
	},
	format: func(v any) string { return strconv.Itoa(v.(int)) + "%" },
}

// modeShape is permission bits with setuid, setgid and sticky, as chmod takes them.
var modeShape = &scalarShape{
	want: `a quoted octal mode such as "0644"`, class: text,
	pattern: regexp.MustCompile(`^[0-7]{3,5}$`),
	parse: func(s string) (any, error) {
		n, err := strconv.ParseUint(s, 8, 16)
		if err != nil || n > 0o7777 {
			return nil, errBad
		}
		return uint16(n), nil
	},
	format: func(v any) string { return fmt.Sprintf("%04o", v) },
}

// epochShape is bounded by what FAT can hold: 1980 to 2107.
var epochShape = &scalarShape{
	want:  "a time such as 2026-11-01T00:00:00Z: RFC 3339, UTC, whole seconds, from 1980 to 2107",
	class: text, plain: true,
	pattern: regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$`),
	parse: func(s string) (any, error) {
		t, err := time.Parse("2006-01-02T15:04:05Z", s)
		if err != nil || t.Year() < 1980 || t.Year() > 2107 {
			return nil, errBad
		}
		return t, nil
	},
	format: func(v any) string { return v.(time.Time).UTC().Format("2006-01-02T15:04:05Z") },
}

var timeoutShape = &scalarShape{
	want: "a duration such as 90s or 5m, at most 24h", class: text, plain: true,
	pattern: regexp.MustCompile(`^(?:[0-9]{1,6}(?:ms|s|m|h)){1,4}$`),
	parse: func(s string) (any, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 || d > 24*time.Hour {
			return nil, errBad
		}
		return d, nil
	},
	format: func(v any) string {
		s := v.(time.Duration).String()
		if strings.Contains(s, ".") { // 1.5s
			return strconv.FormatInt(v.(time.Duration).Milliseconds(), 10) + "ms"
		}
		if strings.HasSuffix(s, "m0s") {
			s = strings.TrimSuffix(s, "0s")
		}
		if strings.HasSuffix(s, "h0m") {
			s = strings.TrimSuffix(s, "0m")
		}
		return s
	},
}

// checkPath judges a path in the image, as Linux bounds it: names of 255 bytes,
// 4095 in all.
func checkPath(p string) string {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Sprintf("%q is not absolute", clip(p))
	case strings.ContainsFunc(p, unicode.IsControl):
		return fmt.Sprintf("%q holds a control character", clip(p))
	case path.Clean(p) != p:
		return fmt.Sprintf("%q is not clean; write %q", clip(p), clip(path.Clean(p)))
	case len(p) > 4095:
		return "the path is longer than 4095 bytes"
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > 255 {
			return fmt.Sprintf("%q: a name of %d bytes; at most 255", clip(p), len(name))
		}
	}
	return ""
}

// checkNotRoot judges a path that is not / itself.
func checkNotRoot(p string) string {
	if p == "/" {
		return "/ itself is the build's; name what is in it"
	}
	return checkPath(p)
}

// checkGlob judges a pattern of remove.
func checkGlob(p string) string {
	if problem := checkPath(p); problem != "" {
		return problem
	}
	if strings.Trim(p, "/*") == "" {
		return fmt.Sprintf("%q would remove everything", clip(p))
	}
	if err := tree.CheckGlob(p); err != nil {
		return err.Error()
	}
	return ""
}

// checkFileName judges a source or keyring before it is looked for.
func checkFileName(s string) string {
	if s == "" || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Sprintf("%q is not a file name", clip(s))
	}
	return ""
}

// keyTypes are the public key algorithms of OpenSSH (sshd(8), PubkeyAcceptedAlgorithms).
var keyTypes = []string{
	"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
	"sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
}

// checkKey judges a line of authorized_keys: options, type, base64, comment. The
// blob begins with its own type as a string of RFC 4251, so a cut key shows.
func checkKey(s string) string {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return "a key is one line"
	}
	words := strings.Fields(s)
	for i, w := range words[:max(0, len(words)-1)] {
		if !slices.Contains(keyTypes, w) {
			continue
		}
		blob, err := base64.StdEncoding.DecodeString(words[i+1])
		head := append([]byte{0, 0, 0, byte(len(w))}, w...)
		if err != nil || !bytes.HasPrefix(blob, head) || len(blob) < len(head)+4+32 {
			return fmt.Sprintf("the %s key is cut short or mistyped", w)
		}
		return ""
	}
	return fmt.Sprintf("%q is not a line of authorized_keys: a type such as ssh-ed25519, then the key", clip(s))
}

var hashText = regexp.MustCompile(`^(?:[!*]|!*\$[a-z0-9]+\$[A-Za-z0-9./$=,+-]{10,255})$`)

func checkHash(s string) string {
	if !hashText.MatchString(s) {
		return "want a crypt(5) hash such as `openssl passwd -6` or `mkpasswd` prints, or ! for no login by password"
	}
	return ""
}

// unitTypes are the unit types of systemd.unit(5).
const unitTypes = `service|socket|device|mount|automount|swap|target|path|timer|slice|scope`

var unitText = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]+\.(?:` + unitTypes + `)$`)

func checkUnit(s string) string {
	if unitText.MatchString(s) && len(s) <= 255 && !strings.HasPrefix(s, "@") {
		return ""
	}
	problem := fmt.Sprintf("%q is not a unit name", clip(s))
	if !strings.ContainsAny(s, ". /") && s != "" && len(s) < 200 {
		problem += fmt.Sprintf("; did you mean %q?", s+".service")
	}
	return problem
}

// checkCmdline judges what is appended to the kernel's command line. The kernel
// takes 2048 bytes (COMMAND_LINE_SIZE of x86), of which the build needs some.
func checkCmdline(s string) string {
	if strings.ContainsFunc(s, unicode.IsControl) || !utf8.ValidString(s) {
		return "want one line without control characters"
	}
	if len(s) > 1900 {
		return fmt.Sprintf("%d bytes; at most 1900", len(s))
	}
	for word := range strings.FieldsSeq(s) {
		if word == "ro" || word == "rw" || strings.HasPrefix(word, "root=") {
			return fmt.Sprintf("%q is the build's business; leave it out", clip(word))
		}
	}
	return ""
}
