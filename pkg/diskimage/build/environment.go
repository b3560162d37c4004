package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/localboot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/environment"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Environment is what machines boot from the network. Kernel and UKI are read
// where they lie until Close. Local is local.efi where the UKI is signed, by the
// same key; nil where not, since an unsigned one every server has.
type Environment struct {
	Kernel    diskimage.Disk
	Initramfs []byte
	UKI       diskimage.Disk
	Local     []byte
	Config    *environment.Config // as it lies in the initramfs
	Record    EnvironmentRecord

	image *Image // holds the open files
}

// EnvironmentRecord is what went into an environment, and what it took.
type EnvironmentRecord struct {
	Agent     diskimage.Digest `json:"agent"`     // of the program that is /init
	AgentSize int64            `json:"agentSize"` // bytes
	Kernel    string           `json:"kernel"`    // version
	Modules   []string         `json:"modules"`
	Firmware  []string         `json:"firmware,omitempty"`
	Lacking   []string         `json:"lacking,omitempty"` // modules none of whose firmware is carried
	Unpacked  int64            `json:"unpacked"`          // bytes of the files in memory, in whole pages
	// SecureBoot is the SHA-256 of the certificate that UKI and local.efi are signed by.
	SecureBoot string             `json:"secureBoot,omitempty"`
	Packages   []packages.Package `json:"packages"` // those with files in it
	Sources    []packages.Source  `json:"sources,omitempty"`
	FromCache  bool               `json:"packagesFromCache"`
	Steps      []StepTime         `json:"steps"`
}

// Bounds of files that a recipe names, in bytes.
const (
	maxAgent = 256 << 20
	maxText  = 1 << 20
)

// Close lets go of the inputs.
func (e *Environment) Close() error { return e.image.Close() }

// BuildEnvironment makes the environment that r, of that kind, describes. agent is
// the program that is to be /init where the recipe names none. Who signs for Secure
// Boot is said by the recipe or by Options, not by both.
func BuildEnvironment(ctx context.Context, r *recipe.Recipe, agent string, o Options) (*Environment, error) {
	if r.Agent != "" {
		agent = r.Agent
	}
	e := &Environment{image: &Image{}}
	b := &environmentBuilder{builder: builder{recipe: r, options: o, image: e.image}, out: e, agent: agent}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"inputs", b.inputs}, // seconds before minutes
		{"packages", b.packages},
		{"modules", b.modules},
		{"initramfs", b.initramfs},
		{"uki", b.boot},
	} {
		if err := b.step(ctx, step.name, step.run); err != nil {
			return nil, errors.Join(err, e.Close())
		}
	}
	rec := e.image.Record
	e.Record.Steps, e.Record.Sources, e.Record.FromCache = rec.Steps, rec.Sources, rec.FromCache
	return e, nil
}

// environmentBuilder carries a build from step to step.
type environmentBuilder struct {
	builder
	out    *Environment
	agent  string
	config environment.Config
	signer *authenticode.Signer

	program []byte // /init
	kernel  *initramfs.Kernel
	parts   boot.Kernel
	files   *tree.Tree // of the initramfs
}

// inputs reads what the recipe names beside it.
func (b *environmentBuilder) inputs(context.Context) error {
	r := b.recipe
	b.config = environment.Config{
		Version: environment.Version, Name: r.Name, Release: r.Release, Architecture: r.Arch, Kernel: "unknown",
		Floor: r.Epoch.Unix(), Jobs: environment.Jobs(r.Jobs), Rescue: r.Rescue, Server: environment.Server{URL: r.Server.URL},
	}
	var errs recipe.Errors
	text := func(field, path string) string {
		s, err := readText(path)
		if err != nil {
			errs = append(errs, r.Errorf(field, "%v", err))
		}
		return s
	}
	for i, p := range r.Trust.Keys {
		b.config.Trust.Keys = append(b.config.Trust.Keys, environment.Key{Name: filepath.Base(p), PEM: text(fmt.Sprintf("trust.keys[%d]", i), p)})
	}
	for i, p := range r.Server.CA {
		b.config.Server.CA = append(b.config.Server.CA, text(fmt.Sprintf("server.ca[%d]", i), p))
	}
	if r.Trust.Policy != "" {
		b.config.Trust.Policy = text("trust.policy", r.Trust.Policy)
	}
	b.signer = b.options.SecureBoot
	switch {
	case r.SecureBoot.Key != "" && b.signer != nil:
		errs = append(errs, r.Errorf("secureBoot", "another key to sign with was named at the build: leave one of them out"))
	case r.SecureBoot.Key != "":
		s, err := authenticode.ParseSigner([]byte(text("secureBoot.key", r.SecureBoot.Key)), []byte(text("secureBoot.cert", r.SecureBoot.Cert)))
		if err == nil {
			err = s.Validate()
		}
		if err != nil {
			errs = append(errs, r.Errorf("secureBoot.key", "%v", err))
		}
		b.signer = &s
	}
	if errs == nil && b.options.PolicyFiles != nil && r.Trust.Policy != "" {
		files, err := b.options.PolicyFiles(r.Trust.Policy, []byte(b.config.Trust.Policy))
		if err != nil {
			errs = append(errs, r.Errorf("trust.policy", "%v", err))
		}
		b.config.Trust.Files = files
	}
	if errs != nil {
		errs.Sort()
		return errs
	}
	if _, err := b.config.Marshal(); err != nil {
		return err
	}
	return b.readAgent()
}

// readText reads a small file that the recipe names.
func readText(path string) (string, error) {
	b, err := readBounded(path, maxText)
	return string(b), err
}

func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s: not a file of at most %d bytes", path, limit)
	}
	return os.ReadFile(path)
}

// readAgent reads the program that is to be /init, and refuses one that the kernel
// could not start: there are no shared libraries.
func (b *environmentBuilder) readAgent() error {
	var err error
	if b.program, err = readBounded(b.agent, maxAgent); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if err := checkStatic(b.program, b.recipe.Arch); err != nil {
		return fmt.Errorf("agent %s: %w", b.agent, err)
	}
	b.out.Record.Agent, b.out.Record.AgentSize = diskimage.DigestOf(b.program), int64(len(b.program))
	return nil
}

// packages unpacks the kernel, the stub and firmware.
func (b *environmentBuilder) packages(ctx context.Context) error {
	d := *b.recipe.Base.Debian
	d.Variant = packages.VariantExtract
	if err := b.debian(ctx, d); err != nil {
		return err
	}
	parts, err := boot.FindKernel(b.tree, b.recipe.Arch)
	if err != nil {
		return err
	}
	b.parts, b.config.Kernel, b.out.Record.Kernel = parts, parts.Version, parts.Version
	for _, p := range b.image.Record.Packages {
		if p.Name == "linux-image-"+parts.Version || slices.ContainsFunc(b.recipe.Packages, func(want string) bool {
			return want == p.Name || strings.HasPrefix(want, p.Name) && strings.ContainsAny(want[len(p.Name):len(p.Name)+1], ":=/")
		}) {
			b.out.Record.Packages = append(b.out.Record.Packages, p)
		}
	}
	return nil
}

// modules selects kernel modules and firmware.
func (b *environmentBuilder) modules(context.Context) error {
	r := b.recipe
	var err error
	if b.kernel, err = initramfs.Open(b.tree, b.parts.Version); err != nil {
		return err
	}
	var errs recipe.Errors
	for i, name := range r.Modules.Extra {
		if !b.kernel.Has(name) {
			errs = append(errs, r.Errorf(fmt.Sprintf("modules.extra[%d]", i), "%v", &initramfs.MissingError{Release: b.parts.Version, Names: []string{name}}))
		}
	}
	if errs != nil {
		return errs
	}
	modules, err := b.kernel.Closure(append(b.kernel.Wanted(r.Modules.Storage, r.Modules.Network), r.Modules.Extra...)...)
	if err != nil {
		return err
	}
	if b.signer != nil {
		if err := signed(modules); err != nil {
			return err
		}
	}
	if b.files, err = initramfs.Tree(b.kernel, modules); err != nil {
		return err
	}
	for _, m := range modules {
		b.out.Record.Modules = append(b.out.Record.Modules, m.Name)
	}
	slices.Sort(b.out.Record.Modules)
	for i, entry := range r.Firmware {
		files, err := b.kernel.Firmware(b.files, modules, []string{entry})
		if err != nil {
			return recipe.Errors{r.Errorf(fmt.Sprintf("firmware[%d]", i), "%v; add the package that has it, and its component (non-free-firmware)", err)}
		}
		b.out.Record.Firmware = append(b.out.Record.Firmware, files...)
	}
	slices.Sort(b.out.Record.Firmware)
	b.out.Record.Firmware = slices.Compact(b.out.Record.Firmware)
	b.out.Record.Lacking = initramfs.Lacking(modules, b.out.Record.Firmware)
	b.say(fmt.Sprintf("%d of kernel %s", len(modules), b.parts.Version))
	return nil
}

// signed refuses modules without a signature: under Secure Boot the kernel, in
// lockdown, does not load them.
func signed(modules []*initramfs.Module) error {
	var bad []string
	for _, m := range modules {
		if !m.Signed {
			bad = append(bad, m.Path)
		}
	}
	if bad != nil {
		return fmt.Errorf("secureBoot: not signed, and so not loaded under Secure Boot: %s; leave them out, or use a kernel whose modules are signed", strings.Join(bad, ", "))
	}
	return nil
}

// first are the files that the initramfs begins with, behind the console: where
// memory ends, the agent has where to mount, and finds out what is missing.
var first = []string{environment.ManifestPath, environment.ConfigPath, "/proc", "/run", "/sys", "/tmp", "/init"}

// initramfs puts together what the kernel unpacks.
func (b *environmentBuilder) initramfs(context.Context) error {
	config, err := b.config.Marshal()
	if err != nil {
		return err
	}
	b.out.Config = &b.config
	put := func(p string, mode uint16, data []byte) error {
		return b.files.Put(p, &tree.Inode{Mode: mode, Data: diskimage.Bytes(data)})
	}
	if err := errors.Join(put(environment.ConfigPath, 0o644, config), put("/init", 0o755, b.program)); err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/run", "/sys", "/tmp"} { // where the agent mounts
		if err := b.files.Put(dir, &tree.Inode{Kind: tree.Dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	manifest, err := manifestOf(b.files)
	if err != nil {
		return err
	}
	text, err := manifest.Marshal()
	if err != nil {
		return err
	}
	if err := put(environment.ManifestPath, 0o644, text); err != nil {
		return err
	}
	const page = 4096
	for _, f := range manifest {
		b.out.Record.Unpacked += (f.Size + page - 1) &^ (page - 1)
	}
	b.out.Initramfs, err = initramfs.Pack(b.files, first...)
	return err
}

// manifestOf lists the regular files of a tree.
func manifestOf(t *tree.Tree) (environment.Manifest, error) {
	var m environment.Manifest
	for e := range t.All() {
		if e.Inode.Kind != tree.Regular {
			continue
		}
		data, err := t.ReadFile(e.Path, maxAgent)
		if err != nil {
			return nil, err
		}
		m = append(m, environment.File{Digest: diskimage.DigestOf(data), Size: int64(len(data)), Path: e.Path})
	}
	m.Sort()
	return m, nil
}

// boot puts kernel, initramfs and command line into one EFI program, and signs it
// where the recipe says so.
func (b *environmentBuilder) boot(context.Context) error {
	r := b.recipe
	b.out.Kernel = b.tree.Get(b.parts.Image).Data
	stub, err := b.tree.ReadFile(b.parts.Stub, maxText)
	if err != nil {
		return err
	}
	release := fmt.Sprintf("ID=imgpipe\nNAME=\"imgpipe environment\"\nPRETTY_NAME=\"imgpipe environment %s %s\"\nVERSION_ID=%s\nIMAGE_ID=%s\nIMAGE_VERSION=%s\n",
		r.Name, r.Release, r.Release, r.Name, r.Release)
	uki, err := boot.UKI{Stub: stub, Kernel: b.out.Kernel, Initrd: diskimage.Bytes(b.out.Initramfs),
		OSRelease: release, Cmdline: r.Cmdline, Uname: b.parts.Version}.Build()
	if err != nil {
		return err
	}
	if b.signer != nil {
		if uki, err = authenticode.Sign(uki, *b.signer); err != nil {
			return err
		}
		if b.out.Local, err = authenticode.SignBytes(localboot.Program(r.Arch), *b.signer); err != nil {
			return fmt.Errorf("local.efi: %w", err)
		}
		b.out.Record.SecureBoot = fmt.Sprintf("%x", sha256.Sum256(b.signer.Cert.Raw))
	}
	b.out.UKI = uki
	return nil
}
