package netboot

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// kept is STATE/environment/current.json: which environment was verified, and is
// in that directory whole, each file under its digest.
type kept struct {
	Ref string `json:"ref"`
	Environment
}

func environmentDir(state string) string { return filepath.Join(state, "environment") }

// KeepEnvironment copies an environment, which was verified, to the state
// directory, and returns it with files that open there. What open returns must
// end with an error where the bytes are not those of File.Digest; they are
// compared here too. The environment that was kept before stays there, since it
// may be being served.
func KeepEnvironment(state, ref string, e Environment, open func(title string) (io.ReadCloser, error)) (*Environment, error) {
	dir := environmentDir(state)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	keep := map[string]bool{"current.json": true}
	if before, err := readKept(state); err == nil {
		for _, f := range before.Files {
			keep[filepath.Base(f.path(dir))] = true
		}
	}
	for title, f := range e.Files {
		if _, err := diskimage.ParseDigest(f.Digest); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", ref, title, err)
		}
		if err := f.keep(dir, func() (io.ReadCloser, error) { return open(title) }); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", ref, title, err)
		}
		keep[filepath.Base(f.path(dir))] = true
	}
	b, err := json.Marshal(kept{ref, e})
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteFile(filepath.Join(dir, "current.json"), b, 0o600); err != nil {
		return nil, err
	}
	return e.at(dir), sweep(dir, keep)
}

// KeptEnvironment returns what KeepEnvironment left behind for a reference,
// compared with its digests once more.
func KeptEnvironment(state, ref string) (*Environment, error) {
	k, err := readKept(state)
	if err != nil {
		return nil, err
	}
	if k.Ref != ref {
		return nil, fmt.Errorf("%s: another one is kept", ref)
	}
	dir := environmentDir(state)
	for _, f := range k.Files {
		if err := f.check(dir); err != nil {
			return nil, err
		}
	}
	return k.at(dir), nil
}

func readKept(state string) (k kept, err error) {
	b, err := os.ReadFile(filepath.Join(environmentDir(state), "current.json"))
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, err
	}
	for _, f := range k.Files {
		if _, err := diskimage.ParseDigest(f.Digest); err != nil { // it becomes a path
			return k, err
		}
	}
	return k, nil
}

// at gives the files their way to open.
func (e Environment) at(dir string) *Environment {
	files := map[string]File{}
	for title, f := range e.Files {
		path := f.path(dir)
		f.Open = func() (io.ReadSeekCloser, error) { return os.Open(path) }
		files[title] = f
	}
	e.Files = files
	return &e
}

// path is where a file is kept.
func (f File) path(dir string) string {
	return filepath.Join(dir, strings.TrimPrefix(f.Digest, "sha256:"))
}

// keep copies a file, unless it is there.
func (f File) keep(dir string, open func() (io.ReadCloser, error)) error {
	if f.check(dir) == nil {
		return nil
	}
	in, err := open()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := atomicfile.Create(f.path(dir), 0o600)
	if err != nil {
		return err
	}
	defer out.Abort()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, h), in)
	if err != nil {
		return err
	}
	if n != f.Size || diskimage.Digest(h.Sum(nil)).String() != f.Digest {
		return fmt.Errorf("%d bytes that are not %s", n, f.Digest)
	}
	return out.Commit()
}

// check compares a file with its digest.
func (f File) check(dir string) error {
	in, err := os.Open(f.path(dir))
	if err != nil {
		return err
	}
	defer in.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(in, f.Size+1))
	if err == nil && (n != f.Size || diskimage.Digest(h.Sum(nil)).String() != f.Digest) {
		err = fmt.Errorf("%s is damaged", f.path(dir))
	}
	return err
}

// sweep removes the files of other environments. Who reads one has it open.
func sweep(dir string, keep map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
