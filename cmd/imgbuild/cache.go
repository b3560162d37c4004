package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage/build"
)

var cacheFlag = &cli.StringFlag{Name: "cache", Usage: "keep downloads and package trees in `DIR`", EnvVars: []string{"IMGPIPE_CACHE"}, DefaultText: "the user's cache"}

func cacheCommand() *cli.Command {
	return &cli.Command{
		Name:  "cache",
		Usage: "show or prune what builds keep",
		Description: `Builds keep packages, package trees, the results of steps and the folders of run steps'
cache, and prune what was used longest ago when there is more than --cache-size of build.
Builds may run meanwhile: what was used within the last hour stays.

  imgbuild cache list
  imgbuild cache prune --keep 5GiB
  imgbuild cache prune --unused 720h --dry-run`,
		ArgsUsage: "[list|prune]",
		Flags: []cli.Flag{
			cacheFlag,
			&cli.StringFlag{Name: "keep", Usage: "prune: keep at most `SIZE`", DefaultText: "no limit"},
			&cli.DurationFlag{Name: "unused", Usage: "prune: remove what was not used for `DURATION`", DefaultText: "no limit"},
			&cli.BoolFlag{Name: "dry-run", Usage: "prune: say what would go"},
		},
		Action: func(c *cli.Context) error {
			switch what := c.Args().First(); {
			case c.NArg() > 1:
				return ui.Usagef(c, "cache takes one word: list or prune")
			case what == "prune":
				return runCachePrune(c)
			case what != "" && what != "list":
				return ui.Usagef(c, "cache %s: want list or prune", what)
			case c.IsSet("keep") || c.IsSet("unused") || c.IsSet("dry-run"):
				return ui.Usagef(c, "cache list takes no --keep, --unused or --dry-run; say cache prune")
			}
			return runCacheList(c)
		},
	}
}

// cacheKind is a line of `imgbuild cache list`.
type cacheKind struct {
	Kind    string    `json:"kind"`
	Entries int       `json:"entries"`
	Size    int64     `json:"size"`
	Oldest  time.Time `json:"oldest"` // last use of what was used longest ago
}

func runCacheList(c *cli.Context) error {
	dir, err := cacheDir(c)
	if err != nil {
		return err
	}
	entries, err := build.Cache(dir)
	if err != nil {
		return err
	}
	kinds := []cacheKind{}
	for _, e := range entries { // what was used longest ago comes first
		i := slices.IndexFunc(kinds, func(k cacheKind) bool { return k.Kind == e.Kind })
		if i < 0 {
			i, kinds = len(kinds), append(kinds, cacheKind{Kind: e.Kind, Oldest: e.Used})
		}
		kinds[i].Entries++
		kinds[i].Size += e.Size
	}
	slices.SortFunc(kinds, func(a, b cacheKind) int { return int((b.Size - a.Size) >> 10) })
	return ui.From(c).Result(kinds, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		var sum int64
		for _, k := range kinds {
			sum += k.Size
			fmt.Fprintf(t, "%s\t%d\t%s\tused since %s\n", k.Kind, k.Entries, ui.Bytes(k.Size), k.Oldest.Format(time.DateOnly)) //nolint:errcheck // Flush says it
		}
		fmt.Fprintf(t, "%s\t\t%s\t\n", dir, ui.Bytes(sum)) //nolint:errcheck // as above
		return t.Flush()
	})
}

func runCachePrune(c *cli.Context) error {
	o := build.PruneOptions{Keep: -1, Unused: c.Duration("unused"), Now: time.Now(), DryRun: c.Bool("dry-run")}
	if o.Unused < 0 {
		return ui.Usagef(c, "--unused %v: want a duration such as 720h", o.Unused)
	}
	if text := c.String("keep"); text != "" {
		var err error
		if o.Keep, err = ui.ParseBytes(text); err != nil {
			return ui.Usagef(c, "--keep: %v", err)
		}
	}
	if o.Keep < 0 && o.Unused == 0 {
		return ui.Usagef(c, "cache prune needs --keep or --unused")
	}
	dir, err := cacheDir(c)
	if err != nil {
		return err
	}
	gone, left, err := build.Prune(dir, o)
	if err != nil {
		return err
	}
	result := struct {
		Removed []build.CacheEntry `json:"removed"`
		Freed   int64              `json:"freed"`
		Left    int64              `json:"left"`
		DryRun  bool               `json:"dryRun,omitempty"`
	}{Removed: gone, Left: left, DryRun: o.DryRun}
	for _, e := range gone {
		result.Freed += e.Size
	}
	return ui.From(c).Result(result, func(w io.Writer) error {
		what := "removed"
		if o.DryRun {
			what = "would be removed"
		}
		_, err := fmt.Fprintf(w, "%s: %d entries %s, %s freed, %s left\n", dir, len(gone), what, ui.Bytes(result.Freed), ui.Bytes(left))
		return err
	})
}
