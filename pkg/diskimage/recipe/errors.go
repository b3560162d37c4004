package recipe

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxErrors bounds how many mistakes of one recipe are reported; the rest are counted.
const maxErrors = 100

// setFile is the File of a Pos whose value was given by Options.Set.
const setFile = "--set"

// onlyFile is that of one given by Options.Choose.
const onlyFile = "--only"

// String returns "file:line:col", "file" where there is no line, or "default"
// for the zero Pos.
func (p Pos) String() string {
	switch {
	case p == Pos{}:
		return "default"
	case p.Line == 0:
		return printable(p.File)
	}
	return fmt.Sprintf("%s:%d:%d", printable(p.File), p.Line, p.Col)
}

// printable keeps a text in one line: what does not print is escaped as Go does.
func printable(text string) string {
	odd := func(c rune) bool { return !unicode.IsPrint(c) }
	if !strings.ContainsFunc(text, odd) {
		return text
	}
	var b strings.Builder
	for _, c := range text {
		if odd(c) {
			b.WriteString(strings.Trim(strconv.QuoteRune(c), "'"))
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}

// Error is one mistake in a recipe.
type Error struct {
	Pos     Pos
	Field   string // YAML path in the resolved recipe: "files[2].mode"; "" for a file as a whole
	Problem string
	Excerpt string // the line with a mark below the column, two lines without a final newline; may be ""
}

// Error returns "file:line:col: field: problem".
func (e *Error) Error() string {
	if e.Field == "" {
		return e.Pos.String() + ": " + e.Problem
	}
	return e.Pos.String() + ": " + e.Field + ": " + e.Problem
}

// Errors is every mistake of a recipe, sorted by position.
type Errors []*Error

// Error returns the mistakes, one a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Sort orders mistakes by position, and those of one position as they were found.
func (e Errors) Sort() {
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(strings.Compare(a.Pos.File, b.Pos.File), cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Col, b.Pos.Col))
	})
}

// Unwrap returns each mistake, for errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, x := range e {
		out[i] = x
	}
	return out
}

// Pos returns where the value of field was written, or that of its nearest
// parent if the field is absent or a default: "files[2].mode" falls back to
// "files[2]", that to "files", and that to the beginning of the recipe.
func (r *Recipe) Pos(field string) Pos {
	for {
		if p, ok := r.origins[field]; ok || field == "" {
			return p
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
}

// has reports whether the recipe gives the field itself, rather than a default.
func (r *Recipe) has(field string) bool {
	_, ok := r.origins[field]
	return ok
}

// Errorf returns a mistake at the place of field, as [Recipe.Pos] finds it.
func (r *Recipe) Errorf(field, format string, args ...any) *Error {
	pos := r.Pos(field)
	return &Error{Pos: pos, Field: field, Problem: fmt.Sprintf(format, args...), Excerpt: excerpt(r.sources, pos)}
}

// mistakes gathers Errors. Beyond maxErrors they are only counted.
type mistakes struct {
	list    Errors
	more    int
	sources map[string][]string
}

func (m *mistakes) add(pos Pos, field, format string, args ...any) {
	if len(m.list) >= maxErrors {
		m.more++
		return
	}
	m.list = append(m.list, &Error{
		Pos: pos, Field: printable(field), Problem: printable(fmt.Sprintf(format, args...)), Excerpt: excerpt(m.sources, pos),
	})
}

// err returns the mistakes sorted, or nil if there are none.
func (m *mistakes) err() error {
	if len(m.list) == 0 {
		return nil
	}
	m.list.Sort()
	if m.more > 0 {
		last := m.list[len(m.list)-1]
		m.list = append(m.list, &Error{Pos: Pos{File: last.Pos.File}, Problem: fmt.Sprintf("%d more mistakes are not shown", m.more)})
	}
	return m.list
}

// excerpt shows the line of a position and marks its column. Of a long line it
// shows what is around the column.
func excerpt(sources map[string][]string, pos Pos) string {
	lines := sources[pos.File]
	if pos.Line < 1 || pos.Line > len(lines) {
		return ""
	}
	const before, width = 60, 100
	line := []rune(lines[pos.Line-1])
	col := min(max(pos.Col, 1)-1, len(line))
	if start := col - before; start > 0 && len(line) > width {
		line, col = line[start:], before
	}
	line = line[:min(len(line), width)]
	for i, c := range line {
		if c == '\t' {
			line[i] = ' '
		} else if !unicode.IsPrint(c) {
			line[i] = '\uFFFD'
		}
	}
	gutter := fmt.Sprintf("%5d | ", pos.Line)
	return gutter + string(line) + "\n" + strings.Repeat(" ", len(gutter)-2) + "| " + strings.Repeat(" ", col) + "^"
}

// has reports whether a mistake of a field is known already.
func (m *mistakes) has(field string) bool {
	for _, e := range m.list {
		if e.Field == field {
			return true
		}
	}
	return false
}
