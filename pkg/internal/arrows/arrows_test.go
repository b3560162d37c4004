// Package arrows holds the test that keeps ARCHITECTURE.md's arrows true.
package arrows

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/imgpipe/imgpipe/"

// rules says what a package may not link, directly or not. A trailing "/..."
// means the package and everything below it. allow lifts a ban for one package.
var rules = []struct {
	pkg    string
	banned []string
	allow  []string
	why    string
}{
	{pkg: "pkg/diskimage", banned: []string{"*.*"}, why: "the vocabulary imports only the standard library"},
	{pkg: "pkg/diskimage/...", banned: []string{module + "pkg/oci/...", module + "pkg/deliver/..."}, why: "diskimage knows nobody"},
	{pkg: "pkg/diskimage/...", banned: []string{"github.com/diskfs/go-diskfs/..."},
		allow: []string{"pkg/diskimage/gpt", "pkg/diskimage/foreign/iso"}, why: "ISO images and the tests of gpt are read by go-diskfs, and nothing else"},
	{pkg: "pkg/diskimage/base", banned: []string{"net/http", "os/exec", module + "pkg/diskimage/recipe", module + "pkg/diskimage/packages", module + "pkg/diskimage/build"},
		why: "a base is read; who fetches it hands it in"},
	{pkg: "pkg/diskimage/content", banned: []string{"net/http", "os/exec", module + "pkg/diskimage/recipe", module + "pkg/diskimage/build", module + "pkg/diskimage/diff"}, why: "files are read from bytes, whoever brings them"},
	{pkg: "pkg/diskimage/evidence", banned: []string{module + "pkg/diskimage/recipe", module + "pkg/diskimage/packages", module + "pkg/diskimage/build",
		module + "pkg/diskimage/customize", module + "pkg/diskimage/boot", "os/exec", "net/http"}, why: "evidence says what it is told, and reads trees"},
	{pkg: "pkg/diskimage/rpmdb", banned: []string{"*.*"}, why: "a database is bytes, and who resolves paths hands them in"},
	{pkg: "pkg/diskimage/boot/authenticode", banned: []string{"golang.org/...", "github.com/klauspost/...", module + "pkg/diskimage/tree"}, why: "a signature needs the standard library and a disk's bytes"},
	{pkg: "pkg/diskimage/boot/grub", banned: []string{module + "pkg/...", "os/exec"}, why: "GRUB is put together of bytes"},
	{pkg: "pkg/deliver/agent/efi", banned: []string{module + "pkg/deliver", module + "pkg/deliver/netboot/...", module + "pkg/diskimage/boot/..."}, why: "boot entries are decided on variables and a partition alone"},
	{pkg: "pkg/deliver/agent/hw", banned: []string{"net/http", "os/exec", module + "pkg/deliver/..."}, why: "modules are files"},
	{pkg: "pkg/deliver/agent/network", banned: []string{"os/exec", module + "pkg/deliver", module + "pkg/deliver/agent/hw", module + "pkg/deliver/netboot", module + "pkg/deliver/netboot/dhcp"}, why: "the client side of DHCP knows nothing of the server's"},
	{pkg: "pkg/deliver/agent/clock", banned: []string{module + "pkg/...", "net/http"}, why: "a clock is numbers"},
	{pkg: "pkg/deliver/agent/kexec", banned: []string{"net/http", "os/exec", module + "pkg/deliver", module + "pkg/deliver/netboot/...", module + "pkg/diskimage/build", module + "pkg/diskimage/foreign"}, why: "a disk's bytes and one call of the kernel"},
	{pkg: "pkg/deliver/agent/machine", banned: []string{"net/http", "os/exec", module + "pkg/deliver"}, why: "what firmware says is files"},
	{pkg: "pkg/deliver/agent/rescue", banned: []string{module + "pkg/...", "os/exec"}, why: "it shows what it is handed, and starts nothing"},
	{pkg: "pkg/diskimage/boot/localboot", banned: []string{module + "pkg/..."}, why: "local.efi is bytes"},
	{pkg: "pkg/diskimage/environment", banned: []string{"golang.org/x/...", "github.com/klauspost/...", module + "pkg/diskimage/tree"},
		why: "the agent reads what the build wrote with the standard library alone"},
	{pkg: "pkg/diskimage/initramfs", banned: []string{module + "pkg/diskimage/recipe", module + "pkg/diskimage/packages", "os/exec"}, why: "modules come from a tree, whoever made it"},
	{pkg: "pkg/diskimage/sandbox", banned: []string{module + "pkg/diskimage/build", module + "pkg/diskimage/customize", "net/http"}, why: "a step runs in a tree, whatever made it"},
	{pkg: "pkg/diskimage/initramfs/initrd", banned: []string{"fmt", "net", "reflect", "context", "golang.org/...", "github.com/klauspost/...", module + "pkg/diskimage", module + "pkg/diskimage/tree", module + "pkg/diskimage/gpt"},
		why: "it is in the initramfs of every image, and has to be small"},
	{pkg: "pkg/internal/modalias", banned: []string{"*.*", "fmt"}, why: "what the init links is small"},
	{pkg: "pkg/diskimage/verity", banned: []string{module + "pkg/diskimage/recipe", module + "pkg/diskimage/tree", module + "pkg/diskimage/build"}, why: "hashes are of a disk, whatever is on it"},
	{pkg: "pkg/diskimage/mkfs/erofs", banned: []string{module + "pkg/diskimage/recipe", module + "pkg/diskimage/build", module + "pkg/diskimage/mkfs/ext4"}, why: "a filesystem is of a tree"},
	{pkg: "pkg/oci/...", banned: []string{module + "pkg/deliver/..."}, why: "oci and deliver never meet"},
	{pkg: "pkg/oci", banned: []string{module + "pkg/oci/registry", module + "pkg/oci/remote", "net/http"}, why: "a layout needs no network"},
	{pkg: "pkg/oci/remote", banned: []string{module + "pkg/oci"}, why: "a client knows no layout"},
	{pkg: "pkg/oci/cache", banned: []string{module + "pkg/oci/remote", module + "pkg/oci/registry"}, why: "a cache is handed its upstream"},
	{pkg: "cmd/imgbuild/...", banned: []string{module + "pkg/oci/ocitest", module + "pkg/diskimage/disktest"}, why: "faults and judges are for tests"},
	{pkg: "cmd/imgpush/...", banned: []string{module + "pkg/oci/ocitest", module + "pkg/diskimage/disktest"}, why: "faults and judges are for tests"},
	{pkg: "pkg/deliver/...", banned: []string{module + "pkg/oci/..."}, why: "oci and deliver never meet"},
	{pkg: "pkg/deliver/netboot/dhcp", banned: []string{module + "pkg/deliver", module + "pkg/diskimage/...", "net/http"}, why: "who asks and what for is all that it knows"},
	{pkg: "pkg/deliver/netboot/tftp", banned: []string{module + "pkg/deliver", module + "pkg/diskimage/...", module + "pkg/deliver/netboot/dhcp", "net/http"}, why: "it serves files that it is given"},
	{pkg: "pkg/deliver", banned: []string{"golang.org/x/sys/unix", module + "pkg/deliver/blockdev"}, why: "the engine knows no Linux"},
	{pkg: "pkg/deliver/agent", banned: []string{module + "pkg/deliver/blockdev", module + "pkg/deliver/agent/system", "github.com/vishvananda/..."}, why: "the agent's flow is tested without a machine"},
	{pkg: "pkg/deliver/guard", banned: []string{"net/http"}, why: "what a disk is asked, no network answers"},
	{pkg: "pkg/deliver/signature", banned: []string{"golang.org/x/...", "github.com/klauspost/...", module + "pkg/deliver"}, why: "what a disk holds is read from bytes alone"},
	{pkg: "pkg/deliver/netboot/...", banned: []string{module + "pkg/diskimage/build", module + "pkg/diskimage/packages", module + "pkg/diskimage/recipe", module + "cmd/..."}, why: "a server builds nothing"},
	{pkg: "pkg/deliver/netboot/jobs", banned: []string{"net/http", module + "pkg/deliver/netboot/site"}, why: "jobs know neither the network nor SITE.yaml"},
	{pkg: "pkg/deliver/netboot/site", banned: []string{"net/http", "modernc.org/...", module + "pkg/deliver/netboot/jobs"}, why: "SITE.yaml is read without a database"},
	{pkg: "pkg/deliver/netboot/wire", banned: []string{"*.*"}, why: "what is said needs the standard library only"},
	{pkg: "pkg/deliver/agent/...", banned: []string{"modernc.org/...", module + "pkg/deliver/netboot/jobs", module + "pkg/deliver/netboot/site"}, why: "an agent has no database"},
	{pkg: "cmd/imgpush", banned: []string{module + "pkg/deliver/netboot/agenttest", module + "cmd/internal/lab"}, why: "a simulated agent is for tests"},
	{pkg: "cmd/imgbuild", banned: []string{module + "pkg/diskimage/boot/authenticode/authenticodetest"}, why: "everybody's key is for tests"},
	{pkg: "pkg/oci/sign", banned: []string{"github.com/sigstore/...", module + "pkg/diskimage/recipe"}, why: "who verifies links no KMS, and needs the standard library's keys only"},
	{pkg: "pkg/oci/sign/signer", banned: []string{module + "pkg/oci/sign/kms"}, why: "which KMS there are, the command says"},
	{pkg: "cmd/imgpush", banned: []string{module + "pkg/oci/sign/kms", module + "pkg/oci/sign/signer", "github.com/sigstore/..."}, why: "imgpush verifies, and holds no private key"},
	{pkg: "cmd/internal/ui", banned: []string{module + "pkg/..."}, why: "ui is about talking"},
	{pkg: "cmd/imgpush", banned: []string{module + "pkg/diskimage/build", module + "pkg/diskimage/packages", module + "pkg/diskimage/customize",
		module + "pkg/diskimage/mkfs/ext4", module + "pkg/diskimage/recipe", module + "pkg/diskimage/diff", module + "pkg/diskimage/evidence", module + "pkg/diskimage/foreign",
		module + "pkg/diskimage/virtdisk", module + "pkg/diskimage/base", module + "pkg/diskimage/initramfs/...", module + "pkg/diskimage/mkfs/erofs", module + "pkg/diskimage/verity", module + "pkg/diskimage/sandbox", module + "cmd/internal/qemu"}, why: "imgpush is the agent: it builds nothing"},
	{pkg: "cmd/imgbuild", banned: []string{module + "pkg/deliver/..."}, why: "imgbuild writes no disks"},
}

func TestArrows(t *testing.T) {
	list := func(args ...string) []string {
		t.Helper()
		cmd := exec.Command("go", append([]string{"list"}, args...)...)
		cmd.Dir = "../../.."
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go list %v: %v\n%s", args, err, out)
		}
		return strings.Fields(string(out))
	}
	for _, r := range rules {
		pkgs := list("./" + r.pkg)
		if len(pkgs) == 0 {
			t.Errorf("%s: no such package; does the rule still stand?", r.pkg)
		}
		for _, pkg := range pkgs {
			if allowed(strings.TrimPrefix(pkg, module), r.allow) {
				continue
			}
			format := `{{range .Deps}}{{.}} {{end}}`
			if r.allow != nil {
				format = `{{range .Imports}}{{.}} {{end}}`
			}
			for _, dep := range list("-f", format, pkg) {
				for _, ban := range r.banned {
					if matches(ban, dep, pkg) {
						t.Errorf("%s links %s: %s", pkg, dep, r.why)
					}
				}
			}
		}
	}
}

func allowed(pkg string, allow []string) bool {
	for _, a := range allow {
		if pkg == a {
			return true
		}
	}
	return false
}

// matches reports whether dep is banned. "*.*" bans every package whose first
// element has a dot, which is everything outside the standard library, except
// the package itself.
func matches(ban, dep, self string) bool {
	if ban == "*.*" {
		first, _, _ := strings.Cut(dep, "/")
		return strings.Contains(first, ".") && dep != self
	}
	if root, ok := strings.CutSuffix(ban, "/..."); ok {
		return dep == root || strings.HasPrefix(dep, root+"/")
	}
	return dep == ban
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		ban, dep string
		want     bool
	}{
		{"*.*", "golang.org/x/sys/unix", true},
		{"*.*", "crypto/sha256", false},
		{"a.b/c/...", "a.b/c", true},
		{"a.b/c/...", "a.b/c/d", true},
		{"a.b/c/...", "a.b/cd", false},
		{"a.b/c", "a.b/c/d", false},
	} {
		if got := matches(c.ban, c.dep, "self"); got != c.want {
			t.Errorf("matches(%q, %q) = %v", c.ban, c.dep, got)
		}
	}
}
