//go:build linux

package blockdev

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Query says which disk is meant: all of its terms hold for it. docs/deliver.md
// has the grammar. The zero value is no query.
type Query struct{ terms []term }

// term is one condition.
type term struct {
	key    *key
	op     string // = != ~ < <= > >=
	text   string // as it was given, without quotes
	number int64  // of a size
}

// key is what can be asked for.
type key struct {
	name string
	ops  string // separated by spaces
	text func(*Device) []string
	size func(*Device) int64
	flag func(*Device) bool
}

const (
	textOps = "= != ~"
	sizeOps = "= != < <= > >="
	flagOps = "= !="
)

func one(f func(*Device) string) func(*Device) []string {
	return func(d *Device) []string { return []string{f(d)} }
}

// keys are the words of `imgpush disks --json`.
var keys = []*key{
	{name: "name", ops: textOps, text: one(func(d *Device) string { return d.Name })},
	{name: "size", ops: sizeOps, size: func(d *Device) int64 { return d.Size }},
	{name: "sectorSize", ops: sizeOps, size: func(d *Device) int64 { return d.SectorSize }},
	{name: "physicalSectorSize", ops: sizeOps, size: func(d *Device) int64 { return d.PhysicalSectorSize }},
	{name: "vendor", ops: textOps, text: one(func(d *Device) string { return d.Vendor })},
	{name: "model", ops: textOps, text: one(func(d *Device) string { return d.Model })},
	{name: "serial", ops: textOps, text: one(func(d *Device) string { return d.Serial })},
	{name: "firmware", ops: textOps, text: one(func(d *Device) string { return d.Firmware })},
	{name: "wwn", ops: textOps, text: one(func(d *Device) string { return bareWWN(d.WWN) })},
	{name: "transport", ops: textOps, text: one(func(d *Device) string { return d.Transport })},
	{name: "byPath", ops: textOps, text: (*Device).byPaths},
	{name: "link", ops: textOps, text: func(d *Device) []string { return append([]string{d.Path}, d.Links...) }},
	{name: "rotational", ops: flagOps, flag: func(d *Device) bool { return d.Rotational }},
	{name: "removable", ops: flagOps, flag: func(d *Device) bool { return d.Removable }},
}

// QueryError is a mistake in a query.
type QueryError struct {
	Query   string
	Column  int // from 1, in characters
	Problem string
}

func (e *QueryError) Error() string {
	return fmt.Sprintf("disk query %q, column %d: %s", e.Query, e.Column, e.Problem)
}

// Display shows the query with a mark below the mistake.
func (e *QueryError) Display() string {
	line := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, e.Query)
	return fmt.Sprintf("disk query: %s\n  %s\n  %s^", e.Problem, line, strings.Repeat(" ", e.Column-1))
}

// maxQuery bounds the length of a query in bytes.
const maxQuery = 4096

// ParseQuery reads a query. Its errors are *QueryError.
func ParseQuery(text string) (Query, error) {
	p := queryParser{all: text, rest: text}
	if len(text) > maxQuery {
		return Query{}, &QueryError{text[:20] + "…", 1, fmt.Sprintf("%d bytes; a query has at most %d", len(text), maxQuery)}
	}
	var q Query
	for {
		t, err := p.term()
		if err != nil {
			return Query{}, err
		}
		q.terms = append(q.terms, t)
		p.space()
		if p.rest == "" {
			return q, nil
		}
		if !p.skip(",") {
			return Query{}, p.fail("want a comma here, or the end")
		}
	}
}

type queryParser struct{ all, rest string }

func (p *queryParser) fail(format string, args ...any) error {
	read := p.all[:len(p.all)-len(p.rest)]
	return &QueryError{p.all, len([]rune(read)) + 1, fmt.Sprintf(format, args...)}
}

func (p *queryParser) space() { p.rest = strings.TrimLeft(p.rest, " \t\n") }

func (p *queryParser) skip(prefix string) (ok bool) {
	p.rest, ok = strings.CutPrefix(p.rest, prefix)
	return ok
}

func (p *queryParser) term() (t term, err error) {
	p.space()
	at := *p
	word := p.rest[:len(p.rest)-len(strings.TrimLeftFunc(p.rest, func(r rune) bool { return r < 128 && unicode.IsLetter(r) }))]
	i := slices.IndexFunc(keys, func(k *key) bool { return strings.EqualFold(k.name, word) })
	switch {
	case word == "" && p.rest == "":
		return t, p.fail("want a condition: %s …", "size>=400G")
	case word == "" || i < 0:
		return t, at.fail("want one of: %s", keyNames())
	}
	t.key = keys[i]
	p.rest = p.rest[len(word):]
	p.space()
	at = *p
	for _, op := range []string{"!=", "<=", ">=", "=", "~", "<", ">"} {
		if p.skip(op) {
			t.op = op
			break
		}
	}
	if t.op == "" || !slices.Contains(strings.Fields(t.key.ops), t.op) {
		return t, at.fail("behind %s want one of: %s", t.key.name, t.key.ops)
	}
	p.space()
	at = *p
	quoted := strings.HasPrefix(p.rest, `"`)
	if t.text, err = p.value(); err != nil {
		return t, err
	}
	if t.text == "" && !quoted {
		return t, at.fail(`want a value; "" is an empty one`)
	}
	return t, t.check(&at)
}

func keyNames() string {
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
	}
	return strings.Join(names, ", ")
}

// value reads up to the next comma, or a quoted text.
func (p *queryParser) value() (string, error) {
	start := *p
	if !p.skip(`"`) {
		end := strings.IndexByte(p.rest, ',')
		if end < 0 {
			end = len(p.rest)
		}
		text := p.rest[:end]
		for i, r := range text {
			if r == '"' || !unicode.IsPrint(r) || r == unicode.ReplacementChar {
				p.rest = p.rest[i:]
				return "", p.fail("%q in a value: put it in quotes", r)
			}
		}
		p.rest = p.rest[end:]
		return strings.TrimRight(text, " "), nil
	}
	var b strings.Builder
	for escaped := false; p.rest != ""; {
		r := []rune(p.rest[:min(len(p.rest), 4)])[0]
		size := len(string(r))
		switch {
		case r == unicode.ReplacementChar || unicode.IsControl(r):
			return "", p.fail("no character of a name")
		case escaped && r != '"' && r != '\\':
			return "", p.fail(`behind \ want " or \`)
		case !escaped && r == '"':
			p.rest = p.rest[1:]
			return b.String(), nil
		case !escaped && r == '\\':
			escaped = true
		default:
			b.WriteRune(r)
			escaped = false
		}
		p.rest = p.rest[size:]
	}
	return "", start.fail("this quote does not end")
}

// check makes a value what its key needs.
func (t *term) check(at *queryParser) error {
	switch {
	case t.key.flag != nil:
		t.text = strings.ToLower(t.text)
		if t.text != "true" && t.text != "false" {
			return at.fail("%s is true or false", t.key.name)
		}
	case t.key.size != nil:
		n, ok := parseSize(t.text)
		if !ok {
			return at.fail("want a size in bytes, such as 512, 400G (1000³ each) or 16Gi (1024³ each)")
		}
		t.number, t.text = n, sizeText(n)
	case t.key.name == "wwn":
		t.text = bareWWN(t.text)
	}
	return nil
}

// bareWWN is a WWN without what tells its kind, which tools write differently.
func bareWWN(s string) string {
	s = strings.ToLower(s)
	for cut := true; cut; {
		cut = false
		for _, prefix := range []string{"0x", "naa.", "eui.", "uuid.", "nvme."} {
			if rest, ok := strings.CutPrefix(s, prefix); ok {
				s, cut = rest, true
			}
		}
	}
	return s
}

const units = "KMGTPE"

// parseSize reads 512, 1.5T, 16GiB: K, M, G, T, P and E are powers of 1000, as
// on a disk's label, and of 1024 with an i.
func parseSize(s string) (int64, bool) {
	s = strings.ToUpper(strings.TrimSuffix(strings.TrimSuffix(s, "B"), "b"))
	base := int64(1000)
	if t, ok := strings.CutSuffix(s, "I"); ok {
		s, base = t, 1024
	}
	exponent := 0
	if s != "" {
		exponent = strings.IndexByte(units, s[len(s)-1]) + 1
	}
	if exponent > 0 {
		s = s[:len(s)-1]
	} else if base == 1024 {
		return 0, false
	}
	if s = strings.TrimSuffix(s, " "); len(s) > 30 || strings.Trim(s, "0123456789.") != "" || strings.Trim(s, ".") == "" {
		return 0, false
	}
	n, ok := new(big.Rat).SetString(s)
	if !ok {
		return 0, false
	}
	n.Mul(n, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(exponent)), nil)))
	if !n.IsInt() || n.Cmp(new(big.Rat).SetInt64(math.MaxInt64)) > 0 {
		return 0, false
	}
	return n.Num().Int64(), true
}

// sizeText is the shortest text that parseSize reads as n.
func sizeText(n int64) string {
	best := strconv.FormatInt(n, 10)
	for _, base := range []int64{1000, 1024} {
		v, i := n, 0
		for v != 0 && v%base == 0 && i < len(units) {
			v, i = v/base, i+1
		}
		if i == 0 {
			continue
		}
		s := strconv.FormatInt(v, 10) + units[i-1:i]
		if base == 1024 {
			s += "i"
		}
		if len(s) < len(best) {
			best = s
		}
	}
	return best
}

// String gives the query in a form that ParseQuery reads as the same query.
func (q Query) String() string {
	var terms []string
	for _, t := range q.terms {
		terms = append(terms, t.String())
	}
	return strings.Join(terms, ",")
}

func (t term) String() string {
	text := t.text
	bare := text != "" && text == strings.TrimSpace(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return r == ',' || r == '"' || r == unicode.ReplacementChar || !unicode.IsPrint(r)
	})
	if !bare {
		text = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
	}
	return t.key.name + t.op + text
}

// MarshalText implements encoding.TextMarshaler.
func (q Query) MarshalText() ([]byte, error) { return []byte(q.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (q *Query) UnmarshalText(b []byte) (err error) {
	*q, err = ParseQuery(string(b))
	return err
}
