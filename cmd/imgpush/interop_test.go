package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
)

// These tests let other tools judge what is stored: `make judges` installs them
// into build/judges and runs the tests.

// lab is a folder with the program, a layout, and two registries.
type lab struct {
	t       *testing.T
	dir     string
	imgpush string
	// registries by name: ours, and distribution's.
	registries map[string]string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("IMGPIPE_JUDGES") == "" {
		t.Skip("needs other tools: make judges")
	}
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Join(repo, "build", "judges")+":"+os.Getenv("PATH"))
	l := &lab{t: t, dir: t.TempDir(), registries: map[string]string{}}
	l.imgpush = filepath.Join(l.dir, "imgpush")
	l.run("go", "build", "-trimpath", "-o", l.imgpush, ".")
	t.Setenv("HOME", l.dir) // no configuration of whoever runs the test
	l.registries["ours"] = l.serve()
	l.registries["distribution"] = ocitest.Distribution(t)
	return l
}

// run runs a program and returns what it prints on stdout.
func (l *lab) run(name string, args ...string) string {
	l.t.Helper()
	out, err := l.try(name, args...)
	if err != nil {
		l.t.Fatalf("%s %s: %v", filepath.Base(name), strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out)
}

func (l *lab) try(name string, args ...string) (string, error) {
	cmd := exec.CommandContext(l.t.Context(), name, args...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w\n%s%s", err, out.String(), talk.String())
	}
	return out.String(), nil
}

// shell runs a line of sh in the lab's folder.
func (l *lab) shell(line string) string {
	l.t.Helper()
	cmd := exec.CommandContext(l.t.Context(), "sh", "-euc", line)
	cmd.Dir = l.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// start runs a server until the test ends.
func (l *lab) start(cmd *exec.Cmd) {
	l.t.Helper()
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
}

// serve starts the embedded registry, and returns HOST:PORT.
func (l *lab) serve(flags ...string) string {
	l.t.Helper()
	if err := os.MkdirAll(filepath.Join(l.dir, "ours"), 0o755); err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command(l.imgpush, append([]string{"registry", filepath.Join(l.dir, "ours"), "--listen", "127.0.0.1:0"}, flags...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	l.start(cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		l.t.Fatalf("imgpush registry: %v", err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	_, host, ok := strings.Cut(strings.TrimSpace(line), "://")
	if !ok {
		l.t.Fatalf("imgpush registry said %q, want its URL", line)
	}
	return strings.TrimRight(host, "/")
}

// sparseDisk is zeros but for a few extents.
type sparseDisk struct {
	size    int64
	extents []diskimage.Extent
	data    []byte
}

func (d sparseDisk) Size() int64                 { return d.size }
func (d sparseDisk) Extents() []diskimage.Extent { return d.extents }
func (d sparseDisk) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for _, e := range d.extents {
		for i := max(off, e.Off); i < min(off+int64(len(p)), e.End()); i++ {
			p[i-off] = d.data[i%int64(len(d.data))]
		}
	}
	return len(p), nil
}

// image packs a disk of 13 segments, ten of them equal, and signs of life in the
// others, and returns its digest.
func (l *lab) image(ref, arch string, seed uint64) diskimage.Digest {
	l.t.Helper()
	ctx := context.Background()
	r, err := oci.ParseRef(ref)
	if err != nil {
		l.t.Fatal(err)
	}
	dir, err := oci.CreateDir(ctx, r.Dir)
	if err != nil {
		l.t.Fatal(err)
	}
	defer dir.Close()
	rnd := rand.New(rand.NewPCG(seed, 1))
	noise := make([]byte, 1<<20+37)
	for i := range noise {
		noise[i] = byte(rnd.Uint32()) & 0x3f
	}
	const mib = 1 << 20
	disk := sparseDisk{size: 13 * 64 * mib, data: noise,
		extents: []diskimage.Extent{{Off: 0, Len: 5 * mib}, {Off: 64 * mib, Len: mib}, {Off: 13*64*mib - mib, Len: mib}}}
	config := oci.Config{OS: "linux", Architecture: arch, Name: "judged", Version: "1", Epoch: time.Unix(1793491200, 0).UTC()}
	packed, err := oci.Pack(ctx, disk, config, dir, oci.PackOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := dir.Publish(ctx, packed.Descriptor, r.Tag); err != nil {
		l.t.Fatal(err)
	}
	equal := map[diskimage.Digest]int{}
	for _, s := range packed.Index.Segments {
		equal[s.Digest]++
	}
	if len(packed.Index.Segments) != 13 || len(equal) != 4 {
		l.t.Fatalf("%d segments, distinct %d, want 13 and 4", len(packed.Index.Segments), len(equal))
	}
	return packed.Digest()
}

// opened checks that a reference to a layout is the image with all its blobs.
func (l *lab) opened(ref string, want diskimage.Digest) {
	l.t.Helper()
	r, err := oci.ParseRef(ref)
	if err != nil {
		l.t.Fatal(err)
	}
	a, err := oci.Open(context.Background(), r)
	if err != nil {
		l.t.Errorf("%s: %v", ref, err)
		return
	}
	defer a.Close()
	if a.Digest() != want {
		l.t.Errorf("%s is %v, want %v", ref, a.Digest(), want)
	}
	if err := a.VerifyBlobs(context.Background()); err != nil {
		l.t.Errorf("%s: %v", ref, err)
	}
}

// TestJudgesToolsKeepTheDigest moves an image with ten equal segments from a
// layout through both registries into a layout, by every tool.
func TestJudgesToolsKeepTheDigest(t *testing.T) {
	l := newLab(t)
	src := "oci:" + l.dir + "/src:v1"
	want := l.image(src, "amd64", 1)
	for name, host := range l.registries {
		for tool, steps := range map[string][][]string{
			"imgpush": {{l.imgpush, "push", src, "REF"}, {l.imgpush, "copy", "REF", "REF-2"}, {l.imgpush, "copy", "REF-2", "OUT"}},
			"crane":   {{"crane", "push", "--insecure", l.dir + "/src", "REF"}, {"crane", "copy", "--insecure", "REF", "REF-2"}, {"crane", "pull", "--insecure", "--format=oci", "--annotate-ref", "REF-2", "OUTDIR"}},
			"skopeo": {{"skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", src, "docker://REF"},
				{"skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://REF", "docker://REF-2"},
				{"skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false", "docker://REF-2", "OUT"}},
			"oras": {{"oras", "copy", src, "REF"}, {"oras", "copy", "REF", "REF-2"}, {"oras", "copy", "REF-2", "OUT"}},
		} {
			t.Run(tool+" "+name, func(t *testing.T) {
				l := &lab{t: t, dir: l.dir, imgpush: l.imgpush}
				outDir := fmt.Sprintf("%s/out-%s-%s", l.dir, tool, name)
				if err := os.MkdirAll(outDir, 0o755); err != nil {
					t.Fatal(err)
				}
				if tool == "imgpush" || tool == "oras" || tool == "skopeo" {
					os.Remove(outDir)
				}
				words := strings.NewReplacer("REF", host+"/"+tool+"/judged:v1", "OUTDIR", outDir, "OUT", "oci:"+outDir+":v1")
				for _, step := range steps {
					for i := range step {
						step[i] = words.Replace(step[i])
					}
					l.run(step[0], step[1:]...)
				}
				if got := l.run("crane", "digest", "--insecure", host+"/"+tool+"/judged:v1-2"); got != want.String() {
					t.Errorf("in the registry it is %s, want %v", got, want)
				}
				l.opened("oci:"+outDir+"@"+want.String(), want)
			})
		}
	}
}

// TestJudgesRestoreTheDisk gets the raw disk back without our programs.
func TestJudgesRestoreTheDisk(t *testing.T) {
	l := newLab(t)
	src := "oci:" + l.dir + "/src:v1"
	l.image(src, "amd64", 2)
	ref, err := oci.ParseRef(src)
	if err != nil {
		t.Fatal(err)
	}
	a, err := oci.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(a.Disk(t.Context()), 0, a.Index().DiskSize)); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%x", h.Sum(nil))
	for name, host := range l.registries {
		r := host + "/restore/judged:v1"
		l.run(l.imgpush, "push", src, r)
		for how, line := range map[string]string{
			"oras pull, cat, zstd":   "rm -rf pulled && oras pull " + r + " pulled && cat pulled/disk.raw.zst.* | zstd -q -d --sparse -f -o disk.raw",
			"crane blob, zstd":       "crane manifest " + r + ` | jq -r '.layers[] | select(.mediaType | endswith("segment.v1+zstd")).digest' | while read -r d; do crane blob ` + host + `/restore/judged@$d; done | zstd -q -d -f -o disk.raw`,
			"skopeo copy dir:, zstd": "rm -rf blobs && skopeo copy -q --src-tls-verify=false docker://" + r + ` dir:blobs && jq -r '.layers[] | select(.mediaType | endswith("segment.v1+zstd")) | .digest[7:]' blobs/manifest.json | while read -r d; do cat "blobs/$d"; done | zstd -q -d -f -o disk.raw`,
		} {
			l.shell(line)
			if got := strings.Fields(l.shell("sha256sum disk.raw"))[0]; got != want {
				t.Errorf("%s from %s: the disk is %s, want %s", how, name, got, want)
			}
		}
	}
}

// TestJudgesSeeAnIndexOfPlatforms joins two images under one tag.
func TestJudgesSeeAnIndexOfPlatforms(t *testing.T) {
	l := newLab(t)
	amd := l.image("oci:"+l.dir+"/src:amd", "amd64", 3)
	arm := l.image("oci:"+l.dir+"/src:arm", "arm64", 4)
	for name, host := range l.registries {
		ref := host + "/joined:v1"
		l.run(l.imgpush, "push", "oci:"+l.dir+"/src:amd", ref)
		l.run(l.imgpush, "push", "--join", "oci:"+l.dir+"/src:arm", ref)
		var x struct{ Manifests []struct{ Digest string } }
		if err := json.Unmarshal([]byte(l.run("crane", "manifest", "--insecure", ref)), &x); err != nil || len(x.Manifests) != 2 {
			t.Errorf("%s: index %+v, %v", name, x, err)
		}
		for platform, want := range map[string]diskimage.Digest{"linux/amd64": amd, "linux/arm64": arm} {
			if got := l.run("crane", "digest", "--insecure", "--platform", platform, ref); got != want.String() {
				t.Errorf("%s: crane finds %s for %s, want %v", name, got, platform, want)
			}
		}
		out := "oci:" + l.dir + "/" + name + "-index:v1"
		l.run("skopeo", "copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false", "docker://"+ref, out)
		l.run(l.imgpush, "push", "--platform", "linux/arm64", out, "oci:"+l.dir+"/"+name+"-arm:v1")
		l.opened("oci:"+l.dir+"/"+name+"-arm:v1", arm)
	}
}
