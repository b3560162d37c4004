// Package lock is the lock file of a recipe: what its names were resolved to
// (docs/lock.md).
//
//	f, err := lock.Parse(text)
//	for _, line := range lock.Diff(old, f) {
//		fmt.Println(line)                 // openssl 3.0.17-1 → 3.0.18-1
//	}
//	err = os.WriteFile(name, f.Marshal(), 0o644)
//
// It guarantees that Marshal writes the same bytes for the same contents, a
// package a line, and that Parse takes nothing that Marshal would not write. What
// a lock means to a build is the builder's business.
package lock

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/version"
)

// Version is that of the file.
const Version = 1

// MaxSize bounds a lock file, in bytes: some 100,000 packages.
const MaxSize = 32 << 20

// File is a lock.
type File struct {
	Version  int               `json:"version"`
	Request  diskimage.Digest  `json:"request"` // of what was resolved
	Tools    []Tool            `json:"tools,omitempty"`
	Archives []packages.Source `json:"archives,omitempty"`
	Packages []packages.Locked `json:"packages"`
	Inputs   []Input           `json:"inputs,omitempty"`
	Images   []Image           `json:"images,omitempty"`
	Mirrors  []string          `json:"mirrors,omitempty"` // repositories that have the packages
}

// Tool is a program that makes the tree.
type Tool struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Input is something beside the recipe. Name is as the recipe has it.
type Input struct {
	Name   string           `json:"name"`
	Digest diskimage.Digest `json:"sha256"`
}

// Image is what a reference led to.
type Image struct {
	Ref    string           `json:"ref"`
	Digest diskimage.Digest `json:"digest"`
}

// sort brings the lists into their one order.
func (f *File) sort() {
	slices.SortFunc(f.Tools, func(a, b Tool) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(f.Archives, func(a, b packages.Source) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(f.Packages, func(a, b packages.Locked) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch))
	})
	slices.SortFunc(f.Inputs, func(a, b Input) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(f.Images, func(a, b Image) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.Sort(f.Mirrors)
}

// Marshal returns the file's text. It sorts f's lists.
func (f *File) Marshal() []byte {
	f.Version = Version
	f.sort()
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n  \"version\": %d,\n  \"request\": %s", f.Version, text(f.Request))
	list(&b, "tools", f.Tools)
	list(&b, "archives", f.Archives)
	list(&b, "packages", f.Packages)
	list(&b, "inputs", f.Inputs)
	list(&b, "images", f.Images)
	list(&b, "mirrors", f.Mirrors)
	b.WriteString("\n}\n")
	return b.Bytes()
}

func list[T any](b *bytes.Buffer, name string, items []T) {
	if len(items) == 0 && name != "packages" {
		return
	}
	fmt.Fprintf(b, ",\n  %q: [", name)
	for i, item := range items {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString("\n    " + text(item))
	}
	if len(items) > 0 {
		b.WriteString("\n  ")
	}
	b.WriteByte(']')
}

func text(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // texts and numbers always encode
	}
	return strings.TrimSpace(b.String())
}

// Parse reads a lock file.
func Parse(b []byte) (*File, error) {
	f := &File{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(f); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("lock: something follows its end")
	}
	if err := f.validate(); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

func (f *File) validate() error {
	if f.Version != Version {
		return fmt.Errorf("version %d; this program knows version %d", f.Version, Version)
	}
	seen := map[string]bool{}
	for i, p := range f.Packages {
		key := p.Name + ":" + p.Arch
		switch {
		case p.Name == "" || p.Version == "" || p.Arch == "":
			return fmt.Errorf("packages[%d]: needs name, version and arch", i)
		case strings.ContainsAny(p.Name+p.Version+p.Arch+p.Priority, " \t\r\n/"):
			return fmt.Errorf("packages[%d]: %q is no package", i, p.Name)
		case p.Digest.IsZero() || p.Size <= 0:
			return fmt.Errorf("packages[%d]: %s: needs sha256 and size", i, p.Name)
		case seen[key]:
			return fmt.Errorf("packages[%d]: %s is there twice", i, key)
		}
		if u, err := url.Parse(p.URL); err != nil || u.Scheme == "" && p.URL != "" {
			return fmt.Errorf("packages[%d]: %s: %q is no URL", i, p.Name, p.URL)
		}
		seen[key] = true
	}
	return nil
}

// Digest returns the digest of what a build obeys: neither where packages are to be had, nor what was only
// written down, is in it.
func (f *File) Digest() diskimage.Digest {
	c := File{Request: f.Request, Tools: f.Tools, Archives: f.Archives, Inputs: f.Inputs, Images: f.Images, Packages: slices.Clone(f.Packages)}
	for i := range c.Packages {
		c.Packages[i].URL = ""
	}
	return diskimage.DigestOf(c.Marshal())
}

// Diff lists what differs between two locks, a line a package, input, image or tool.
func Diff(before, now *File) []string {
	var out []string
	type item struct{ name, value string }
	compare := func(before, now []item, change func(name, a, b string) string) {
		old := map[string]string{}
		for _, i := range before {
			old[i.name] = i.value
		}
		for _, i := range now {
			switch was, ok := old[i.name]; {
			case !ok:
				out = append(out, "+ "+i.name+" "+i.value)
			case was != i.value:
				out = append(out, change(i.name, was, i.value))
			}
			delete(old, i.name)
		}
		for _, i := range before {
			if was, ok := old[i.name]; ok {
				out = append(out, "- "+i.name+" "+was)
			}
		}
	}
	arrow := func(name, a, b string) string { return name + " " + a + " → " + b }
	var a, b []item
	for _, side := range []struct {
		f   *File
		out *[]item
	}{{before, &a}, {now, &b}} {
		for _, p := range side.f.Packages {
			*side.out = append(*side.out, item{p.Name + ":" + p.Arch, p.Version})
		}
	}
	compare(a, b, func(name, was, is string) string {
		line := arrow(name, was, is)
		if version.Compare(is, was) < 0 {
			line += " (older)"
		}
		return line
	})
	files := map[item]diskimage.Digest{}
	for _, p := range before.Packages {
		files[item{p.Name + ":" + p.Arch, p.Version}] = p.Digest
	}
	for _, p := range now.Packages {
		i := item{p.Name + ":" + p.Arch, p.Version}
		if was, ok := files[i]; ok && was != p.Digest {
			out = append(out, i.name+" "+i.value+": another file of the same version")
		}
	}
	changed := func(name, _, _ string) string { return name + " changed" }
	compare(each(before.Inputs, func(i Input) item { return item{i.Name, short(i.Digest)} }),
		each(now.Inputs, func(i Input) item { return item{i.Name, short(i.Digest)} }), changed)
	compare(each(before.Images, func(i Image) item { return item{i.Ref, short(i.Digest)} }),
		each(now.Images, func(i Image) item { return item{i.Ref, short(i.Digest)} }), arrow)
	compare(each(before.Tools, func(t Tool) item { return item{t.Name, t.Version} }),
		each(now.Tools, func(t Tool) item { return item{t.Name, t.Version} }), arrow)
	return out
}

func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}

func short(d diskimage.Digest) string { return "sha256:" + d.Hex()[:12] }
