package boot_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode/authenticodetest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func stranger(t *testing.T) authenticode.Signer {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stranger"}, NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authenticode.Signer{Key: k, Cert: c}
}

// TestFirmwareSecureBoot is the judge of authenticode: under Secure Boot
// OVMF starts a UKI signed by an enrolled key, whoever else signed it too, and
// none that is unsigned, signed by another key only, or altered by a bit; and
// the kernel then takes modules signed for it, and no others.
func TestFirmwareSecureBoot(t *testing.T) {
	g, enrolled := guest(t), authenticodetest.Snakeoil(t)
	d, err := g.uki(t, "marker=secure", initramfs(t, g.root, g.version)).Build()
	if err != nil {
		t.Fatal(err)
	}
	unsigned := read(t, d)
	sign := func(b []byte, s authenticode.Signer) []byte {
		t.Helper()
		out, err := authenticode.SignBytes(b, s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	signed := sign(unsigned, enrolled)
	altered := slices.Clone(signed)
	altered[bytes.Index(altered, []byte("marker=secure"))+len("marker=secur")] ^= 1
	for _, c := range []struct {
		name  string
		uki   []byte
		boots bool
	}{
		{"signed", signed, true},
		{"signed by two", sign(sign(unsigned, stranger(t)), enrolled), true},
		{"unsigned", unsigned, false},
		{"altered", altered, false},
		{"signed by another key", sign(unsigned, stranger(t)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			const refused = ": Access Denied"
			console := runSecure(t, g.qemu, espDisk(t, c.uki), "INIT DONE", refused)
			boots := strings.Contains(console, "INIT DONE")
			if boots != c.boots || boots == strings.Contains(console, refused) {
				t.Fatalf("it boots: %v, want %v:\n%s", boots, c.boots, tail(console))
			}
			if !c.boots {
				return
			}
			for _, want := range []string{"Secure boot enabled", "marker=secure", "LOCKDOWN none [integrity]", "UNSIGNED MODULE key was rejected", "FILE 1 "} {
				if !strings.Contains(console, want) {
					t.Errorf("the guest does not say %q", want)
				}
			}
			if strings.Contains(console, "NOT LOADED") {
				t.Error("modules signed for the kernel were not loaded")
			}
			if t.Failed() {
				t.Log(tail(console))
			}
		})
	}
}

// espDisk writes a disk of one EFI system partition with the program on it.
func espDisk(t *testing.T, program []byte) string {
	t.Helper()
	tr := tree.New()
	if err := tr.Put("/EFI/BOOT/BOOTX64.EFI", &tree.Inode{Data: diskimage.Bytes(program), MTime: epoch}); err != nil {
		t.Fatal(err)
	}
	const size = 128 * mib
	esp, err := fat.New(tr, fat.Options{Size: size, SectorSize: 512, Label: "ESP", Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("boot", "secure"), SectorSize: 512, DiskSize: size + 2*mib, Partitions: []diskimage.Partition{
		{Name: "esp", Type: diskimage.TypeESP, GUID: diskimage.DeriveGUID("boot", "esp"), Extent: diskimage.Extent{Off: mib, Len: size}}}}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	d, err := diskimage.Join(table.DiskSize, diskimage.Part{Disk: diskimage.Bytes(primary)}, diskimage.Part{Off: mib, Disk: esp},
		diskimage.Part{Off: table.DiskSize - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, io.NewSectionReader(d, 0, d.Size())); err != nil {
		t.Fatal(err)
	}
	return file
}

// until ends a guest when its console has said one of some texts.
type until struct {
	said  bytes.Buffer // not embedded: it would be read into past Write
	texts []string
	end   func()
}

func (u *until) Write(p []byte) (int, error) {
	n, err := u.said.Write(p)
	for _, s := range u.texts {
		if bytes.Contains(u.said.Bytes(), []byte(s)) {
			u.end()
		}
	}
	return n, err
}

// runSecure boots a disk under Secure Boot until its console says one of some
// texts, and returns what it said.
func runSecure(t *testing.T, qemu, disk string, texts ...string) string {
	t.Helper()
	b, err := os.ReadFile(authenticodetest.Vars)
	if err != nil {
		t.Skipf("ovmf is not installed: %v", err)
	}
	vars := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(vars, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), qemuBudget)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-machine", "q35,smm=on", "-accel", "tcg", "-m", "768", "-display", "none", "-no-reboot", "-nic", "none",
		"-serial", "stdio", "-monitor", "none", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,readonly=on,file="+authenticodetest.Code, "-drive", "if=pflash,format=raw,file="+vars,
		"-drive", "if=none,id=disk,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=disk")
	out := &until{texts: texts, end: cancel}
	cmd.Stdout, cmd.Stderr = out, out
	start := time.Now()
	_ = cmd.Run() // ended by us, or by itself
	t.Logf("qemu ran for %v", time.Since(start).Round(time.Second))
	return out.said.String()
}
