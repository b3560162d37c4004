package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

func TestRecipesNameTheClassesThereAre(t *testing.T) {
	if s, n := initramfs.StorageClasses(), initramfs.NetworkClasses(); !slices.Equal(s, recipe.StorageClasses) || !slices.Equal(n, recipe.NetworkClasses) {
		t.Errorf("there are %v and %v; recipes name %v and %v", s, n, recipe.StorageClasses, recipe.NetworkClasses)
	}
}

// program is the start of a static, or a dynamic, program of amd64.
func program(dynamic bool) []byte {
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Phentsize: 56, Phoff: 64, Phnum: 1}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	p := elf.Prog64{Type: uint32(elf.PT_LOAD)}
	if dynamic {
		p.Type = uint32(elf.PT_INTERP)
	}
	var b bytes.Buffer
	for _, v := range []any{h, p} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err) // memory
		}
	}
	return b.Bytes()
}

const environmentText = `version: 1
kind: Environment
name: env
release: "1"
arch: amd64
epoch: 2026-11-01T00:00:00Z
base: {debian: {suite: bookworm}}
packages: [good]
modules: {extra: [thing]}
agent: agent
jobs: insecure
`

// environmentRecipe loads text from a folder with an agent.
func environmentRecipe(t *testing.T, text string, agent []byte) *recipe.Recipe {
	t.Helper()
	dir := t.TempDir()
	for name, b := range map[string][]byte{"r.yaml": []byte(text), "agent": agent} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := recipe.Load(filepath.Join(dir, "r.yaml"), recipe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// kernelPackages adds a module to the distribution of the other tests.
func kernelPackages(t *testing.T) Options {
	o := options(t)
	debian := addModule(t, o.debian)
	o.debian = func(ctx context.Context, req packages.Request, po packages.Options) (*packages.Result, error) {
		if req.Debian.Variant != packages.VariantExtract {
			t.Errorf("variant %q", req.Debian.Variant)
		}
		return debian(ctx, req, po)
	}
	return o
}

// addModule puts a kernel module into the trees of a package manager.
func addModule(t *testing.T, debian manager) manager {
	t.Helper()
	m, err := os.ReadFile("testdata/thing.ko")
	if err != nil {
		t.Fatal(err)
	}
	return addFiles(t, debian, map[string]string{"/usr/lib/modules/6.1.0-1/kernel/thing.ko": string(m)})
}

func TestEnvironmentIsTheSameTwice(t *testing.T) {
	var digests [2]diskimage.Digest
	for i := range digests {
		e, err := BuildEnvironment(t.Context(), environmentRecipe(t, environmentText, program(false)), "", kernelPackages(t))
		if err != nil {
			t.Fatal(err)
		}
		uki := make([]byte, e.UKI.Size())
		if _, err := e.UKI.ReadAt(uki, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(uki, e.Initramfs) {
			t.Error("the UKI does not hold the initramfs")
		}
		digests[i] = diskimage.DigestOf(uki)
		if e.Config.Kernel != "6.1.0-1" || !slices.Equal(e.Record.Modules, []string{"thing"}) || e.Record.Agent != diskimage.DigestOf(program(false)) ||
			len(e.Record.Packages) != 1 || e.Config.Floor != 1793491200 {
			t.Errorf("%+v\n%+v", e.Config, e.Record)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("%v and %v", digests[0], digests[1])
	}
}

func TestEnvironmentRefusals(t *testing.T) {
	for _, c := range []struct {
		old, new string
		agent    []byte
		want     string
	}{
		{"", "", program(true), "dynamically linked"},
		{"", "", []byte("#!/bin/sh\n"), "not a program of Linux"},
		{"arch: amd64", "arch: arm64", program(false), "for EM_X86_64, the recipe is for arm64"},
		{"[thing]", "[thing, nothing]", program(false), "r.yaml:9:26: modules.extra[1]: kernel 6.1.0-1 has no module nothing"},
		{"jobs:", "firmware: [thing]\njobs:", program(false), `firmware[0]: no firmware for "thing"`},
		{"jobs: insecure", "secureBoot: {key: agent, cert: agent}", program(false), "r.yaml:11:19: secureBoot.key:"},
		{"jobs: insecure", "trust: {keys: [agent]}", program(false), "one PEM block PUBLIC KEY"},
	} {
		_, err := BuildEnvironment(t.Context(), environmentRecipe(t, strings.Replace(environmentText, c.old, c.new, 1), c.agent), "", kernelPackages(t))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

// TestEnvironmentIsSigned: UKI and local.efi, whoever names the key.
func TestEnvironmentIsSigned(t *testing.T) {
	key, cert := efiKey(t)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	r := environmentRecipe(t, strings.Replace(environmentText, "extra: [thing]", "extra: []", 1), program(false))
	named := environmentRecipe(t, strings.Replace(environmentText, "extra: [thing]", "extra: []", 1)+"secureBoot: {key: agent, cert: agent}\n", program(false))
	dir := t.TempDir()
	for name, b := range map[string]*pem.Block{"key": {Type: "PRIVATE KEY", Bytes: pkcs8}, "cert": {Type: "CERTIFICATE", Bytes: cert.Raw}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	named.SecureBoot = recipe.SecureBoot{Key: filepath.Join(dir, "key"), Cert: filepath.Join(dir, "cert")}
	flags := kernelPackages(t)
	flags.SecureBoot = &authenticode.Signer{Key: key, Cert: cert}
	for name, c := range map[string]struct {
		r *recipe.Recipe
		o Options
	}{"by the recipe": {named, kernelPackages(t)}, "by the options": {r, flags}} {
		e, err := BuildEnvironment(t.Context(), c.r, "", c.o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for what, d := range map[string]diskimage.Disk{"UKI": e.UKI, "local.efi": diskimage.Bytes(e.Local)} {
			if _, err := authenticode.Verify(d, []*x509.Certificate{cert}); err != nil {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		if want := fmt.Sprintf("%x", sha256.Sum256(cert.Raw)); e.Record.SecureBoot != want {
			t.Errorf("%s: record says %q, want %s", name, e.Record.SecureBoot, want)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	if e, err := BuildEnvironment(t.Context(), r, "", kernelPackages(t)); err != nil || e.Local != nil || e.Record.SecureBoot != "" {
		t.Errorf("unsigned: %v, %+v", err, e)
	}
	if _, err := BuildEnvironment(t.Context(), named, "", flags); err == nil || !strings.Contains(err.Error(), "secureBoot: another key") {
		t.Errorf("named twice: %v", err)
	}
	if _, err := BuildEnvironment(t.Context(), environmentRecipe(t, environmentText, program(false)), "", flags); err == nil || !strings.Contains(err.Error(), "thing.ko") {
		t.Errorf("a module that is not signed: %v", err)
	}
}

// TestUnsignedModulesAreRefusedUnderSecureBoot: the kernel would not load them.
func TestUnsignedModulesAreRefusedUnderSecureBoot(t *testing.T) {
	if err := signed([]*initramfs.Module{{Path: "/a.ko", Signed: true}, {Path: "/b.ko"}}); err == nil || !strings.Contains(err.Error(), "/b.ko") || strings.Contains(err.Error(), "/a.ko") {
		t.Errorf("got %v", err)
	}
}
