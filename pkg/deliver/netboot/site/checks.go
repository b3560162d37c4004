package site

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/identity"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
)

var (
	nameRE  = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
	varRE   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	wordRE  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
	hostRE  = regexp.MustCompile(`^[A-Za-z0-9.:/\[\]_-]{1,253}$`)
	ifaceRE = regexp.MustCompile(`^[^\s/:]{1,15}$`)
	// keyRE is a line of authorized_keys (sshd(8)): options, a type, the key, a
	// comment. The key begins with the type's length, of which three bytes are 0.
	keyRE = regexp.MustCompile(`^([^\n]+ )?(ssh|sk-ssh|ecdsa|sk-ecdsa)-[^ \n]+ +AAAA[A-Za-z0-9+/=]+( [^\n]*)?$`)
)

// checks judge a text, and return it as it is stored.
var checks = map[string]func(string) (string, error){
	"path":      func(s string) (string, error) { return s, line(s, 4095) },
	"line":      func(s string) (string, error) { return s, line(s, 1024) },
	"argument":  func(s string) (string, error) { return s, line(s, 4096) },
	"ref":       func(s string) (string, error) { return s, line(s, 1024) }, // who opens it knows more
	"name":      like(nameRE, "a name: a-z, 0-9, - and ., a letter or digit first and last"),
	"word":      like(wordRE, "a word"),
	"host":      like(hostRE, "a host name or an address"),
	"interface": like(ifaceRE, "the name of a network interface"),
	"envname":   like(varRE, "the name of an environment variable"),
	"key": func(s string) (string, error) {
		s = strings.TrimSpace(s)
		if !keyRE.MatchString(s) || len(s) > 16384 {
			return "", errors.New("not a line of authorized_keys") // it may be a private key
		}
		return s, nil
	},
	"address": func(s string) (string, error) {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			return "", fmt.Errorf("%q is not an IPv4 address", s)
		}
		return a.String(), nil
	},
	"range": func(s string) (string, error) {
		_, _, err := ParseRange(s)
		return s, err
	},
	"mac": func(s string) (string, error) {
		m := identity.MAC(s)
		if m == "" {
			return "", fmt.Errorf("%q means no one machine", s)
		}
		return m, nil
	},
	"uuid": func(s string) (string, error) {
		u := identity.UUID(s)
		if u == "" {
			return "", fmt.Errorf("%q means no one machine", s)
		}
		return u, nil
	},
	"serial": func(s string) (string, error) {
		t := identity.Serial(s)
		if t == "" {
			return "", fmt.Errorf("%q means no one machine", s)
		}
		return t, nil
	},
	"signature": func(s string) (string, error) {
		if !slices.Contains(signature.ProtectedNames(), s) {
			return "", fmt.Errorf("want one of %s", strings.Join(signature.ProtectedNames(), ", "))
		}
		return s, nil
	},
	"query": func(s string) (string, error) {
		_, err := blockdev.ParseQuery(s)
		return s, err
	},
}

func like(re *regexp.Regexp, what string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !re.MatchString(s) {
			return "", fmt.Errorf("%q is not %s", s[:min(len(s), 80)], what)
		}
		return s, nil
	}
}

// line accepts one line of text.
func line(s string, limit int) error {
	if s == "" || len(s) > limit || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return fmt.Errorf("want one line of at most %d bytes", limit)
	}
	return nil
}

func checkVar(s string) string {
	if !varRE.MatchString(s) {
		return "not a name for a value: A-Z, a-z, 0-9 and _, a letter or _ first"
	}
	return ""
}

// ParseRange reads FIRST-LAST.
func ParseRange(s string) (first, last netip.Addr, err error) {
	a, b, ok := strings.Cut(s, "-")
	first, err1 := netip.ParseAddr(strings.TrimSpace(a))
	last, err2 := netip.ParseAddr(strings.TrimSpace(b))
	if !ok || err1 != nil || err2 != nil || !first.Is4() || !last.Is4() || last.Less(first) {
		return first, last, fmt.Errorf("%q is not a range of IPv4 addresses such as 10.1.0.100-10.1.0.199", s)
	}
	return first, last, nil
}

// parseSize reads bytes with K M G T (1000) or Ki Mi Gi Ti (1024), and a B.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMGTiB")
	factor, ok := map[string]int64{"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}[strings.TrimSuffix(s[len(digits):], "B")]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n < 0 || n > (1<<62)/max(factor, 1) {
		return 0, fmt.Errorf("%q is not a size such as 200G or 64GiB", s)
	}
	return n * factor, nil
}

// clone copies settings so that a machine's changes are its own.
func (s Settings) clone() Settings {
	for _, l := range []*[]string{&s.Destroy, &s.Retire, &s.Power, &s.Rescue, &s.Config.SSHKeys} {
		*l = slices.Clone(*l)
	}
	s.Config.Vars = maps.Clone(s.Config.Vars)
	return s
}
