package oci_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func environmentFiles() map[string]diskimage.Disk {
	return map[string]diskimage.Disk{
		oci.KernelTitle:    diskimage.Bytes([]byte("MZ the kernel")),
		oci.InitramfsTitle: diskimage.Bytes(bytes.Repeat([]byte("initramfs "), 20_000)),
		oci.UKITitle:       diskimage.Bytes([]byte("MZ both")),
	}
}

func environmentConfig() oci.EnvironmentConfig {
	return oci.EnvironmentConfig{OS: "linux", Architecture: "amd64", Name: "environment", Version: "1", Epoch: time.Unix(1_790_000_000, 0),
		Kernel: "6.1.0-1-amd64", Cmdline: "console=ttyS0", Agent: diskimage.DigestOf([]byte("agent"))}
}

// signedEnvironment is one for Secure Boot: with a local.efi.
func signedEnvironment() (map[string]diskimage.Disk, oci.EnvironmentConfig) {
	files, config := environmentFiles(), environmentConfig()
	files[oci.LocalTitle], config.SecureBoot = diskimage.Bytes([]byte("MZ local")), true
	return files, config
}

func TestSignedEnvironmentComesBack(t *testing.T) {
	dir, err := oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	files, config := signedEnvironment()
	desc, err := oci.PackEnvironment(t.Context(), files, config, dir)
	if err != nil {
		t.Fatal(err)
	}
	e, err := oci.OpenEnvironment(t.Context(), dir, desc)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(e.Files()); n != 4 {
		t.Errorf("%d files", n)
	}
	if b, err := e.ReadFile(t.Context(), oci.LocalTitle); err != nil || string(b) != "MZ local" {
		t.Errorf("local.efi: %q, %v", b, err)
	}
}

// packedEnvironment returns a layout with an environment under the tag "e".
func packedEnvironment(t *testing.T) (*oci.Dir, v1.Descriptor) {
	t.Helper()
	dir, err := oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	desc, err := oci.PackEnvironment(t.Context(), environmentFiles(), environmentConfig(), dir)
	if err == nil {
		err = dir.Publish(t.Context(), desc, "e")
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, desc
}

func TestEnvironmentComesBack(t *testing.T) {
	dir, desc := packedEnvironment(t)
	pin, err := oci.Resolve(t.Context(), dir, oci.Ref{Tag: "e"})
	if err != nil {
		t.Fatal(err)
	}
	e, err := oci.OpenEnvironment(t.Context(), pin.Repository(), pin.Image)
	if err != nil {
		t.Fatal(err)
	}
	if e.Digest().String() != desc.Digest.String() || e.Platform() != "linux/amd64" || e.Config().Kernel != "6.1.0-1-amd64" {
		t.Errorf("%v %v %+v", e.Digest(), e.Platform(), e.Config())
	}
	for i, f := range e.Files() {
		want := environmentFiles()[f.Title]
		b, err := e.ReadFile(t.Context(), f.Title)
		if err != nil || int64(len(b)) != f.Size || f.Digest != diskimage.DigestOf(b) || want.Size() != f.Size {
			t.Errorf("file %d, %s: %d bytes, want %d: %v", i, f.Title, len(b), want.Size(), err)
		}
	}
	if _, err := e.Open(t.Context(), "vmlinux"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := e.VerifyBlobs(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := dir.Open(t.Context(), oci.Ref{Tag: "e"}); err == nil || !strings.Contains(err.Error(), oci.EnvironmentType) {
		t.Errorf("opened as a disk: %v", err)
	}
}

func TestEnvironmentIsTheSameTwice(t *testing.T) {
	_, a := packedEnvironment(t)
	_, b := packedEnvironment(t)
	if a.Digest != b.Digest {
		t.Errorf("%v and %v", a.Digest, b.Digest)
	}
}

// TestDamagedEnvironmentIsRefused: one byte of each blob altered, and each cut by
// one: nobody reads to the end of it.
func TestDamagedEnvironmentIsRefused(t *testing.T) {
	dir, desc := packedEnvironment(t)
	e, err := oci.OpenEnvironment(t.Context(), dir, desc)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range e.Files() {
		path := filepath.Join(dir.Path(), "blobs", "sha256", f.Digest.Hex())
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		altered := bytes.Clone(whole)
		altered[len(altered)/2] ^= 1
		for name, b := range map[string][]byte{"altered": altered, "cut": whole[:len(whole)-1]} {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := e.ReadFile(t.Context(), f.Title); err == nil {
				t.Errorf("%s, %s: read", f.Title, name)
			}
			if err := e.VerifyBlobs(t.Context()); err == nil {
				t.Errorf("%s, %s: verified", f.Title, name)
			}
		}
		if err := os.WriteFile(path, whole, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEnvironmentRefusals(t *testing.T) {
	dir, err := oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for want, change := range map[string]func(map[string]diskimage.Disk, *oci.EnvironmentConfig){
		"2 files, want 3":          func(f map[string]diskimage.Disk, _ *oci.EnvironmentConfig) { delete(f, oci.UKITitle) },
		"vmlinuz: missing, empty":  func(f map[string]diskimage.Disk, _ *oci.EnvironmentConfig) { f[oci.KernelTitle] = diskimage.Bytes(nil) },
		"name, version and kernel": func(_ map[string]diskimage.Disk, c *oci.EnvironmentConfig) { c.Kernel = "" },
		"3 files, want 4":          func(_ map[string]diskimage.Disk, c *oci.EnvironmentConfig) { c.SecureBoot = true },
		"4 files, want 3":          func(f map[string]diskimage.Disk, _ *oci.EnvironmentConfig) { f[oci.LocalTitle] = f[oci.UKITitle] },
		"local.efi: missing, empty or too large": func(f map[string]diskimage.Disk, c *oci.EnvironmentConfig) {
			f[oci.LocalTitle], c.SecureBoot = diskimage.Bytes(make([]byte, oci.MaxLocal+1)), true
		},
		"not in the years 1970":      func(_ map[string]diskimage.Disk, c *oci.EnvironmentConfig) { c.Epoch = time.Unix(-1, 0) },
		"initramfs.zst: unexpected ": func(f map[string]diskimage.Disk, _ *oci.EnvironmentConfig) { f[oci.InitramfsTitle] = shortDisk{} },
	} {
		files, config := environmentFiles(), environmentConfig()
		change(files, &config)
		if _, err := oci.PackEnvironment(t.Context(), files, config, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// shortDisk has fewer bytes than it says.
type shortDisk struct{}

func (shortDisk) Size() int64                             { return 10 }
func (shortDisk) Extents() []diskimage.Extent             { return []diskimage.Extent{{Len: 10}} }
func (shortDisk) ReadAt(p []byte, off int64) (int, error) { return 0, io.EOF }

// FuzzEnvironmentManifest has any manifest refused, or its files told.
func FuzzEnvironmentManifest(f *testing.F) {
	dir, err := oci.CreateDir(context.Background(), filepath.Join(f.TempDir(), "store"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { dir.Close() })
	desc, err := oci.PackEnvironment(context.Background(), environmentFiles(), environmentConfig(), dir)
	if err != nil {
		f.Fatal(err)
	}
	digest, err := diskimage.ParseDigest(desc.Digest.String())
	if err != nil {
		f.Fatal(err)
	}
	b, err := dir.ReadBlob(digest, desc.Size, oci.MaxManifest)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	files, config := signedEnvironment()
	if desc, err = oci.PackEnvironment(context.Background(), files, config, dir); err != nil {
		f.Fatal(err)
	}
	if digest, err = diskimage.ParseDigest(desc.Digest.String()); err != nil {
		f.Fatal(err)
	}
	if b, err = dir.ReadBlob(digest, desc.Size, oci.MaxManifest); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"schemaVersion":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		desc, err := dir.PushManifest(t.Context(), "", desc.MediaType, b)
		if err != nil {
			return
		}
		e, err := oci.OpenEnvironment(t.Context(), dir, desc)
		if err != nil {
			return
		}
		if n := len(e.Files()); n != 3 && n != 4 {
			t.Errorf("%d files", n)
		}
	})
}
