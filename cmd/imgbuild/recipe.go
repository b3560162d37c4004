package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

var setFlag = &cli.StringSliceFlag{Name: "set", Usage: "set the recipe's variable `NAME=VALUE`; may be repeated"}

func validateCommand() *cli.Command {
	return &cli.Command{
		Name:      "validate",
		Usage:     "check recipes, and report every mistake at its line",
		ArgsUsage: "RECIPE…",
		Description: `Reads each recipe with everything it extends and reports all mistakes at once, as
file:line:col: field: problem. Nothing is fetched and nothing is written.

  imgbuild validate recipes/*.yaml`,
		Flags: []cli.Flag{setFlag},
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return ui.Usagef(c, "validate needs a RECIPE")
			}
			var errs []error
			for _, path := range c.Args().Slice() {
				if _, err := loadRecipe(c, path); err != nil {
					errs = append(errs, err)
				}
			}
			if len(errs) > 0 {
				return recipeError(errors.Join(errs...))
			}
			return ui.From(c).Result(map[string]any{"valid": c.Args().Slice()}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%d recipes are valid\n", c.NArg())
				return err
			})
		},
	}
}

func showCommand() *cli.Command {
	return &cli.Command{
		Name:      "show",
		Usage:     "print the resolved recipe, and where each value came from",
		ArgsUsage: "RECIPE",
		Description: `The output is itself a recipe: everything it extends merged in, variables replaced,
defaults filled. A comment behind each value names the file and line it came from.

  imgbuild show recipes/debian-server.yaml --set console=tty0`,
		Flags: []cli.Flag{setFlag},
		Action: func(c *cli.Context) error {
			r, err := oneRecipe(c)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				_, err = fmt.Fprintf(c.App.Writer, "%s\n", r.Canonical())
				return err
			}
			return r.Show(c.App.Writer)
		},
	}
}

func schemaCommand() *cli.Command {
	return &cli.Command{
		Name:  "schema",
		Usage: "print the JSON Schema of recipes, so that editors complete them",
		Description: `  imgbuild schema >recipe.schema.json

and, as the first line of a recipe, for editors with the YAML language server:

  # yaml-language-server: $schema=recipe.schema.json`,
		Action: func(c *cli.Context) error {
			_, err := c.App.Writer.Write(recipe.Schema())
			return err
		},
	}
}

// oneRecipe loads the recipe that is the command's only argument.
func oneRecipe(c *cli.Context) (*recipe.Recipe, error) {
	if c.NArg() != 1 {
		return nil, ui.Usagef(c, "%s needs one RECIPE, got %d arguments", c.Command.Name, c.NArg())
	}
	return loadRecipe(c, c.Args().First())
}

// loadRecipe reads a recipe; its error exits with ui.ExitRecipe.
func loadRecipe(c *cli.Context, path string) (*recipe.Recipe, error) {
	set := map[string]string{}
	for _, s := range c.StringSlice("set") {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, ui.Usagef(c, "--set %s: want NAME=VALUE", s)
		}
		set[name] = value
	}
	r, err := recipe.Load(path, recipe.Options{Set: set})
	return r, recipeError(err)
}

// recipeError gives mistakes in recipes their exit code and leaves other errors
// alone.
func recipeError(err error) error {
	var m mistakes
	if m.collect(err); len(m) == 0 {
		return err
	}
	return ui.Fail(ui.ExitRecipe, m, "")
}

// mistakes are those of one recipe or of several, shown with their lines.
type mistakes []*recipe.Error

// collect takes the mistakes out of a tree of errors.
func (m *mistakes) collect(err error) {
	switch e := err.(type) {
	case *recipe.Error:
		*m = append(*m, e)
	case interface{ Unwrap() []error }:
		for _, e := range e.Unwrap() {
			m.collect(e)
		}
	case interface{ Unwrap() error }:
		m.collect(e.Unwrap())
	}
}

func (m mistakes) Error() string {
	lines := make([]string, len(m))
	for i, e := range m {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Display shows each mistake with the line it is in.
func (m mistakes) Display() string {
	var b strings.Builder
	for i, e := range m {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Error())
		if e.Excerpt != "" {
			b.WriteString("\n" + strings.TrimRight(e.Excerpt, "\n"))
		}
	}
	return b.String()
}
