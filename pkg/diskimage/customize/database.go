package customize

import (
	"slices"
	"strconv"
	"strings"
)

// database is one of the colon-separated files of passwd(5) and its kin. Lines
// that nobody changes stay as they are, byte for byte, well-formed or not.
type database struct {
	path  string
	found bool // in the tree
	lines []string
	dirty bool
}

func parseDatabase(path string, text []byte, found bool) *database {
	d := &database{path: path, found: found}
	if s := strings.TrimSuffix(string(text), "\n"); s != "" {
		d.lines = strings.Split(s, "\n")
	}
	return d
}

// text returns the file.
func (d *database) text() []byte {
	if len(d.lines) == 0 {
		return nil
	}
	return []byte(strings.Join(d.lines, "\n") + "\n")
}

// get returns the fields of a name's line, or nil. The caller may not change them.
func (d *database) get(name string) []string {
	for _, line := range d.lines {
		if rest, ok := strings.CutPrefix(line, name); ok && strings.HasPrefix(rest, ":") {
			return strings.Split(line, ":")
		}
	}
	return nil
}

// set changes one field of a name's line and reports whether the line has it.
func (d *database) set(name string, field int, value string) bool {
	for i, line := range d.lines {
		fields := strings.Split(line, ":")
		if fields[0] != name || field >= len(fields) {
			continue
		}
		if fields[field] != value {
			fields[field] = value
			d.lines[i] = strings.Join(fields, ":")
			d.dirty = true
		}
		return true
	}
	return false
}

// add appends a line, before the "+" and "-" lines of NIS, which end the file.
func (d *database) add(fields ...string) {
	at := len(d.lines)
	if i := slices.IndexFunc(d.lines, func(s string) bool { return strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") }); i >= 0 {
		at = i
	}
	d.lines = slices.Insert(d.lines, at, strings.Join(fields, ":"))
	d.dirty = true
}

// addMember puts a user into the comma-separated list that is a group's field.
func (d *database) addMember(group, user string, field int) {
	fields := d.get(group)
	if field >= len(fields) {
		return
	}
	members := strings.FieldsFunc(fields[field], func(c rune) bool { return c == ',' })
	if !slices.Contains(members, user) {
		d.set(group, field, strings.Join(append(members, user), ","))
	}
}

// names returns the first fields of all lines.
func (d *database) names() (names []string) {
	for _, line := range d.lines {
		if name, _, ok := strings.Cut(line, ":"); ok && name != "" {
			names = append(names, name)
		}
	}
	return names
}

// ids returns who has which number in field 2.
func (d *database) ids() map[uint32]string {
	ids := map[uint32]string{}
	for _, line := range d.lines {
		fields := strings.Split(line, ":")
		if len(fields) < 3 {
			continue
		}
		if id, ok := parseID(fields[2]); ok && ids[id] == "" {
			ids[id] = fields[0]
		}
	}
	return ids
}

// parseID reads a user or group ID. 2^32-1 means "no ID" to the kernel.
func parseID(s string) (uint32, bool) {
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err == nil && id != 1<<32-1
}

// subordinate returns the start of the lowest run of count free IDs in
// [least, most] of an /etc/subuid or /etc/subgid (subuid(5)).
func (d *database) subordinate(least, most, count uint64) (uint64, bool) {
	type run struct{ from, to uint64 } // half-open
	var taken []run
	for _, line := range d.lines {
		fields := strings.Split(line, ":")
		if len(fields) != 3 {
			continue
		}
		from, err1 := strconv.ParseUint(fields[1], 10, 32)
		n, err2 := strconv.ParseUint(fields[2], 10, 33)
		if err1 == nil && err2 == nil {
			taken = append(taken, run{from, from + n})
		}
	}
	slices.SortFunc(taken, func(a, b run) int {
		if a.from < b.from {
			return -1
		}
		return 1
	})
	from := least
	for _, r := range taken {
		if r.from >= from+count {
			break
		}
		from = max(from, r.to)
	}
	return from, count > 0 && from+count-1 <= most
}

// loginDefs is /etc/login.defs (login.defs(5)): names and values.
type loginDefs map[string]string

func parseLoginDefs(text []byte) loginDefs {
	defs := loginDefs{}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && !strings.HasPrefix(fields[0], "#") {
			defs[fields[0]] = strings.Trim(fields[1], `"`)
		}
	}
	return defs
}

// number returns a value as strtoul(3) with base 0 reads it, or what shadow has
// built in.
func (l loginDefs) number(name string, builtin uint64) uint64 {
	s := l[name]
	base := 10
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		s, base = s[2:], 16
	case len(s) > 1 && s[0] == '0':
		s, base = s[1:], 8
	}
	if n, err := strconv.ParseUint(s, base, 32); err == nil {
		return n
	}
	return builtin
}

// ageing returns a value of shadow(5) in days; -1 and nothing are an empty field.
func (l loginDefs) ageing(name string) string {
	if n, err := strconv.Atoi(l[name]); err == nil && n >= 0 {
		return strconv.Itoa(n)
	}
	return ""
}
