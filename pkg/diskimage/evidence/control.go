package evidence

import (
	"bytes"
	"iter"
	"strings"
)

// field is one field of a control file (deb822(5)). Lines after the first keep
// the white space that they begin with.
type field struct{ name, value string }

type paragraph []field

// get returns the value of a field, whose name's case does not matter.
func (p paragraph) get(name string) (value string, ok bool) {
	for _, f := range p {
		if strings.EqualFold(f.name, name) {
			return f.value, true
		}
	}
	return "", false
}

// line returns the value of a field of one line, "" if there is none.
func (p paragraph) line(name string) string {
	v, _ := p.get(name)
	first, _, _ := strings.Cut(v, "\n")
	return strings.TrimSpace(first)
}

// paragraphs yields the paragraphs of a control file. A line that is neither a
// field, nor continues one, nor a comment, ends nothing and says nothing.
func paragraphs(b []byte) iter.Seq[paragraph] {
	return func(yield func(paragraph) bool) {
		var p paragraph
		var value strings.Builder // of the last field of p
		end := func() {
			if len(p) > 0 {
				p[len(p)-1].value = value.String()
			}
			value.Reset()
		}
		for line := range bytes.Lines(b) {
			line = bytes.TrimRight(line, "\r\n")
			switch {
			case len(bytes.TrimSpace(line)) == 0:
				if end(); len(p) > 0 && !yield(p) {
					return
				}
				p = nil
			case line[0] == '#':
			case line[0] == ' ' || line[0] == '\t':
				if len(p) > 0 {
					value.WriteByte('\n')
					value.Write(line)
				}
			default:
				name, rest, found := bytes.Cut(line, []byte(":"))
				if !found {
					continue
				}
				end()
				p = append(p, field{name: string(name)})
				value.Write(bytes.TrimSpace(rest))
			}
		}
		if end(); len(p) > 0 {
			yield(p)
		}
	}
}
