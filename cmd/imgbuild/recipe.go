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
		Flags: []cli.Flag{setFlag, onlyFlag},
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return ui.Usagef(c, "validate needs a RECIPE")
			}
			var errs []error
			images := 0
			for _, path := range c.Args().Slice() {
				n, err := validateRecipe(c, path)
				if ui.Code(err) == ui.ExitUsage {
					return err
				}
				images += n
				if err != nil {
					errs = append(errs, err)
				}
			}
			if len(errs) > 0 {
				return ui.Fail(ui.ExitRecipe, leaves(errors.Join(errs...)), "")
			}
			return ui.From(c).Result(map[string]any{"valid": c.Args().Slice(), "images": images}, func(w io.Writer) error {
				verb := "recipes are"
				if c.NArg() == 1 {
					verb = "recipe is"
				}
				note := ""
				if images != c.NArg() {
					note = fmt.Sprintf(", for %d images", images)
				}
				_, err := fmt.Fprintf(w, "%d %s valid%s\n", c.NArg(), verb, note)
				return err
			})
		},
	}
}

// validateRecipe checks all combinations of a recipe, and counts them. A mistake
// that all have is told once; any other says which combination has it.
func validateRecipe(c *cli.Context, path string) (int, error) {
	all, err := combinations(c, path)
	if err != nil {
		return 0, err
	}
	var order []error
	found := map[string][]recipe.Combination{}
	for _, x := range all {
		_, err := loadRecipe(c, path, x)
		if ui.Code(err) == ui.ExitUsage {
			return 0, err
		}
		if err == nil {
			continue
		}
		for _, e := range leaves(err) {
			if found[e.Error()] == nil {
				order = append(order, e)
			}
			found[e.Error()] = append(found[e.Error()], x)
		}
	}
	for _, e := range order {
		in := found[e.Error()]
		if e, ok := errors.AsType[*recipe.Error](e); ok && len(in) < len(all) {
			e.Problem += fmt.Sprintf(" (with %v)", in[0])
		}
	}
	return len(all), errors.Join(order...)
}

func showCommand() *cli.Command {
	return &cli.Command{
		Name:      "show",
		Usage:     "print the resolved recipe, and where each value came from",
		ArgsUsage: "RECIPE",
		Description: `The output is itself a recipe: everything it extends merged in, variables replaced,
defaults filled. A comment behind each value names the file and line it came from.

Of a recipe with a matrix it lists the combinations; --only chooses.

  imgbuild show recipes/debian-server.yaml --set console=tty0
  imgbuild show recipe.yaml --only arch=arm64`,
		Flags: []cli.Flag{setFlag, onlyFlag},
		Action: func(c *cli.Context) error {
			if c.NArg() == 1 {
				if all, err := combinations(c, c.Args().First()); err == nil && len(all) > 1 {
					return showCombinations(c, all)
				}
			}
			r, _, err := oneRecipe(c)
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

// showCombinations lists them as --only takes them.
func showCombinations(c *cli.Context, all []recipe.Combination) error {
	list := make([]map[string]string, len(all))
	for i, x := range all {
		list[i] = x.Choose()
	}
	return ui.From(c).Result(map[string]any{"combinations": list}, func(w io.Writer) error {
		for _, x := range all {
			if _, err := fmt.Fprintln(w, x); err != nil {
				return err
			}
		}
		return nil
	})
}

func schemaCommand() *cli.Command {
	return &cli.Command{
		Name:  "schema",
		Usage: "print the JSON Schema of recipes, so that editors complete them",
		Description: `  imgbuild schema >recipe.schema.json

and, as the first line of a recipe, for editors with the YAML language server:

  # yaml-language-server: $schema=recipe.schema.json`,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return ui.Usagef(c, "schema takes no arguments")
			}
			_, err := c.App.Writer.Write(recipe.Schema())
			return err
		},
	}
}

// oneRecipe loads the recipe that is the command's only argument, and says which
// combination of its matrix it is.
func oneRecipe(c *cli.Context) (*recipe.Recipe, recipe.Combination, error) {
	if c.NArg() != 1 {
		return nil, nil, ui.Usagef(c, "%s needs one RECIPE, got %d arguments", c.Command.Name, c.NArg())
	}
	x, err := oneCombination(c, c.Args().First())
	if err != nil {
		return nil, nil, err
	}
	r, err := loadRecipe(c, c.Args().First(), x)
	return r, x, err
}

// loadRecipe reads a combination of a recipe; its error exits with ui.ExitRecipe.
func loadRecipe(c *cli.Context, path string, x recipe.Combination) (*recipe.Recipe, error) {
	set := map[string]string{}
	for _, s := range c.StringSlice("set") {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, ui.Usagef(c, "--set %s: want NAME=VALUE", s)
		}
		set[name] = value
	}
	r, err := recipe.Load(path, recipe.Options{Set: set, Choose: x.Choose()})
	if err != nil {
		return nil, ui.Fail(ui.ExitRecipe, leaves(err), "")
	}
	return r, nil
}

// recipeError gives mistakes in recipes their exit code, and shows them with
// their lines; other errors it leaves alone.
func recipeError(err error) error {
	if _, ok := errors.AsType[*recipe.Error](err); !ok {
		return err
	}
	return ui.Fail(ui.ExitRecipe, leaves(err), "")
}

// mistakes are those of one recipe or of several, each a *recipe.Error, and
// what else went wrong with them.
type mistakes []error

// leaves flattens a tree of errors in which there are mistakes.
func leaves(err error) mistakes {
	if one, ok := err.(*recipe.Error); ok {
		return mistakes{one}
	}
	var out mistakes
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, e := range e.Unwrap() {
			out = append(out, leaves(e)...)
		}
		return out
	case interface{ Unwrap() error }:
		if _, ok := errors.AsType[*recipe.Error](err); ok {
			return leaves(e.Unwrap())
		}
	}
	return mistakes{err}
}

func (m mistakes) Error() string {
	lines := make([]string, len(m))
	for i, e := range m {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

func (m mistakes) Unwrap() []error { return m }

// Details are the mistakes one by one, for --json.
func (m mistakes) Details() any {
	type mistake struct {
		File    string `json:"file,omitempty"`
		Line    int    `json:"line,omitempty"`
		Column  int    `json:"column,omitempty"`
		Field   string `json:"field,omitempty"`
		Problem string `json:"problem"`
	}
	out := make([]mistake, len(m))
	for i, err := range m {
		out[i].Problem = err.Error()
		if e, ok := err.(*recipe.Error); ok {
			out[i] = mistake{e.Pos.File, e.Pos.Line, e.Pos.Col, e.Field, e.Problem}
		}
	}
	return out
}

// Display shows each mistake with the line it is in. Each begins a line, where
// editors look for it.
func (m mistakes) Display() string {
	var b strings.Builder
	if len(m) > 1 {
		fmt.Fprintf(&b, "%d mistakes\n", len(m))
	}
	for i, e := range m {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Error())
		if e, ok := e.(*recipe.Error); ok && e.Excerpt != "" {
			b.WriteString("\n" + strings.TrimRight(e.Excerpt, "\n"))
		}
	}
	return b.String()
}
