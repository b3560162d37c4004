package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// These tests install real packages from the distribution and boot what they
// built; `make boots` runs them.

// house is where a test keeps its programs and folders.
type house struct {
	t                 *testing.T
	imgbuild, imgpush string
	dir               string
	cache             string
}

// soak skips what CI has no time for.
func soak(t *testing.T) {
	t.Helper()
	if os.Getenv("IMGPIPE_SOAK") == "" {
		t.Skip("IMGPIPE_SOAK is not set: make soak has it")
	}
}

func newHouse(t *testing.T) *house {
	t.Helper()
	if os.Getenv("IMGPIPE_BOOTS") == "" {
		t.Skip("needs the network, QEMU and minutes: make boots")
	}
	h := &house{t: t, dir: t.TempDir()}
	if err := os.Chmod(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for d := h.dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) { // for another user
		_ = os.Chmod(d, 0o755)
	}
	h.run("go", "build", "-trimpath", "-o", h.dir+"/", "../imgbuild", "../imgpush")
	h.imgbuild, h.imgpush = filepath.Join(h.dir, "imgbuild"), filepath.Join(h.dir, "imgpush")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	h.cache = filepath.Join(cache, "imgpipe")
	return h
}

// run runs a program and returns its stdout; what it says goes to the log.
func (h *house) run(name string, args ...string) []byte {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), name, args...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	h.t.Logf("%s %s\n%s", filepath.Base(name), strings.Join(args, " "), talk.String())
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", name, err, out.String())
	}
	return out.Bytes()
}

// write makes a file in the test's folder and returns its path.
func (h *house) write(name, text string) string {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// recipes copies the example recipes into a folder of the test's own.
func (h *house) recipes(folder string) string {
	h.t.Helper()
	to := filepath.Join(h.dir, folder)
	if err := os.CopyFS(to, os.DirFS("../../recipes")); err != nil {
		h.t.Fatal(err)
	}
	return to
}

// digest reads the manifest digest from a build's --json.
func (h *house) digest(result []byte) string {
	h.t.Helper()
	var r struct{ Digest string }
	if err := json.Unmarshal(result, &r); err != nil || r.Digest == "" {
		h.t.Fatalf("no digest in %s: %v", result, err)
	}
	return r.Digest
}

// TestBootsFromTheArtifact builds the example and boots it as `imgbuild test` does.
func TestBootsFromTheArtifact(t *testing.T) {
	h := newHouse(t)
	ref := "oci:" + h.dir + "/images:server"
	h.run(h.imgbuild, "build", "../../recipes/debian-server.yaml", "-o", ref, "--cache", h.cache)
	junit := filepath.Join(h.dir, "junit.xml")
	h.run(h.imgbuild, "test", ref, "--timeout", "15m", "--junit", junit)
	b, err := os.ReadFile(junit)
	if err != nil || !bytes.Contains(b, []byte(`failures="0"`)) || !bytes.Contains(b, []byte("login:")) {
		t.Errorf("junit: %v\n%s", err, b)
	}
}

// TestBootsFromA4096ByteSectorDisk writes an image with large sectors onto a
// larger disk and lets the booted machine say what it found.
func TestBootsFromA4096ByteSectorDisk(t *testing.T) {
	h := newHouse(t)
	dir := h.recipes("recipes")
	recipe := h.write("recipes/large-sectors.yaml", "extends: debian-server.yaml\nname: large-sectors\ndisk:\n  sectorSize: 4096\n")
	ref := "oci:" + h.dir + "/images:large"
	h.run(h.imgbuild, "build", filepath.Join(dir, filepath.Base(recipe)), "-o", ref, "--cache", h.cache)
	disk := h.write("disk.raw", "")
	if err := os.Truncate(disk, 3<<30); err != nil {
		t.Fatal(err)
	}
	userData := h.write("user-data", `#cloud-config
runcmd:
  - echo "machine $(hostname) sectors of $(cat /sys/block/vda/queue/logical_block_size), root of $(($(findmnt -n -b -o SIZE /) >> 20)) MiB" >/dev/ttyS0
  - '[ $(($(findmnt -n -b -o SIZE /) >> 20)) -gt 2200 ] && echo grown-by-first-boot >/dev/ttyS0'
`)
	h.run(h.imgpush, "write", ref, disk, "--yes", "--insecure-no-signature", "--hostname", "large-1", "--user-data", userData)
	h.run(h.imgbuild, "test", "--disk", disk, "--sector-size", "4096", "--timeout", "15m", "--log", filepath.Join(h.dir, "console"),
		"--expect", "machine large-1 sectors of 4096", "--expect", "grown-by-first-boot", "--expect", "login:", "--reject", "Kernel panic", "--reject", "Failed to start")
}

// TestBootsReproduce builds the example again where everything that may differ
// does: folder, number of workers, cache, user, umask, locale, time zone, host
// name and resolv.conf. The manifest digest must not, whether or not evidence is
// attached, nor must the SBOM's.
func TestBootsReproduce(t *testing.T) {
	h := newHouse(t)
	if os.Getuid() != 0 {
		t.Skip("only root can build as somebody else")
	}
	build := func(folder, recipes, cache string, extra ...string) []string {
		return append([]string{h.imgbuild, "build", filepath.Join(recipes, "debian-server.yaml"), "--json",
			"-o", "oci:" + filepath.Join(h.dir, folder) + ":x", "--cache", cache}, extra...)
	}
	sboms := map[string]string{}
	command := func(args ...string) string {
		t.Helper()
		result := h.run(args[0], args[1:]...)
		if slices.Contains(args, "--sbom") {
			sboms[h.sbom(result)] = strings.Join(args, " ")
		}
		return h.digest(result)
	}
	want := command(build("a", "../../recipes", h.cache, "--sbom", "--provenance")...)
	t.Logf("as root: %s", want)
	h.judge(filepath.Join(h.dir, "a"), slices.Collect(maps.Keys(sboms))[0])

	other := h.recipes("elsewhere/recipes")
	if got := command(build("b", other, h.cache, "--workers", "1")...); got != want {
		t.Errorf("with one worker, from another folder: %s", got)
	}

	resolv := h.write("resolv.conf", "# another host's\n")
	if b, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		h.write("resolv.conf", "# another host's\n"+string(b))
	}
	script := h.write("as-another-host", "set -e\nhostname another-host.example\n[ ! -e /etc/resolv.conf ] || mount --bind "+resolv+
		" /etc/resolv.conf\numask 077\nexport TZ=Asia/Tokyo LC_ALL=C HOME=/nonexistent\nexec \"$@\"\n")
	cold := filepath.Join(h.dir, "cold-cache")
	args := append([]string{"unshare", "--uts", "--mount", "sh", script}, build("c", other, cold, "--workers", "2", "--sbom")...)
	if got := command(args...); got != want {
		t.Errorf("on another host, without cache: %s", got)
	}

	const name = "imgpipe-build"
	if _, err := user.Lookup(name); err != nil {
		h.run("useradd", "--create-home", name) // with subordinate ids
		t.Cleanup(func() { _ = exec.Command("userdel", "--remove", name).Run() })
	}
	home := filepath.Join(h.dir, "home")
	h.run("install", "-d", "-o", name, home)
	args = append([]string{"runuser", "-u", name, "--", "env", "HOME=" + home},
		build("home/d", other, filepath.Join(home, "cache"), "--sbom")...)
	if got := command(args...); got != want {
		t.Errorf("as an ordinary user: %s", got)
	}
	if len(sboms) != 1 {
		t.Errorf("one image has several SBOMs: %v", sboms)
	}
}

// TestBootsEvidence builds the example with a key, and again, and lets imgpush
// read what is then attested.
func TestBootsEvidence(t *testing.T) {
	h := newHouse(t)
	t.Setenv("IMGPIPE_KEY_PASSWORD", "secret")
	key := filepath.Join(h.dir, "ci")
	h.run(h.imgbuild, "keygen", key)
	ref := "oci:" + h.dir + "/images:server"
	build := []string{"build", "../../recipes/debian-server.yaml", "-o", ref, "--cache", h.cache, "--json", "--set", "console=tty0",
		"--sbom-files", "--provenance", "--builder-id", "https://ci.example.org/runner", "--key", key + ".key"}
	h.run(h.imgbuild, build...)
	index := filepath.Join(h.dir, "images/index.json")
	before, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	h.run(h.imgbuild, build...)
	if after, err := os.ReadFile(index); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the same build again changed index.json: %v\n%s\n%s", err, before, after)
	}
	for kind, of := range map[string][]string{
		"spdx":       {"spdxjson", `"SPDXRef-Unpackaged"`, `"./etc/motd"`},
		"provenance": {"slsaprovenance1", `"console":"tty0"`, `"debian-base.yaml"`, "https://ci.example.org/runner"},
	} {
		predicate := filepath.Join(h.dir, kind+".json")
		h.run(h.imgpush, "verify", ref, "--key", key+".pub", "--type", of[0], "--predicate", predicate)
		b, err := os.ReadFile(predicate)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range of[1:] {
			if !bytes.Contains(b, []byte(want)) {
				t.Errorf("%s: no %s", kind, want)
			}
		}
		h.judgeFile(kind, predicate)
	}
}

// sbom reads the digest of the SBOM's manifest from a build's --json.
func (h *house) sbom(result []byte) string {
	h.t.Helper()
	var r struct {
		Evidence []struct{ Type, Referrer string }
	}
	if err := json.Unmarshal(result, &r); err != nil || len(r.Evidence) == 0 || r.Evidence[0].Type != "https://spdx.dev/Document" {
		h.t.Fatalf("no SBOM in %s: %v", result, err)
	}
	return r.Evidence[0].Referrer
}

// judge lets judge-evidence read an SBOM of a layout.
func (h *house) judge(layout, manifest string) {
	h.t.Helper()
	blob := func(digest string) string {
		return filepath.Join(layout, "blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	b, err := os.ReadFile(blob(manifest))
	var m struct{ Layers []struct{ Digest string } }
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil || len(m.Layers) != 1 {
		h.t.Fatalf("%v: %s", err, b)
	}
	h.judgeFile("spdx", blob(m.Layers[0].Digest))
}

// judgeFile lets judge-evidence, if .ci/judges has built it, read a document.
func (h *house) judgeFile(kind, name string) {
	h.t.Helper()
	program, err := filepath.Abs("../../build/judges/judge-evidence")
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		h.t.Log("not judged: ", err)
		return
	}
	h.t.Logf("%s", h.run(program, kind, name))
}
