package main

import (
	"strings"
	"testing"
)

func TestPublicKeysAreLinesOfAuthorizedKeys(t *testing.T) {
	for line, want := range map[string]bool{
		"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE":                               true,
		"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE ops on db1":                    true,
		"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTI= x":                           true,
		"sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5 x":                true,
		`from="10.0.0.0/8",command="echo hi" ssh-rsa AAAAB3NzaC1yc2EAAAA= ops`: true,
		"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE\n":                             true,
		"":                                  false,
		"ops":                               false,
		"/root/.ssh/id_ed25519.pub":         false,
		"ssh-ed25519":                       false,
		"ssh-ed25519 key":                   false,
		"AAAAC3NzaC1lZDI1NTE5AAAAIE":        false,
		"-----BEGIN OPENSSH PRIVATE KEY---": false,
		"ssh-ed25519 AAAAC3\nssh-rsa AAAAB": false,
	} {
		if got := publicKey.MatchString(line); got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
}

func TestHostnames(t *testing.T) {
	long := strings.Repeat("a", 63)
	for name, want := range map[string]bool{
		"db1": true, "DB-1.example.org": true, "1": true, long: true, long + "." + long: true,
		long + "a": false, "-db": false, "db-": false, "db_1": false, "db 1": false, "db1.": false, ".db1": false, "db1\n": false, "größe": false,
	} {
		if got := hostname.MatchString(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}
