package recipe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// maxFiles bounds the files of one recipe.
const maxFiles = 32

// Options say how a recipe is read. The zero value reads from the file system.
type Options struct {
	// Set overrides variables, as --set NAME=TEXT does.
	Set map[string]string
	// Choose narrows the recipe's matrix to the one combination that is loaded: values
	// by key. A recipe without matrix, or with one combination, needs none.
	Choose map[string]string
	// ReadFile reads a recipe file; nil is the file system. Only the first MiB
	// of what it returns would be looked at: more is an error.
	ReadFile func(path string) ([]byte, error)
	// Stat finds the sources of files and the keyring; nil is os.Stat.
	Stat func(path string) (fs.FileInfo, error)
}

// Load reads the recipe at path and what it extends, resolves and checks it.
// The error is [Errors] if there is anything wrong with the recipe itself, and
// wraps that of the file system if the file cannot be read.
func Load(path string, o Options) (*Recipe, error) {
	l, path, err := readLayers(path, &o)
	if err != nil {
		return nil, err
	}
	bad := l.bad
	if !l.unusable {
		l.choose(o)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Set)) {
		if !utf8.ValidString(o.Set[name]) {
			bad.add(Pos{File: setFile}, "vars."+name, "the text is not UTF-8")
			l.unusable = true
		}
	}
	if l.unusable {
		return nil, bad.err()
	}
	v := newVars(l.layers, o.Set, bad)
	for _, layer := range l.layers {
		v.expand(layer)
	}
	table := tableOf(l.layers)
	var root *node
	for _, layer := range l.layers {
		root = merge(table, root, layer)
	}
	root.pos = Pos{File: path, Line: 1, Col: 1}
	r := decode(table, root, v, bad)
	r.sources, r.dir = bad.sources, filepath.Dir(path)
	r.inputs, r.given = l.inputs(r.dir), maps.Clone(o.Set)
	c := &checker{r: r, stat: o.Stat, bad: bad}
	c.check()
	if err := bad.err(); err != nil {
		return nil, err
	}
	return r, nil
}

// readLayers reads the recipe at path, which it cleans, and fills o.
func readLayers(path string, o *Options) (*loader, string, error) {
	if o.ReadFile == nil {
		o.ReadFile = readFile
	}
	if o.Stat == nil {
		o.Stat = os.Stat
	}
	path = filepath.Clean(path)
	l := &loader{read: o.ReadFile, bad: &mistakes{sources: map[string][]string{}}, seen: map[string]bool{}, digests: map[string]diskimage.Digest{}}
	if err := l.load(path, nil); err != nil {
		return nil, path, fmt.Errorf("recipe %s: %w", path, err)
	}
	return l, path, nil
}

// readFile reads a recipe file, and of a larger file no more than shows it.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	return io.ReadAll(io.LimitReader(f, maxFileSize+1))
}

// A loader reads the files of a recipe into layers, bases first.
type loader struct {
	read     func(string) ([]byte, error)
	bad      *mistakes
	seen     map[string]bool
	layers   []*node
	digests  map[string]diskimage.Digest // of the files read, by path
	unusable bool                        // a file is missing or no YAML: what it would say is not known
}

// load reads one file and what it extends. chain is the files that led here.
// The error is that of reading this very file.
func (l *loader) load(path string, chain []string) error {
	l.seen[path] = true
	data, err := l.read(path)
	if err != nil {
		return err
	}
	if len(data) > maxFileSize {
		l.bad.add(Pos{File: path, Line: 1, Col: 1}, "", "larger than %d MiB", maxFileSize>>20)
		l.unusable = true
		return nil
	}
	l.digests[path] = diskimage.DigestOf(data)
	n := (&reader{file: path, bad: l.bad}).read(data)
	if n == nil {
		l.unusable = true
		return nil
	}
	chain = append(slices.Clip(chain), path)
	if i := slices.IndexFunc(n.entries, func(e entry) bool { return e.key == "extends" }); i >= 0 {
		e := n.entries[i]
		n.entries = slices.Delete(n.entries, i, i+1)
		l.extend(e.value, path, chain)
	}
	l.layers = append(l.layers, n)
	return nil
}

// inputs lists the files that were read, relative to a folder.
func (l *loader) inputs(dir string) []Input {
	var out []Input
	for _, path := range slices.Sorted(maps.Keys(l.digests)) {
		name := path
		if rel, err := filepath.Rel(dir, path); err == nil {
			name = filepath.ToSlash(rel)
		}
		out = append(out, Input{name, l.digests[path]})
	}
	return out
}

// extend loads the files that an extends value names.
func (l *loader) extend(n *node, from string, chain []string) {
	field, names := "extends", []*node{n}
	if n.kind == list {
		names = n.items
	}
	for i, name := range names {
		if n.kind == list {
			field = fmt.Sprintf("extends[%d]", i)
		}
		if problem := l.base(name, from, chain); problem != "" {
			l.bad.add(name.pos, field, "%s", problem)
			l.unusable = true
		}
	}
}

// base loads one file named by extends, or says why not.
func (l *loader) base(n *node, from string, chain []string) (problem string) {
	switch {
	case n.kind != scalar || n.class != text:
		return "want a file name, or a list of them"
	case checkFileName(n.text) != "":
		return checkFileName(n.text)
	case strings.Contains(n.text, "${"):
		return "variables do not work here: files are read before variables are known"
	case filepath.IsAbs(n.text):
		return fmt.Sprintf("%q is absolute; name it relative to %s", clip(n.text), from)
	}
	path := filepath.Join(filepath.Dir(from), n.text)
	if i := slices.Index(chain, path); i >= 0 {
		return "in a circle: " + strings.Join(append(slices.Clone(chain[i:]), path), " -> ")
	}
	if l.seen[path] {
		return ""
	}
	if len(l.seen) >= maxFiles {
		return fmt.Sprintf("more than %d files", maxFiles)
	}
	if err := l.load(path, chain); err != nil {
		return fmt.Sprintf("%s: %v", path, plainError(err))
	}
	return ""
}

// plainError strips what a path error repeats.
func plainError(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// clip shortens a text for a message.
func clip(s string) string {
	const most = 60
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most]) + "…"
}
