//go:build linux

package blockdev

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// cases reads a table of testdata: MACHINE, then two columns between bars.
func cases(t *testing.T, name string) (rows [][3]string) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 3 {
			t.Fatalf("%s: %q", name, line)
		}
		rows = append(rows, [3]string{strings.TrimSpace(f[0]), strings.TrimSpace(f[1]), strings.TrimSpace(f[2])})
	}
	return rows
}

// TestMachines runs the tables over the recordings of testdata/machines.
func TestMachines(t *testing.T) {
	lists := map[string][]Device{}
	for _, name := range machines {
		devices, err := machine(t, name).List(t.Context(), ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		lists[name] = devices
	}
	t.Run("queries", func(t *testing.T) { testQueries(t, lists) })
	t.Run("guards", func(t *testing.T) { testGuards(t, lists) })
}

// testQueries runs the table of queries: which disk is chosen, or how many the
// query found, or which that it must not take.
func testQueries(t *testing.T, lists map[string][]Device) {
	wrong := 0
	rows := cases(t, "queries.txt")
	for _, c := range rows {
		q, err := ParseQuery(c[1])
		if err != nil {
			t.Errorf("%s: %v", c[1], err)
			continue
		}
		got := ""
		d, err := Choose(q, lists[c[0]])
		if e, ok := errors.AsType[*ChoiceError](err); ok {
			got = "none"
			if len(e.taken) > 0 {
				got = fmt.Sprint(len(e.taken))
			} else if i := strings.Index(e.Error(), "may be written: "); i > 0 {
				got = "not " + strings.Trim(strings.Fields(e.Error()[i:])[3], ":")[len("/dev/"):]
			}
		} else {
			got = d.Name
		}
		if got != c[2] {
			wrong++
			t.Errorf("%s: %s: got %s, want %s (%v)", c[0], c[1], got, c[2], err)
		}
	}
	t.Logf("%d queries, %d wrong", len(rows), wrong)
}

// testGuards runs the table of guards: how fit each device of the machines is,
// and why.
func testGuards(t *testing.T, lists map[string][]Device) {
	seen := map[string]bool{}
	rows := cases(t, "guards.txt")
	for _, c := range rows {
		machine, name, _ := strings.Cut(c[0], " ")
		seen[machine+" "+name] = true
		var got *Device
		for i, d := range lists[machine] {
			if d.Name == name {
				got = &lists[machine][i]
			}
		}
		switch {
		case got == nil:
			t.Errorf("%s: there is no %s", machine, name)
		case string(got.Fit) != c[1] || strings.Join(got.Why, "; ") != strings.TrimPrefix(c[2], "-"):
			t.Errorf("%s: %s: got %s, %s\nwant %s, %s", machine, name, got.Fit, strings.Join(got.Why, "; "), c[1], c[2])
		}
	}
	for _, m := range machines {
		for _, d := range lists[m] {
			if !seen[m+" "+d.Name] {
				t.Errorf("%s %s: not in the table: %s, %s", m, d.Name, d.Fit, strings.Join(d.Why, "; "))
			}
		}
	}
	t.Logf("%d guards", len(rows))
}

var machines = []string{"laptop", "storage", "agent", "vm", "live", "board"}
