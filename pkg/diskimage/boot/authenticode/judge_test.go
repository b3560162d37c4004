package authenticode_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
)

// judge runs a tool and returns whether it was content, and what it said.
func judge(t *testing.T, name string, args ...string) (bool, string) {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("the judge %s is not installed", name)
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	return err == nil, string(out)
}

func TestSbverifyJudges(t *testing.T) {
	one, two, other := newKey(t, "one", 2048), newKey(t, "big", 4096), newKey(t, "other", 2048)
	for name, plain := range shapes() {
		if strings.HasPrefix(name, "headers at") {
			continue // sbverify reads no such headers
		}
		t.Run(name, func(t *testing.T) {
			signed := sign(t, plain, one.Signer)
			both := sign(t, signed, two.Signer)
			for _, c := range []struct {
				file []byte
				by   pair
				want bool
			}{{signed, one, true}, {both, one, true}, {both, two, true}, {signed, other, false}, {plain, one, false}} {
				if ok, out := judge(t, "sbverify", "--cert", c.by.cert, write(t, c.file)); ok != c.want {
					t.Errorf("sbverify: %v, want %v:\n%s", ok, c.want, out)
				}
			}
		})
	}
}

func TestOsslsigncodeJudges(t *testing.T) {
	key := newKey(t, "one", 2048)
	signed := sign(t, program(128, 13), key.Signer)
	ok, out := judge(t, "osslsigncode", "verify", "-CAfile", key.cert, "-in", write(t, signed))
	digest, err := authenticode.Digest(diskimage.Bytes(signed))
	if err != nil {
		t.Fatal(err)
	}
	// It asks for times, which is nothing to firmware; digests are what it is asked for.
	for _, want := range []string{"Calculated message digest : " + strings.ToUpper(hexOf(digest[:])), "Current message digest    : " + strings.ToUpper(hexOf(digest[:]))} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in (%v):\n%s", want, ok, out)
		}
	}
	if strings.Contains(out, "MISMATCH") {
		t.Error(out)
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

// TestOthersSignatures has what sbsign and osslsigncode make verified by us.
func TestOthersSignatures(t *testing.T) {
	one, other := newKey(t, "one", 2048), newKey(t, "other", 2048)
	for name, plain := range map[string][]byte{"whole": program(128, 0), "to be padded": program(128, 13)} {
		for tool, args := range map[string][]string{
			"sbsign":       {"--key", one.key, "--cert", one.cert, "--output", "OUT", "IN"},
			"osslsigncode": {"sign", "-h", "sha256", "-key", one.key, "-certs", one.cert, "-in", "IN", "-out", "OUT"},
		} {
			t.Run(tool+" "+name, func(t *testing.T) {
				out := filepath.Join(t.TempDir(), "out")
				in := write(t, plain)
				args := append([]string(nil), args...)
				for i := range args {
					switch args[i] {
					case "IN":
						args[i] = in
					case "OUT":
						args[i] = out
					}
				}
				if ok, said := judge(t, tool, args...); !ok {
					t.Fatalf("%s", said)
				}
				b, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				if by, err := verify(b, one.Cert); err != nil || by != one.Cert {
					t.Errorf("by %v, %v", by, err)
				}
				if _, err := verify(b, other.Cert); err == nil {
					t.Error("trusted by another key")
				}
				both := sign(t, b, other.Signer)
				for _, c := range []pair{one, other} {
					if _, err := verify(both, c.Cert); err != nil {
						t.Error(err)
					}
					if ok, said := judge(t, "sbverify", "--cert", c.cert, write(t, both)); !ok {
						t.Errorf("sbverify: %s", said)
					}
				}
				bad := append([]byte(nil), b...)
				bad[1500] ^= 1
				if _, err := verify(bad, one.Cert); err == nil {
					t.Error("an altered byte was not seen")
				}
			})
		}
	}
}
