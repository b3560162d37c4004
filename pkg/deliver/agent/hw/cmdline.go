//go:build linux

package hw

import "strings"

// Parameters are the words of a kernel command line in their order.
type Parameters []Parameter

// Parameter is NAME or NAME=VALUE.
type Parameter struct {
	Name, Value string
	Set         bool // there was a "="
}

// maxParameters bounds how many words of a command line are looked at.
const maxParameters = 1024

// Cmdline is the command line that the kernel was started with. It is not
// believed: docs/netboot.md, section 3.
func Cmdline() Parameters { return System{}.Cmdline() }

// Cmdline is as the function of that name.
func (s System) Cmdline() Parameters { return ParseCmdline(s.text("/proc/cmdline")) }

// ParseCmdline takes a command line apart as the kernel does (next_arg of
// lib/cmdline.c): words end at white space outside of double quotes; quotes
// around a value or a whole word are taken off. What follows a word "--" is
// init's and is left out.
func ParseCmdline(text string) (out Parameters) {
	for len(out) < maxParameters {
		text = strings.TrimLeft(text, " \t\r\n")
		if text == "" {
			break
		}
		end, quoted := 0, false
		for ; end < len(text); end++ {
			if c := text[end]; c == '"' {
				quoted = !quoted
			} else if !quoted && strings.IndexByte(" \t\r\n", c) >= 0 {
				break
			}
		}
		word := text[:end]
		text = text[end:]
		if word == "--" {
			break
		}
		if p := parameter(word); p.Name != "" {
			out = append(out, p)
		}
	}
	return out
}

func parameter(word string) Parameter {
	if strings.HasPrefix(word, `"`) {
		word = strings.TrimSuffix(word[1:], `"`)
	}
	name, value, set := strings.Cut(word, "=")
	if strings.HasPrefix(value, `"`) {
		value = strings.TrimSuffix(value[1:], `"`)
	}
	return Parameter{name, value, set}
}

// Get is the last value of a parameter: later ones override.
func (p Parameters) Get(name string) (value string, ok bool) {
	for _, v := range p {
		if v.Name == name {
			value, ok = v.Value, true
		}
	}
	return value, ok
}

// Has reports whether a parameter is there, with a value or without.
func (p Parameters) Has(name string) bool { _, ok := p.Get(name); return ok }

// All are the values of a parameter that may be there often.
func (p Parameters) All(name string) (values []string) {
	for _, v := range p {
		if v.Name == name {
			values = append(values, v.Value)
		}
	}
	return values
}
