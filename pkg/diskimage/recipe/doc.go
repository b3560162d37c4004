// Package recipe turns the text of a recipe into a validated [Recipe] whose
// every value knows the file, line and column it came from. docs/recipe.md is
// the normative text.
//
//	r, err := recipe.Load("recipes/debian-server.yaml", recipe.Options{
//		Set: map[string]string{"console": "tty0"},
//	})
//	if errs, ok := errors.AsType[recipe.Errors](err); ok {
//		for _, e := range errs { // every mistake of the recipe
//			fmt.Fprintf(os.Stderr, "%v\n%s\n", e, e.Excerpt)
//		}
//	}
//	// a mistake that only a later step can see, at its place:
//	return r.Errorf("systemd.enable[0]", "no unit ssh.service in the tree")
//
// It guarantees that an accepted recipe keeps every rule of docs/recipe.md, that
// what [Recipe.Show] prints loads again to an equal [Recipe.Canonical], and that
// decoding and [Schema] follow one table. Reading is bounded: files, their size,
// tokens and nesting, and what variables expand to. It does not look into the sources of files (only that they
// exist), and knows neither packages nor units nor what a distribution offers.
package recipe
