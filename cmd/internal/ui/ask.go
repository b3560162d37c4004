package ui

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// ErrNobody is why a question was not asked: there is no terminal.
var ErrNobody = errors.New("nobody can be asked")

// AskSecret asks on the terminal for a line that it does not show, such as a
// password. The terminal shows again what is typed when it returns, also when
// ctx ended first.
func (t *Talk) AskSecret(ctx context.Context, c *cli.Context, question string) ([]byte, error) {
	in, ok := c.App.Reader.(*os.File)
	if !ok || !t.CanAsk() {
		return nil, ErrNobody
	}
	fd := int(in.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	hidden := *was
	hidden.Lflag &^= unix.ECHO
	hidden.Lflag |= unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return nil, err
	}
	defer func() {
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, was) // it could be read and set before
		fmt.Fprintln(t.out)
	}()
	fmt.Fprintf(t.out, "%s: ", question)
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() { // a read of a terminal cannot be cancelled; it ends with the process
		line, err := bufio.NewReader(in).ReadString('\n')
		got <- answer{line, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-got:
		if a.err != nil {
			return nil, a.err
		}
		return []byte(strings.TrimRight(a.line, "\r\n")), nil
	}
}
