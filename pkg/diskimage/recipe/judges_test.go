package recipe

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run returns what a program prints, or skips the test where it is missing.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%v", err)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestKeysOfSSHKeygenAreTaken(t *testing.T) {
	for kind, bits := range map[string]string{"ed25519": "256", "rsa": "2048", "ecdsa": "521"} {
		path := filepath.Join(t.TempDir(), "key")
		run(t, "ssh-keygen", "-q", "-t", kind, "-b", bits, "-N", "", "-C", "a comment", "-f", path)
		key, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		line := strings.TrimSpace(string(key))
		for _, l := range []string{line, `from="10.0.0.0/8",command="echo \"ssh-rsa x\"" ` + line} {
			if problem := checkKey(l); problem != "" {
				t.Errorf("%s: %s", l, problem)
			}
		}
		words := strings.Fields(line)
		cut := words[0] + " " + words[1][:len(words[1])/2]
		if kind == "ed25519" && checkKey(cut) == "" {
			t.Errorf("%s: takes a key cut short", cut)
		}
	}
}

func TestHashesOfCryptAreTaken(t *testing.T) {
	hashes := []string{"!", "*", "!$6$abcdefgh$" + strings.Repeat("x", 86),
		"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7", "$2b$12$" + strings.Repeat("a", 53)}
	for _, algorithm := range []string{"-1", "-5", "-6"} {
		hashes = append(hashes, run(t, "openssl", "passwd", algorithm, "secret"))
	}
	for _, h := range hashes {
		if problem := checkHash(h); problem != "" {
			t.Errorf("%s: %s", h, problem)
		}
	}
}

// taken checks that a shape takes each of many names; it skips if there are few.
func taken(t *testing.T, s *scalarShape, names []string) {
	t.Helper()
	if len(names) < 10 {
		t.Skipf("%d names on this machine", len(names))
	}
	for _, name := range names {
		if _, problem := s.read(&node{class: text, text: name}); problem != "" {
			t.Errorf("%s", problem)
		}
	}
}

func TestTimezonesOfTheSystemAreTaken(t *testing.T) {
	const dir = "/usr/share/zoneinfo"
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.Contains(path, ".") {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	taken(t, recipeShape.field("timezone").shape.value, names)
}

func TestUnitsOfTheSystemAreTaken(t *testing.T) {
	paths, err := filepath.Glob("/lib/systemd/system/*.*")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range paths {
		if ext := filepath.Ext(path); ext != ".d" && ext != ".wants" && ext != ".requires" {
			names = append(names, filepath.Base(path))
		}
	}
	taken(t, unitShape, names)
}

func TestLocalesOfTheSystemAreTaken(t *testing.T) {
	data, err := os.ReadFile("/usr/share/i18n/SUPPORTED")
	if err != nil {
		t.Skip(err)
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		if name, _, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(name, "#") {
			names = append(names, name)
		}
	}
	taken(t, recipeShape.field("locale").shape.value, names)
}
