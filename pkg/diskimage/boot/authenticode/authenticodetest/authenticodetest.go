// Package authenticodetest has what Debian's package ovmf brings for Secure Boot:
// firmware that enforces it, variables with a key enrolled, and that key, which is
// everybody's. It is linked by tests only.
//
//	signed, err := authenticode.SignBytes(program, authenticodetest.Snakeoil(t))
//	… -drive if=pflash,…,file=authenticodetest.Code, a copy of authenticodetest.Vars …
package authenticodetest

import (
	"os"
	"os/exec"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
)

// Files of package ovmf. QEMU wants -machine q35,smm=on for Code.
const (
	Code = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	Vars = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"
	Cert = "/usr/share/ovmf/PkKek-1-snakeoil.pem"
	key  = "/usr/share/ovmf/PkKek-1-snakeoil.key" // encrypted, the password is snakeoil
)

// Key returns the private key as PEM (PKCS #8, not encrypted). It skips the test
// where ovmf or openssl are not installed.
func Key(t testing.TB) []byte {
	t.Helper()
	b, err := exec.Command("openssl", "pkey", "-in", key, "-passin", "pass:snakeoil").Output()
	if err != nil {
		t.Skipf("openssl pkey -in %s: %v", key, err)
	}
	return b
}

// Snakeoil signs with the key that is enrolled in Vars.
func Snakeoil(t testing.TB) authenticode.Signer {
	t.Helper()
	cert, err := os.ReadFile(Cert)
	if err != nil {
		t.Skipf("ovmf is not installed: %v", err)
	}
	s, err := authenticode.ParseSigner(Key(t), cert)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
