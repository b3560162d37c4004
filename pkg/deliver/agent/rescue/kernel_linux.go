package rescue

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const nonblock = unix.O_NONBLOCK

// kernelLog is what the kernel keeps of its log (syslog(2), READ_ALL).
func kernelLog(context.Context) ([]string, error) {
	const readAll, size = 3, 10
	n, err := unix.Klogctl(size, nil)
	if err != nil {
		return nil, fmt.Errorf("kernel log: %w", err)
	}
	b := make([]byte, min(max(n, 4096), maxOutput))
	if n, err = unix.Klogctl(readAll, b); err != nil {
		return nil, fmt.Errorf("kernel log: %w", err)
	}
	text := strings.ToValidUTF8(string(b[:n]), "?")
	return strings.Split(strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimSuffix(text, "\n")), "\n"), nil
}
