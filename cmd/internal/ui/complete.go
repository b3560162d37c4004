package ui

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// completeFlag, as the last argument, asks for what the word before it may
// become. The cli package's own completion runs the command where a word is
// "--"; a key press must never write a disk.
const completeFlag = "--generate-bash-completion"

// complete prints the words that the last of words may become, one a line:
// commands, or flags of the command. None is for the shell to try files.
func complete(w io.Writer, app *cli.App, words []string) {
	last := ""
	if len(words) > 0 {
		last = words[len(words)-1]
	}
	offer := func(word string) {
		if strings.HasPrefix(word, last) {
			fmt.Fprintln(w, word)
		}
	}
	if len(words) <= 1 {
		for _, cmd := range app.Commands {
			offer(cmd.Name)
		}
		return
	}
	cmd := app.Command(words[0])
	if cmd == nil || !strings.HasPrefix(last, "-") {
		return
	}
	for _, f := range append(cmd.Flags, cli.HelpFlag) {
		for _, name := range f.Names() {
			if len(name) > 1 {
				offer("--" + name)
			}
		}
	}
}
