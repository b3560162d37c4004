package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/firstboot"
)

// maxConfig bounds a config file: no config volume is larger.
const maxConfig = 64 << 20

var (
	// hostname is one that RFC 1123, section 2.1, allows.
	hostname = regexp.MustCompile(`^` + label + `(\.` + label + `)*$`)
	// publicKey is a line of authorized_keys (sshd(8)): options, a type, the key,
	// a comment. The key begins with the type's length, of which three bytes are 0.
	publicKey = regexp.MustCompile(`^([^\n]+ )?(ssh|sk-ssh|ecdsa|sk-ecdsa)-[^ \n]+ +AAAA[A-Za-z0-9+/=]+( [^\n]*)?\n?$`)
)

const label = `[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?`

// machineConfig reads the files that the config flags name.
func machineConfig(c *cli.Context) (firstboot.Config, error) {
	config := firstboot.Config{Hostname: c.String("hostname"), SSHKeys: c.StringSlice("ssh-key")}
	if h := config.Hostname; h != "" && (len(h) > 253 || !hostname.MatchString(h)) {
		return config, ui.Usagef(c, "--hostname %q: want letters, digits and -, in parts of at most 63 with dots between", h)
	}
	for _, k := range config.SSHKeys {
		if !publicKey.MatchString(k) { // what it is instead may be a secret
			return config, ui.Fail(ui.ExitUsage, errors.New("--ssh-key: that is no line of authorized_keys"),
				`give the public key itself: --ssh-key "$(cat ~/.ssh/id_ed25519.pub)"`)
		}
	}
	for _, f := range []struct {
		flag string
		to   *[]byte
	}{{"user-data", &config.UserData}, {"meta-data", &config.MetaData}, {"network-config", &config.NetworkConfig}} {
		path := c.String(f.flag)
		if path == "" {
			continue
		}
		var err error
		if *f.to, err = readConfig(path); err != nil {
			return config, ui.Fail(ui.ExitUsage, fmt.Errorf("--%s: %w", f.flag, err), "")
		}
	}
	return config, nil
}

// readConfig reads a file, which may be a pipe.
func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("%s: more than %s are too much for a config", path, ui.Bytes(maxConfig))
	}
	return b, err
}
