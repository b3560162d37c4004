package packages

import (
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func TestInstallFindsTheManager(t *testing.T) {
	for program, want := range map[string]string{
		"/usr/bin/apt-get": "apt-fedora44-amd64", "/usr/bin/dnf": "dnf-fedora44-amd64", "/usr/bin/dnf5": "dnf5-fedora44-amd64",
		"/usr/bin/microdnf": "microdnf-fedora44-amd64", "/usr/bin/zypper": "zypper-fedora44-amd64", "/sbin/apk": "apk-fedora44-amd64",
		"/usr/bin/pacman": "pacman-fedora44-amd64", "/usr/bin/other": "",
	} {
		tr := tree.New()
		for p, text := range map[string]string{program: "x", "/usr/lib/os-release": "NAME=\"F L\"\nID=fedora\nVERSION_ID=\"44\"\n"} {
			if err := tr.Put(p, &tree.Inode{Data: diskimage.Bytes([]byte(text))}); err != nil {
				t.Fatal(err)
			}
		}
		in, err := Install(tr, []string{"a", "it's; rm -rf /"}, "amd64")
		switch {
		case want == "" && err != ErrNoManager:
			t.Errorf("%s: %v", program, err)
		case want == "":
		case err != nil || in.Name != want || !strings.HasPrefix(in.Script, `set -- 'a' 'it'\''s; rm -rf /'`+"\n"):
			t.Errorf("%s: %+v, %v", program, in, err)
		}
	}
}

func TestUnknownPackages(t *testing.T) {
	for output, want := range map[string][]string{
		"Reading package lists...\nE: Unable to locate package nosuch\nE: Unable to locate package other": {"nosuch", "other"},
		"E: Version '9' for 'bash' was not found":                                                         {"bash"},
		"E: Package 'x' has no installation candidate":                                                    {"x"},
		"Last metadata\nNo match for argument: nosuch\nError: Unable to find":                             {"nosuch"},
		"ERROR: unable to select packages:\n  nosuch (no such package):\n    required by: world[nosuch]":  {"nosuch"},
		"error: target not found: nosuch":                                                                 {"nosuch"},
		"'nosuch' not found in package names. Trying capabilities.\n":                                     {"nosuch"},
		"error: No package matches 'nosuch'":                                                              {"nosuch"},
		"E: Unmet dependencies":                                                                           nil,
	} {
		if got := Unknown(output); !slices.Equal(got, want) {
			t.Errorf("%q: %q", output, got)
		}
	}
}
