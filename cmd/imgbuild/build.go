package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/build"
	"github.com/imgpipe/imgpipe/pkg/diskimage/lock"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign/signer"
)

func buildCommand() *cli.Command {
	return &cli.Command{
		Name:      "build",
		Usage:     "build the image that a recipe describes",
		ArgsUsage: "RECIPE",
		Description: `Installs the base and its packages in a private root, lays the recipe over the
resulting tree, places it on filesystems, and packs the disk, which never exists as a
file, into an OCI layout. The same recipe and packages give the same digest. As an
ordinary user it needs subordinate ids (/etc/subuid); as root nothing.

The package manager's output is kept in the cache and used again without network, until
the recipe's base or packages change or --refresh asks the mirrors.

A recipe with a matrix makes an image for each combination, or for those that --only
leaves (docs/matrix.md).

A recipe of kind Environment makes what machines boot from the network: kernel, initramfs
with imgpush as /init, and both in one EFI program (docs/environment.md).

  imgbuild build recipes/debian-server.yaml
  imgbuild build recipes/debian-server.yaml -o oci:images:debian-server --set console=tty0
  imgbuild build recipes/debian-server.yaml --raw disk.raw
  imgbuild build recipe.yaml --only arch=arm64,flavour=server
  imgbuild build recipes/environment.yaml -o oci:images:environment
  imgbuild build recipes/debian-server.yaml --sbom --provenance --key ci.key
  imgbuild build recipe.yaml --secure-boot-key db.key --secure-boot-cert db.crt
  imgbuild build recipe.yaml --secure-boot-key awskms:///alias/db \
    --secure-boot-cert db.crt`,
		Flags: append([]cli.Flag{
			setFlag, onlyFlag, verifyFlag,
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "where the image goes: `oci:DIR[:TAG]`", DefaultText: "oci:images:NAME-RELEASE"},
			&cli.StringFlag{Name: "raw", Usage: "also write the raw disk to `FILE`, sparsely"},
			&cli.BoolFlag{Name: "refresh", Usage: "ask the mirrors again even if the cache has the packages"},
			&cli.StringFlag{Name: "cache", Usage: "keep downloads and package trees in `DIR`", EnvVars: []string{"IMGPIPE_CACHE"}, DefaultText: "the user's cache"},
			&cli.StringSliceFlag{Name: "cache-from", Usage: "also look in the cache at `REF`, a repository or oci:DIR"},
			&cli.StringFlag{Name: "cache-to", Usage: "give what this build used to the cache at `REF`"},
			&cli.StringFlag{Name: "cache-size", Usage: "prune the cache to `SIZE` afterwards", Value: "20GiB", EnvVars: []string{"IMGPIPE_CACHE_SIZE"}},
			&cli.BoolFlag{Name: "locked", Usage: "take in what the lock beside the recipe names, and nothing else"},
			&cli.BoolFlag{Name: "explain", Usage: "say of each step why it differs from the last build"},
			&cli.StringFlag{Name: "scratch", Usage: "`DIR` for the package manager's root", DefaultText: "memory where there is enough"},
			&cli.IntFlag{Name: "workers", Usage: "compress with `N` workers; the result is the same", DefaultText: "one a processor"},
			&cli.StringFlag{Name: "level", Usage: "compression `LEVEL`: fastest, default, better, best", Value: oci.DefaultLevel.String()},
		}, slices.Concat(stepFlags, secureBootFlags, evidenceFlags, refs.Flags())...),
		Action: runBuild,
	}
}

// buildResult is what `imgbuild build --json` prints.
type buildResult struct {
	Reference  string           `json:"reference"`
	Digest     diskimage.Digest `json:"digest"`
	DiskDigest diskimage.Digest `json:"diskDigest"`
	DiskSize   int64            `json:"diskSize"`
	DataSize   int64            `json:"dataSize"`
	BlobSize   int64            `json:"blobSize"` // bytes of all distinct blobs, as stored
	SameSize   int64            `json:"sameSize"` // plain bytes of chunks that the previous build had as well
	Evidence   []attached       `json:"evidence,omitempty"`
	Seconds    float64          `json:"seconds"`
	build.Record
}

func runBuild(c *cli.Context) (err error) {
	images, err := targets(c)
	if err != nil {
		return err
	}
	if len(images) > 1 && c.IsSet("raw") {
		return ui.Usagef(c, "--raw: the recipe makes %d images; choose one with --only %v", len(images), images[0].combination)
	}
	out := images[0].out
	ok, level := zstd.EncoderLevelFromString(c.String("level"))
	if !ok {
		return ui.Usagef(c, "--level %s: want fastest, default, better or best", c.String("level"))
	}
	if err := checkEvidence(c); err != nil {
		return err
	}
	b := &imageBuild{c: c, level: level}
	for _, t := range images {
		if t.recipe.Kind == recipe.KindEnvironment {
			if err := environmentOptions(c); err != nil {
				return err
			}
		}
		if _, err := secureBoot(c, t.recipe); err != nil {
			return t.failed(err)
		}
	}
	if b.cache, err = cacheDir(c); err != nil {
		return err
	}

	// Where the results go is looked at before minutes are spent on them.
	if path := c.String("raw"); path != "" {
		if err := exportable(path); err != nil {
			return err
		}
	}
	if b.dir, err = oci.CreateDir(c.Context, images[0].ref.Dir); err != nil {
		return ui.Fail(ui.ExitTarget, fmt.Errorf("--output %s: %w", out, err), "")
	}
	defer func() { err = errors.Join(err, b.dir.Close()) }()
	if c.IsSet("key") { // its password is asked for now
		if b.key, err = loadKey(c); err != nil {
			return err
		}
	}
	return b.all(images)
}

// imageBuild is what the images of one command share.
type imageBuild struct {
	c     *cli.Context
	level zstd.EncoderLevel
	cache string
	dir   *oci.Dir
	key   *signer.Signer // nil for none
}

// all builds images in order. What is listed in an index is, once all of that are
// there.
func (b *imageBuild) all(images []*target) error {
	left, made := map[string]int{}, map[string][]v1.Descriptor{}
	for _, t := range images {
		left[t.ref.Tag]++
	}
	for _, t := range images {
		if len(images) > 1 {
			ui.From(b.c).Sayf("building %v", t.combination)
		}
		desc, err := b.one(t)
		if err != nil {
			return t.failed(err)
		}
		tag := t.ref.Tag
		left[tag]--
		if !t.joins {
			continue
		}
		if made[tag] = append(made[tag], desc); left[tag] == 0 {
			if err := b.join(t, made[tag]); err != nil {
				return err
			}
		}
	}
	return nil
}

// one builds an image, and returns how its layout lists it.
func (b *imageBuild) one(t *target) (desc v1.Descriptor, err error) {
	c, r, dir, begun, talk := b.c, t.recipe, b.dir, time.Now(), ui.From(b.c)
	efiSigner, err := secureBoot(c, r)
	if err != nil {
		return desc, err
	}
	if r.Kind == recipe.KindEnvironment {
		return desc, buildEnvironment(c, r, dir, t.ref, t.out, b.cache, efiSigner, b.key, begun)
	}
	steps := &buildSteps{talk: talk}
	options := build.Options{
		CacheDir: b.cache, WorkDir: c.String("scratch"), Refresh: c.Bool("refresh"),
		Env: proxies(), Progress: steps.event, Now: time.Now, Evidence: wantsEvidence(c),
		SecureBoot: efiSigner, Bases: bases(c),
	}
	if err := stepOptions(c, &options); err != nil {
		return desc, err
	}
	memory, err := remember(c, b.cache, t)
	if err != nil {
		return desc, err
	}
	defer func() { err = errors.Join(err, memory.close()) }()
	options.Program, options.Fetch = memory.program, memory.fetch
	if c.Bool("locked") {
		l, err := obeyedLock(c, t.combination, memory.opener)
		if err != nil {
			return desc, err
		}
		options.Locked, options.FetchPackage, memory.lock = l.file, l.fetch, l.file.Digest()
	}
	if same, err := memory.same(options, dir, t.published()); err != nil {
		return desc, recipeError(baseError(err))
	} else if same != nil {
		return same.manifest, same.finish(c, t, begun)
	}
	image, err := build.Build(c.Context, r, options)
	if err != nil {
		return desc, recipeError(baseError(err))
	}
	defer func() { err = errors.Join(err, image.Close()) }()

	packed, err := pack(c, talk, dir, t.previous(), r, image, b.level, options.Locked)
	if err != nil {
		return desc, err
	}
	// The tag comes last: it never names an image that lacks its evidence.
	documents, err := (&evidenceStep{c, dir, image, packed, b.key, begun}).run(talk)
	if err != nil {
		return desc, err
	}
	if err := dir.Publish(c.Context, packed.Descriptor, t.published().Tag); err != nil {
		return desc, err
	}
	digest, err := diskimage.ParseDigest(packed.Descriptor.Digest.String())
	if err != nil {
		return desc, err
	}
	a, err := dir.Open(c.Context, oci.Ref{Digest: digest})
	if err != nil {
		return desc, err
	}
	done := built{artifact: a, manifest: packed.Descriptor, record: image.Record, same: packed.Reused, documents: documents}
	memory.keep(done, image.Entries)
	return packed.Descriptor, done.finish(c, t, begun)
}

// built is an image in its layout.
type built struct {
	artifact  *oci.Artifact // finish closes it
	manifest  v1.Descriptor
	record    build.Record
	same      int64 // plain bytes of chunks that the previous build had as well
	documents []attached
}

// finish writes the raw disk where one is wanted, and says what was made.
func (b built) finish(c *cli.Context, t *target, begun time.Time) (err error) {
	a, talk := b.artifact, ui.From(c)
	defer func() { err = errors.Join(err, a.Close()) }()
	if c.Bool(verifyFlag.Name) {
		if err := verifyBuild(c, a, t); err != nil {
			return err
		}
	}
	if path := c.String("raw"); path != "" {
		if err := exportRaw(c, talk, a, path); err != nil {
			return err
		}
	}
	x := a.Index()
	result := buildResult{
		Reference: t.out, Digest: a.Digest(), DiskDigest: x.DiskDigest, DiskSize: x.DiskSize,
		DataSize: x.DataSize(), BlobSize: a.StoredSize(), SameSize: b.same, Evidence: b.documents, Seconds: time.Since(begun).Seconds(), Record: b.record,
	}
	return talk.Result(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s@%s\n%s disk, %s of data, %s in the artifact, kernel %s, built in %s\n", result.Reference, result.Digest,
			ui.Bytes(result.DiskSize), ui.Bytes(result.DataSize), ui.Bytes(result.BlobSize), result.Kernel, ui.Duration(time.Since(begun)))
		return err
	})
}

// outputRef reads --output: a layout, in which an image may get a tag.
func outputRef(c *cli.Context, out string) (oci.Ref, error) {
	ref, err := refs.Parse(out)
	switch {
	case err != nil:
		return ref, err
	case !ref.IsLayout():
		return ref, ui.Fail(ui.ExitUsage, fmt.Errorf("--output %s: images are made in layouts, oci:DIR:TAG", out), "imgpush push oci:DIR:TAG "+out)
	case !ref.Digest.IsZero():
		return ref, ui.Usagef(c, "--output %s: a digest cannot be chosen", out)
	}
	return ref, nil
}

// pack stores the image in dir, where nothing names it yet.
func pack(c *cli.Context, talk *ui.Talk, dir *oci.Dir, ref oci.Ref, r *recipe.Recipe, image *build.Image, level zstd.EncoderLevel, locked *lock.File) (*oci.Packed, error) {
	previous := previousArtifact(c, dir, ref, r.Name)
	if previous != nil {
		defer previous.Close()
		if moved := movedPartitions(previous.Table(), image.Table); moved != "" {
			talk.Sayf("geometry: %s; a redeploy moves more than what changed", moved)
		}
	}
	step := talk.Step("pack").Counts("packed")
	config := artifactConfig(r, image)
	if locked != nil {
		digest := locked.Digest()
		config.Lock = &digest
	}
	packed, err := oci.Pack(c.Context, image.Disk, config, dir, oci.PackOptions{
		Level: level, Workers: c.Int("workers"), Progress: step.Set, Previous: previous,
	})
	if err == nil && packed.Reused > 0 {
		step.Note(ui.Bytes(packed.Reused) + " as before")
	}
	took := step.End(err)
	image.Record.Steps = append(image.Record.Steps, build.StepTime{Step: "pack", Seconds: took.Seconds()})
	return packed, err
}

// movedPartitions says which partitions of an earlier build of the same image
// lie elsewhere now or have another size, which moves the files in them; "" is none.
func movedPartitions(before, now *diskimage.Table) string {
	var out []string
	for _, p := range now.Partitions {
		if before == nil || before.DiskGUID != now.DiskGUID {
			break // another image
		}
		for _, old := range before.Partitions {
			if old.GUID == p.GUID && old.Extent != p.Extent {
				out = append(out, fmt.Sprintf("%s was %s at %s, is %s at %s", p.Name,
					ui.Bytes(old.Extent.Len), ui.Bytes(old.Extent.Off), ui.Bytes(p.Extent.Len), ui.Bytes(p.Extent.Off)))
			}
		}
	}
	return strings.Join(out, ", ")
}

// previousArtifact is an earlier build whose compressed chunks can be used
// again: what the tag names now, else the layout's last image of that name. The
// result is the same without one, only later; so an unreadable one is none.
func previousArtifact(c *cli.Context, dir *oci.Dir, ref oci.Ref, name string) *oci.Artifact {
	if a, err := dir.Open(c.Context, ref); err == nil {
		return a
	}
	index, err := dir.Index()
	if err != nil {
		return nil
	}
	for _, m := range slices.Backward(index.Manifests) {
		digest, err := diskimage.ParseDigest(m.Digest.String())
		if err != nil {
			continue
		}
		a, err := dir.Open(c.Context, oci.Ref{Digest: digest})
		if err != nil {
			continue
		}
		if a.Config().Name == name {
			return a
		}
		_ = a.Close() // it was only read
	}
	return nil
}

// cacheDir is --cache, IMGPIPE_CACHE, or the user's cache folder.
func cacheDir(c *cli.Context) (string, error) {
	if dir := c.String("cache"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", ui.Fail(ui.ExitUsage, err, "name a folder with --cache")
	}
	return filepath.Join(dir, "imgpipe"), nil
}

// proxies are the environment variables that say how to reach the mirrors.
func proxies() (env []string) {
	for _, name := range []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy"} {
		for _, n := range []string{name, strings.ToUpper(name)} {
			if v, ok := os.LookupEnv(n); ok {
				env = append(env, n+"="+v)
			}
		}
	}
	return env
}

// buildSteps shows build's events as steps of talk.
type buildSteps struct {
	talk *ui.Talk
	step *ui.Step
}

func (s *buildSteps) event(e build.Event) {
	switch {
	case e.Ended && s.step != nil:
		s.step.End(e.Err)
		s.step = nil
	case s.step == nil && !e.Ended:
		s.step = s.talk.Step(e.Step)
		fallthrough
	case e.Note != "":
		s.step.Note(e.Note)
	}
}

// artifactConfig says in the artifact what the image is.
func artifactConfig(r *recipe.Recipe, im *build.Image) oci.Config {
	digest := diskimage.DigestOf(r.Canonical())
	cfg := oci.Config{
		OS: "linux", Architecture: r.Arch, Name: r.Name, Version: r.Release, Flavour: r.Flavour, Epoch: r.Epoch,
		Disk:   oci.DiskConfig{SectorSize: im.Table.SectorSize, Table: im.Table},
		Recipe: &digest,
		Boot:   &oci.BootConfig{Firmware: r.Boot.Firmware, Loader: r.Boot.Loader, Cmdline: r.Boot.Cmdline},
		Test:   &oci.TestConfig{TimeoutSeconds: int64(r.Test.Timeout.Seconds()), Expect: r.Test.Expect, Reject: r.Test.Reject},
	}
	for _, s := range im.Record.Sources {
		cfg.Archives = append(cfg.Archives, oci.Archive{Suite: s.Suite(), Digest: s.Digest})
	}
	for _, p := range im.Record.Packages {
		cfg.Packages = append(cfg.Packages, oci.Package{Name: p.Name, Version: p.Version, Architecture: p.Arch})
	}
	return cfg
}
