package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/build"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

// environmentResult is what `imgbuild build --json` prints of an environment.
type environmentResult struct {
	Reference string                `json:"reference"`
	Digest    diskimage.Digest      `json:"digest"`
	Files     []oci.EnvironmentFile `json:"files"`
	BootSize  int64                 `json:"bootSize"` // bytes of kernel and initramfs
	Signed    bool                  `json:"signed"`   // the artifact, by --key
	Seconds   float64               `json:"seconds"`
	build.EnvironmentRecord
}

// environmentOptions says what of build's flags an environment has no use for.
func environmentOptions(c *cli.Context) error {
	for _, name := range []string{"raw", "level", "workers", "sbom", "sbom-files", "provenance"} {
		if c.IsSet(name) {
			return ui.Usagef(c, "--%s is for disk images; this recipe makes an environment", name)
		}
	}
	return nil
}

// buildEnvironment builds r, of kind Environment, into dir.
func buildEnvironment(c *cli.Context, r *recipe.Recipe, dir *oci.Dir, ref oci.Ref, out, cache string, efi *authenticode.Signer, key *signer.Signer, begun time.Time) error {
	agent, err := agentProgram(r)
	if err != nil {
		return err
	}
	talk := ui.From(c)
	e, err := build.BuildEnvironment(c.Context, r, agent, build.Options{
		CacheDir: cache, WorkDir: c.String("scratch"), Refresh: c.Bool("refresh"),
		Env: proxies(), Progress: (&buildSteps{talk: talk}).event, Now: time.Now, PolicyFiles: policyFiles, SecureBoot: efi,
	})
	if err != nil {
		return recipeError(err)
	}
	err = publishEnvironment(c, r, e, dir, ref, out, key, begun)
	return errors.Join(err, e.Close())
}

func publishEnvironment(c *cli.Context, r *recipe.Recipe, e *build.Environment, dir *oci.Dir, ref oci.Ref, out string, key *signer.Signer, begun time.Time) error {
	talk := ui.From(c)
	step := talk.Step("pack")
	contents := map[string]diskimage.Disk{oci.KernelTitle: e.Kernel, oci.InitramfsTitle: diskimage.Bytes(e.Initramfs), oci.UKITitle: e.UKI}
	if e.Local != nil {
		contents[oci.LocalTitle] = diskimage.Bytes(e.Local)
	}
	desc, err := oci.PackEnvironment(c.Context, contents, storedEnvironment(r, e), dir)
	took := step.End(err)
	if err != nil {
		return err
	}
	e.Record.Steps = append(e.Record.Steps, build.StepTime{Step: "pack", Seconds: took.Seconds()})
	digest, err := diskimage.ParseDigest(desc.Digest.String())
	if err != nil {
		return err
	}
	if key != nil { // the tag comes last
		if _, err := sign.Sign(c.Context, dir, digest, key, sign.Options{Created: begun}); err != nil {
			return err
		}
	}
	if err := dir.Publish(c.Context, desc, ref.Tag); err != nil {
		return err
	}
	stored, err := oci.OpenEnvironment(c.Context, dir, desc)
	if err != nil {
		return err
	}
	files := stored.Files()
	result := environmentResult{Reference: out, Digest: digest, Files: files, BootSize: files[0].Size + files[1].Size,
		Signed: key != nil, Seconds: time.Since(begun).Seconds(), EnvironmentRecord: e.Record}
	return talk.Result(result, result.write)
}

func (r environmentResult) write(w io.Writer) error {
	fmt.Fprintf(w, "%s@%s\nkernel %s and initramfs %s, together %s; UKI %s", r.Reference, r.Digest,
		ui.Bytes(r.Files[0].Size), ui.Bytes(r.Files[1].Size), ui.Bytes(r.BootSize), ui.Bytes(r.Files[2].Size))
	if r.SecureBoot != "" {
		fmt.Fprintf(w, ", signed for Secure Boot by the certificate %s", r.SecureBoot)
	}
	fmt.Fprintf(w, "\nkernel %s, %d modules, agent %s, %s in memory; built in %s\n", r.Kernel, len(r.Modules),
		ui.Bytes(r.AgentSize), ui.Bytes(r.Unpacked), ui.Duration(time.Duration(r.Seconds*float64(time.Second))))
	if len(r.Lacking) > 0 {
		fmt.Fprintf(w, "without their firmware: %s\n", strings.Join(r.Lacking, " "))
	}
	return nil
}

// storedEnvironment says in the artifact what the environment is.
func storedEnvironment(r *recipe.Recipe, e *build.Environment) oci.EnvironmentConfig {
	digest := diskimage.DigestOf(r.Canonical())
	cfg := oci.EnvironmentConfig{
		OS: "linux", Architecture: r.Arch, Name: r.Name, Version: r.Release, Epoch: r.Epoch, Kernel: e.Record.Kernel, Cmdline: r.Cmdline,
		SecureBoot: e.Record.SecureBoot != "", Agent: e.Record.Agent, Recipe: &digest, Modules: e.Record.Modules,
	}
	for _, s := range e.Record.Sources {
		cfg.Archives = append(cfg.Archives, oci.Archive{Suite: s.Suite(), Digest: s.Digest})
	}
	for _, p := range e.Record.Packages {
		cfg.Packages = append(cfg.Packages, oci.Package{Name: p.Name, Version: p.Version, Architecture: p.Arch})
	}
	return cfg
}

// agentProgram is imgpush beside this program, where the recipe names none.
func agentProgram(r *recipe.Recipe) (string, error) {
	if r.Agent != "" {
		return r.Agent, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "imgpush")
	if _, err := os.Stat(path); err != nil {
		return "", ui.Fail(ui.ExitSource, fmt.Errorf("the agent: %w", err),
			"install imgpush beside imgbuild, or name a static build of it in the recipe: agent: FILE")
	}
	return path, nil
}

// policyFiles checks a policy, and returns the keys that it names by file.
func policyFiles(path string, text []byte) (map[string]string, error) {
	files := map[string]string{}
	dir := filepath.Dir(path)
	_, err := sign.ParsePolicy(path, text, func(file string) ([]byte, error) {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return nil, err
		}
		files[filepath.ToSlash(name)] = string(b)
		return b, nil
	})
	return files, err
}

// openEnvironment opens ref if it names an environment; nil if it names anything else.
func openEnvironment(c *cli.Context, text string) (_ *oci.Environment, close func() error, err error) {
	opener, ref, err := refs.Open(c, text)
	if err != nil {
		return nil, nil, err
	}
	pin, err := opener.Resolve(c.Context, ref)
	if err != nil {
		return nil, nil, errors.Join(err, opener.Close())
	}
	e, err := oci.OpenEnvironment(c.Context, pin.Repository(), pin.Image)
	if errors.Is(err, oci.ErrNotEnvironment) {
		return nil, nil, opener.Close()
	}
	if err != nil {
		return nil, nil, errors.Join(refs.Fail(fmt.Errorf("%v: %w", ref, err)), opener.Close())
	}
	return e, opener.Close, nil
}

// environmentInspection is what `imgbuild inspect --json` prints of an environment.
type environmentInspection struct {
	Reference string                `json:"reference"`
	Digest    diskimage.Digest      `json:"digest"`
	Config    oci.EnvironmentConfig `json:"config"`
	Files     []oci.EnvironmentFile `json:"files"`
}

func (in *environmentInspection) write(out io.Writer, packages bool) error {
	c := in.Config
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	row("environment", "%s %s, %s/%s", c.Name, c.Version, c.OS, c.Architecture)
	row("digest", "%s", in.Digest)
	row("epoch", "%s", c.Epoch.Format(time.RFC3339))
	row("kernel", "%s", c.Kernel)
	row("cmdline", "%s", c.Cmdline)
	row("Secure Boot", "%s", map[bool]string{true: "UKI and local.efi are signed", false: "not signed"}[c.SecureBoot])
	row("agent", "%s", c.Agent)
	row("modules", "%d: %s", len(c.Modules), strings.Join(c.Modules, " "))
	for _, a := range c.Archives {
		row("  from", "%s, InRelease %s", a.Suite, a.Digest)
	}
	for _, f := range in.Files {
		row(f.Title, "%s, %s", ui.Bytes(f.Size), f.Digest)
	}
	if packages {
		fmt.Fprintln(w, "\npackage\tversion\tarchitecture")
		for _, p := range c.Packages {
			fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, p.Version, p.Architecture)
		}
	}
	return w.Flush()
}

// exportEnvironment writes the files of an environment into a folder.
func exportEnvironment(c *cli.Context, e *oci.Environment, dir string) error {
	for _, name := range []string{"format", "compress"} {
		if c.IsSet(name) {
			return ui.Usagef(c, "--%s is for disk images; an environment is a few files, put into a folder", name)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return ui.Fail(ui.ExitTarget, err, "")
	}
	talk := ui.From(c)
	for _, f := range e.Files() {
		err := exportFile(c, talk, filepath.Join(dir, f.Title), func(to *os.File, progress func(done, total int64)) error {
			r, err := e.Open(c.Context, f.Title)
			if err != nil {
				return refs.Fail(err)
			}
			defer r.Close()
			_, err = io.Copy(to, r)
			return err
		})
		if err != nil {
			return err
		}
	}
	return talk.Result(map[string]any{"folder": dir, "files": e.Files(), "digest": e.Digest()}, func(io.Writer) error { return nil })
}
