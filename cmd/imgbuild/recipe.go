package main

import (
	"errors"
	"fmt"
	"io"
	"os"
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
				return ui.Fail(ui.ExitRecipe, errors.Join(errs...), "")
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
	r, err := recipe.Load(path, recipe.Options{Set: set, ReadFile: os.ReadFile})
	return r, recipeError(err)
}

// recipeError gives mistakes in a recipe their exit code and leaves others alone.
func recipeError(err error) error {
	if one, ok := errors.AsType[*recipe.Error](err); ok && one != nil {
		return ui.Fail(ui.ExitRecipe, err, "")
	}
	if many, ok := errors.AsType[recipe.Errors](err); ok && len(many) > 0 {
		return ui.Fail(ui.ExitRecipe, err, "")
	}
	return err
}
