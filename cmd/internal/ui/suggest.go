package ui

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// usageError is the cli package's answer to flags that it does not know, or
// whose values it cannot read.
func usageError(c *cli.Context, err error, _ bool) error {
	name, flags := c.App.Name, c.App.Flags
	if c.Command != nil && c.Command.HelpName != "" {
		name, flags = c.Command.HelpName, c.Command.Flags
	}
	help := fmt.Sprintf("see '%s --help'", name)
	if wrong, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		var known []string
		for _, f := range flags {
			known = append(known, f.Names()...)
		}
		wrong = strings.TrimLeft(wrong, "-")
		err = fmt.Errorf("%s has no flag --%s", name, wrong)
		if s := nearest(wrong, known); s != "" {
			help = fmt.Sprintf("--%s, or %s", s, help)
		}
	}
	return Fail(ExitUsage, err, help)
}

// suggestion is what to try instead of a command that does not exist.
func suggestion(app *cli.App, name string) string {
	var known []string
	for _, c := range app.Commands {
		known = append(known, c.Name)
	}
	help := fmt.Sprintf("'%s --help' lists the commands", app.Name)
	if s := nearest(name, known); s != "" {
		return fmt.Sprintf("%s %s, or %s", app.Name, s, help)
	}
	return help
}

// nearest returns the known word that a slip of the fingers turns into word,
// and "" where none is near.
func nearest(word string, known []string) string {
	best, least := "", len(word)/3+2
	for _, k := range known {
		if d := distance(word, k); len(k) > 1 && d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the letters to insert, remove, replace or swap with the next
// to get from a to b (optimal string alignment).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			same := 1
			if a[i-1] == b[j-1] {
				same = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+same)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
