package cmdtest

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// Help checks that every command shows an example of itself, and that every
// flag says what it does and what its value is.
func Help(t *testing.T, app *cli.App) {
	t.Helper()
	for _, c := range app.Commands {
		if c.Usage == "" || !strings.Contains(c.Description, "\n  "+app.Name+" "+c.Name+" ") && !strings.HasPrefix(c.Description, "  "+app.Name+" "+c.Name+" ") {
			t.Errorf("%s %s: no usage, or no example, in\n%s", app.Name, c.Name, c.Description)
		}
		for _, line := range strings.Split(c.Description, "\n") {
			if len(line) > 90 {
				t.Errorf("%s %s: a line of %d columns: %s", app.Name, c.Name, len(line), line)
			}
		}
		for _, f := range c.Flags {
			d, ok := f.(cli.DocGenerationFlag)
			if !ok || d.GetUsage() == "" {
				t.Errorf("%s %s %v: not explained", app.Name, c.Name, f.Names())
			} else if d.TakesValue() && strings.Count(d.GetUsage(), "`") != 2 {
				t.Errorf("%s %s %v: no word for its value in %q", app.Name, c.Name, f.Names(), d.GetUsage())
			}
		}
	}
}
