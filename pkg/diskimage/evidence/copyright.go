package evidence

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// licenseReader reads copyright files. Packages of one source often have equal
// ones: each is read into a License once.
type licenseReader struct {
	t    *tree.Tree
	done map[diskimage.Digest]License
	room int // bytes of texts that may still come
}

func newLicenseReader(t *tree.Tree) *licenseReader {
	return &licenseReader{t: t, done: map[diskimage.Digest]License{}, room: maxTexts}
}

// read returns the licence that the copyright file of a package declares.
func (r *licenseReader) read(pkg string) License {
	b, err := r.t.ReadFile("/usr/share/doc/"+pkg+"/copyright", maxCopyright)
	if err != nil {
		return License{}
	}
	digest := diskimage.DigestOf(b)
	l, ok := r.done[digest]
	if !ok {
		l = parseCopyright(b)
		for _, t := range l.Texts {
			r.room -= len(t.Text)
		}
		if r.room < 0 {
			l = License{}
		}
		r.done[digest] = l
	}
	return l
}

// common finds what any copyright file says about a licence of Debian's base
// system, which it has to refer to instead of quoting it (policy 12.5).
var common = regexp.MustCompile(`/usr/share/common-licenses/([A-Za-z0-9](?:[A-Za-z0-9.+-]*[A-Za-z0-9+])?)`)

// mentions are the licences that a copyright file refers to: a hint, since it may
// do so to say that something is not under them.
func mentions(b []byte) (out []string) {
	for _, m := range common.FindAllSubmatch(b, -1) {
		out = append(out, string(m[1]))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// parseCopyright reads a copyright file in Debian's machine-readable format
// (copyright-format 1.0); of any other nothing is declared. The result demands all
// licences that the file names for any part of the source package, of which the
// binary package may hold less.
func parseCopyright(b []byte) License {
	var stated []license // in order
	texts := map[string]string{}
	first := true
	for p := range paragraphs(b) {
		value, has := p.get("License")
		_, files := p.get("Files")
		if first {
			if !strings.Contains(p.line("Format"), "copyright-format/1") {
				return License{Mentions: mentions(b)}
			}
			first, files = false, true // its License is that of all
		}
		if !has {
			continue
		}
		l := newLicense(value)
		if files {
			stated = append(stated, l)
		}
		if key := strings.ToLower(l.name); l.text != "" && texts[key] == "" {
			texts[key] = l.text
		}
	}
	if first {
		return License{Mentions: mentions(b)}
	}
	all := &expression{op: and}
	used := map[string]LicenseText{}
	for _, l := range stated {
		all.add(l.expression(texts, used))
	}
	out := License{Expression: all.String()}
	for _, t := range used {
		out.Texts = append(out.Texts, t)
	}
	slices.SortFunc(out.Texts, func(a, b LicenseText) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// license is the value of a License field: what it calls the licence, and its text.
type license struct{ name, text string }

// newLicense splits the field's value: the first line is the name, the others
// the text, each with a blank before it, "." for an empty line.
func newLicense(value string) license {
	name, rest, _ := strings.Cut(value, "\n")
	var b strings.Builder
	for line := range strings.Lines(rest) {
		line = strings.TrimRight(line, "\n\t ")
		if line = strings.TrimPrefix(line, " "); line == "." {
			line = ""
		}
		b.WriteString(line + "\n")
	}
	return license{strings.Join(strings.Fields(name), " "), strings.Trim(b.String(), "\n")}
}

// expression translates the licence. What needs a text takes it from the field
// itself or from texts, by name, and is noted in used.
func (l license) expression(texts map[string]string, used map[string]LicenseText) *expression {
	refer := func(name, text string) string {
		t := reference(name, text)
		used[t.ID] = t
		return t.ID
	}
	e, ok := parseExpression(l.name)
	if !ok { // no name at all, or a sentence: all of it is the text
		text := strings.TrimSpace(l.name + "\n" + l.text)
		if text == "" {
			return nil
		}
		name := l.name
		if len(name) > 40 || name == "" {
			name = "unnamed"
		}
		return &expression{id: refer(name, text)}
	}
	single := e.op == leaf
	e.each(func(x *expression) {
		name := x.id
		if x.id = licenseID(name); x.id == "" {
			text := texts[strings.ToLower(name)]
			if l.text != "" && (single || text == "") {
				text = l.text
			}
			x.id = refer(name, text)
		}
	})
	return e
}

// operator joins the parts of an expression.
type operator string

const (
	leaf operator = ""
	and  operator = " AND "
	or   operator = " OR "
)

// expression is a licence, or several joined by one operator.
type expression struct {
	op    operator
	id    string // of a leaf
	parts []*expression
}

// add joins another part, without nesting what the operator makes equal.
func (e *expression) add(x *expression) {
	switch {
	case x == nil:
	case x.op == e.op:
		e.parts = append(e.parts, x.parts...)
	default:
		e.parts = append(e.parts, x)
	}
}

func (e *expression) each(f func(*expression)) {
	if e.op == leaf {
		f(e)
	}
	for _, x := range e.parts {
		x.each(f)
	}
}

// String returns the expression in SPDX's syntax (SPDX 2.3, annex D), its parts
// sorted and each once: A AND A is A, and the order means nothing.
func (e *expression) String() string {
	if e.op == leaf {
		return e.id
	}
	var parts []string
	for _, x := range e.parts {
		s := x.String()
		if s != "" && x.op != leaf && (strings.Contains(s, string(and)) || strings.Contains(s, string(or))) {
			s = "(" + s + ")"
		}
		if s != "" {
			parts = append(parts, s)
		}
	}
	slices.Sort(parts)
	parts = slices.Compact(parts)
	if len(parts) == 1 { // the parentheses around all of it say nothing
		if s, ok := strings.CutPrefix(parts[0], "("); ok {
			return strings.TrimSuffix(s, ")")
		}
	}
	return strings.Join(parts, string(e.op))
}

// maxLicenses bounds the licences of one expression.
const maxLicenses = 64

// parseExpression reads a licence's name in Debian's syntax: names joined by
// "and" and "or", of which "and" binds stronger, and by ", and" and ", or", which
// bind weaker than both. "with … exception" belongs to the name before it.
func parseExpression(s string) (*expression, bool) {
	words := strings.Fields(strings.ReplaceAll(s, ",", " , "))
	if len(words) == 0 || len(words) > 4*maxLicenses {
		return nil, false
	}
	p := &expressionParser{words: words}
	e := p.clause()
	for e != nil && len(p.words) > 0 {
		op, ok := p.commaOperator()
		if !ok {
			return nil, false
		}
		next := p.clause()
		if next == nil {
			return nil, false
		}
		joined := &expression{op: op}
		joined.add(e)
		joined.add(next)
		e = joined
	}
	return e, e != nil
}

type expressionParser struct{ words []string }

// is reports whether the next word is w, and goes past it.
func (p *expressionParser) is(w string) bool {
	if len(p.words) == 0 || !strings.EqualFold(p.words[0], w) {
		return false
	}
	p.words = p.words[1:]
	return true
}

// commaOperator reads ", and" or ", or".
func (p *expressionParser) commaOperator() (operator, bool) {
	switch {
	case !p.is(","):
		return leaf, false
	case p.is("and"):
		return and, true
	case p.is("or"):
		return or, true
	}
	return leaf, false
}

// clause reads names up to a comma.
func (p *expressionParser) clause() *expression {
	any := &expression{op: or}
	for {
		all := &expression{op: and}
		for {
			name := p.name()
			if name == "" {
				return nil
			}
			all.parts = append(all.parts, &expression{id: name})
			if !p.is("and") {
				break
			}
		}
		if len(all.parts) == 1 {
			any.parts = append(any.parts, all.parts[0])
		} else {
			any.parts = append(any.parts, all)
		}
		if !p.is("or") {
			break
		}
	}
	if len(any.parts) == 1 {
		return any.parts[0]
	}
	return any
}

// name reads one licence's name with its exception, "" if there is none.
func (p *expressionParser) name() string {
	if len(p.words) == 0 || !isLicenseName(p.words[0]) {
		return ""
	}
	name := p.words[0]
	p.words = p.words[1:]
	if !p.is("with") {
		return name
	}
	for i, w := range p.words {
		if strings.EqualFold(w, "exception") || strings.EqualFold(w, "exceptions") {
			name = fmt.Sprintf("%s with %s exception", name, strings.Join(p.words[:i], " "))
			p.words = p.words[i+1:]
			return name
		}
		if w == "," || strings.EqualFold(w, "and") || strings.EqualFold(w, "or") {
			break
		}
	}
	return ""
}

// isLicenseName reports whether a word can be a licence's name.
func isLicenseName(w string) bool {
	if w == "" || w == "," || strings.EqualFold(w, "and") || strings.EqualFold(w, "or") || strings.EqualFold(w, "with") {
		return false
	}
	return !strings.ContainsFunc(w, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("+-._/:", c))
	})
}
