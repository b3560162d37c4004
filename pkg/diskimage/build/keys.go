package build

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// StepKey is what decided the tree after a step: the key of the tree before it,
// and the step's own inputs. The same inputs give the same key, and the same tree.
type StepKey struct {
	Step   string           `json:"step"`
	Key    diskimage.Digest `json:"key"`
	Inputs []StepInput      `json:"inputs,omitempty"`
}

// StepInput is one thing that decides what a step makes. Name is for people, and
// for finding the same input in another build: files[2] /etc/motd, mounts /src.
type StepInput struct {
	Name   string           `json:"name"`
	Digest diskimage.Digest `json:"digest"`
}

// Keys returns the keys of all steps of a build, without building. known is
// false where a step has to run before its inputs are known, such as packages
// that are not in the cache; the keys up to there are returned. It reads the
// recipe's sources, and writes nothing.
func Keys(ctx context.Context, r *recipe.Recipe, o Options) (keys []StepKey, known bool, err error) {
	b := &builder{recipe: r, options: o, image: &Image{made: made{recipe: r}}}
	if o.Locked != nil {
		if err := b.obeys(ctx); err != nil {
			return nil, false, err
		}
	}
	for _, s := range b.steps() {
		switch ok, err := b.extend(ctx, s); {
		case err != nil:
			return nil, false, err
		case !ok:
			return b.image.Record.Keys, false, nil
		}
	}
	return b.image.Record.Keys, true, nil
}

// through runs a step, and takes the key of the tree on: before it, where the
// step's inputs are known, so that it knows its own key.
func (b *builder) through(ctx context.Context, s step, run func(context.Context) error) error {
	known, err := b.extend(ctx, s)
	if err == nil {
		err = run(ctx)
	}
	if err == nil && !known {
		_, err = b.extend(ctx, s)
	}
	return err
}

// extend takes the key of the tree on to that after a step, and says whether the
// step's inputs are known.
func (b *builder) extend(ctx context.Context, s step) (bool, error) {
	var in []StepInput
	if s.inputs != nil {
		var err error
		if in, err = s.inputs(ctx); errors.Is(err, errUnknown) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	b.key = Key(b.key, s.name, in...)
	b.image.Record.Keys = append(b.image.Record.Keys, StepKey{s.name, b.key, in})
	return true, nil
}

// Key returns the key after a step: the SHA-256 of the key before it and, each
// with its length as 64 bits in front, the step's name and its inputs.
func Key(before diskimage.Digest, step string, inputs ...StepInput) diskimage.Digest {
	h := sha256.New()
	text := func(s string) {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	h.Write(before[:])
	text(step)
	for _, in := range inputs {
		text(in.Name)
		h.Write(in.Digest[:])
	}
	return diskimage.Digest(h.Sum(nil))
}

// treeInputs is what the recipe lays over its packages.
func (b *builder) treeInputs(context.Context) ([]StepInput, error) {
	in, err := b.parts("epoch", "hostname", "timezone", "locale", "groups", "users", "remove", "files", "systemd")
	if err != nil {
		return nil, err
	}
	var mounts []string
	for _, p := range b.recipe.Disk.Partitions {
		if p.Mount != "" {
			mounts = append(mounts, p.Mount)
		}
	}
	in = append(in, StepInput{"mount points", digestOf(mounts)}, b.program())
	for i, f := range b.recipe.Files {
		if f.Source == "" {
			continue
		}
		d, err := sourceDigest(f.Source)
		if err != nil {
			return nil, b.recipe.Errorf(fmt.Sprintf("files[%d].source", i), "%v", err)
		}
		in = append(in, StepInput{fmt.Sprintf("files[%d].source %s", i, b.recipe.Relative(f.Source)), d})
	}
	return in, nil
}

// bootInputs is what the recipe says of booting, what a native initramfs
// mounts, and who signs it.
func (b *builder) bootInputs(context.Context) ([]StepInput, error) {
	in, err := b.parts("boot", "arch")
	if err != nil {
		return nil, err
	}
	native, err := b.initramfsInputs()
	if err != nil {
		return nil, err
	}
	in = append(in, native...)
	if s := b.options.SecureBoot; s != nil {
		in = append(in, StepInput{"secure boot certificate", diskimage.DigestOf(s.Cert.Raw)})
	}
	return append(in, b.program()), nil
}

// layoutInputs is the disk, and what identities derive from.
func (b *builder) layoutInputs(context.Context) ([]StepInput, error) {
	in, err := b.parts("name", "arch", "flavour", "epoch", "disk")
	return append(in, b.program()), err
}

// program is what makes the step: another version may make something else.
func (b *builder) program() StepInput {
	return StepInput{"imgbuild", diskimage.DigestOf([]byte(b.options.Program))}
}

// parts returns the digests of keys of the resolved recipe; each item of a list is
// an input of its own.
func (b *builder) parts(keys ...string) ([]StepInput, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b.recipe.Canonical(), &m); err != nil {
		return nil, err
	}
	var out []StepInput
	for _, key := range keys {
		var items []json.RawMessage
		if m[key] == nil {
			continue
		}
		if json.Unmarshal(m[key], &items) != nil {
			out = append(out, StepInput{key, diskimage.DigestOf(m[key])})
			continue
		}
		for i, item := range items {
			name := fmt.Sprintf("%s[%d]", key, i)
			var named struct{ Path, Name string }
			if json.Unmarshal(item, &named) == nil && named.Path+named.Name != "" {
				name += " " + named.Path + named.Name
			}
			out = append(out, StepInput{name, diskimage.DigestOf(item)})
		}
	}
	return out, nil
}

// item returns the digest of one item of a list of the resolved recipe.
func (b *builder) item(key string, i int) (diskimage.Digest, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b.recipe.Canonical(), &m); err != nil {
		return diskimage.Digest{}, err
	}
	var items []json.RawMessage
	if err := json.Unmarshal(m[key], &items); err != nil {
		return diskimage.Digest{}, err
	}
	return diskimage.DigestOf(items[i]), nil
}

func digestOf(texts []string) diskimage.Digest {
	b, err := json.Marshal(texts)
	if err != nil {
		panic(err) // texts always encode
	}
	return diskimage.DigestOf(b)
}

// sourceDigest returns the digest of a file or folder of this host as a recipe
// takes it: paths, kinds, permissions, targets and contents, but neither owners nor times.
func sourceDigest(name string) (diskimage.Digest, error) {
	t := tree.New()
	n, err := tree.FromFile(name, tree.DirOptions{})
	if err == nil && n.Kind == tree.Dir {
		t, err = tree.FromDir(name, tree.DirOptions{})
	} else if err == nil {
		err = t.Put(path.Join("/", path.Base(name)), n)
	}
	if err != nil {
		return diskimage.Digest{}, err
	}
	h := sha256.New()
	for e := range t.All() {
		n := e.Inode
		fmt.Fprintf(h, "%q %d %o %q %d %d %d\n", e.Path, n.Kind, n.Mode, n.Target, n.Major, n.Minor, n.Size())
		if n.Kind == tree.Regular && n.Data != nil {
			if _, err := io.Copy(h, io.NewSectionReader(n.Data, 0, n.Data.Size())); err != nil {
				return diskimage.Digest{}, fmt.Errorf("%s: %w", e.Path, err)
			}
		}
	}
	return diskimage.Digest(h.Sum(nil)), nil
}

// Changes says why a build's steps have other keys than those of a build before,
// a line a step: what is there now and was not, was and is not, or has other contents.
// A step that only follows others that changed says so.
func Changes(before, now []StepKey) []string {
	var out []string
	for i, s := range now {
		j := slices.IndexFunc(before, func(o StepKey) bool { return o.Step == s.Step })
		switch {
		case j < 0:
			out = append(out, s.Step+": is new")
		case before[j].Key == s.Key:
			out = append(out, s.Step+": as before")
		default:
			what := changedInputs(before[j].Inputs, s.Inputs)
			if what == "" && i > 0 {
				what = "follows " + now[i-1].Step
			}
			out = append(out, s.Step+": "+what)
		}
	}
	for _, s := range before {
		if !slices.ContainsFunc(now, func(o StepKey) bool { return o.Step == s.Step }) {
			out = append(out, s.Step+": is gone")
		}
	}
	return out
}

// changedInputs lists what differs between two lists of inputs, at most eight.
func changedInputs(before, now []StepInput) string {
	var out []string
	find := func(in []StepInput, name string) int {
		return slices.IndexFunc(in, func(o StepInput) bool { return o.Name == name })
	}
	for _, in := range now {
		if i := find(before, in.Name); i < 0 {
			out = append(out, in.Name+" is new")
		} else if before[i].Digest != in.Digest {
			out = append(out, in.Name+" changed")
		}
	}
	for _, in := range before {
		if find(now, in.Name) < 0 {
			out = append(out, in.Name+" is gone")
		}
	}
	return joinSome(out)
}

func joinSome(texts []string) string {
	const most = 8
	more := ""
	if len(texts) > most {
		more = fmt.Sprintf(" and %d more", len(texts)-most)
		texts = texts[:most]
	}
	s := ""
	for i, t := range texts {
		if i > 0 {
			s += ", "
		}
		s += t
	}
	return s + more
}
