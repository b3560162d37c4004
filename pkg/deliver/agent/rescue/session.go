package rescue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"
)

const maxLine = 4096 // bytes of a command

// serveSession is a command, or lines of them at a prompt.
func (m Machine) serveSession(ctx context.Context, ch ssh.Channel, requests <-chan *ssh.Request) {
	defer ch.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	started := false
	pty := false
	for {
		select {
		case <-done:
			return
		case r, ok := <-requests:
			if !ok { // the visitor closed it
				cancel()
				ch.Close()
				if started {
					<-done
				}
				return
			}
			accept := false
			switch r.Type {
			case "pty-req":
				pty, accept = true, true
			case "window-change":
				accept = true
			case "exec", "shell":
				line, ok := command(r)
				if accept = ok && !started; accept {
					started = true
					typed, interactive := pty, r.Type == "shell"
					go func() {
						defer close(done)
						m.session(ctx, ch, line, interactive, typed)
					}()
				}
			}
			if r.WantReply { // env, subsystem, agent and X11 forwarding: no
				_ = r.Reply(accept, nil)
			}
		}
	}
}

// command is an exec request's (RFC 4254 section 6.5).
func command(r *ssh.Request) (string, bool) {
	if r.Type == "shell" {
		return "", true
	}
	var p struct{ Command string }
	if err := ssh.Unmarshal(r.Payload, &p); err != nil || len(p.Command) > maxLine {
		return "", false
	}
	return p.Command, true
}

func (m Machine) session(ctx context.Context, ch ssh.Channel, line string, interactive, pty bool) {
	status := uint32(0)
	if interactive {
		m.prompt(ctx, ch, pty)
	} else if err := m.Run(ctx, line, ch); err != nil {
		fmt.Fprintf(ch.Stderr(), "%v\n", err)
		status = 1
	}
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
}

// prompt reads lines until the visitor leaves.
func (m Machine) prompt(ctx context.Context, ch ssh.Channel, pty bool) {
	prompt := ""
	if pty {
		prompt = "rescue> "
	}
	t := term.NewTerminal(ch, prompt) // with a terminal it is raw on the other side
	var out io.Writer = t
	if !pty {
		out = ch
	}
	fmt.Fprintln(out, "imgpush rescue: help lists the commands; there is no shell")
	for ctx.Err() == nil {
		line, err := t.ReadLine()
		if err != nil && !errors.Is(err, term.ErrPasteIndicator) {
			return
		}
		switch strings.TrimSpace(line) {
		case "":
			continue
		case "exit", "quit", "logout":
			return
		}
		if len(line) > maxLine {
			fmt.Fprintln(out, "too long")
			continue
		}
		if err := m.Run(ctx, line, out); err != nil {
			fmt.Fprintln(out, err)
		}
	}
}
