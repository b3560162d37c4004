// Package sandbox runs programs inside a tree, and says what they changed. It works
// as root and as an ordinary user with subordinate ids (Linux only). docs/run.md is
// the normative text.
//
//	box := sandbox.New(sandbox.Options{CacheDir: cache, Epoch: epoch})
//	defer box.Close()
//	after, err := box.Run(ctx, t, sandbox.Step{Name: "app", Script: "make install\n", User: "root"})
//	err = tree.WriteLayer(f, t, after)      // while after can be read: until the next Run, or Close
//
// It guarantees that a step sees the tree, what it is given, and nothing of the
// host's but its kernel; that its owners are those of the tree; that nothing that
// it started lives on; that the same change gives the same tree, whoever runs it
// and on which filesystem; that neither mounts nor processes are left, however this
// process ends; and that a tree in which a secret was found is not returned.
//
// It does not make a step deterministic: what a program makes of the clock or of
// random numbers is what it makes. It needs Linux 5.8.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/internal/workdir"
)

// Version is the version of everything here that decides what a step makes: raise
// it when the rules of docs/run.md change.
const Version = 1

// Options says where and how. CacheDir and Epoch are needed.
type Options struct {
	CacheDir string       // has the folders that stay from build to build
	WorkDir  string       // parent of the work directory; "" is memory where the tree fits, else /var/tmp
	Epoch    time.Time    // whole seconds; no time of what a step changes is later
	Env      []string     // more environment for steps with the network: http_proxy=…
	Log      io.Writer    // gets what steps print, without secrets; nil for none
	Line     func(string) // gets each line of it; nil for none
	Terminal *os.File     // what a Shell talks to
}

// Step is a program to run in a tree.
type Step struct {
	Name    string
	Script  string            // for /bin/sh -eu, or for what its #! line names
	User    string            // a name or number in the tree; "" is root
	Workdir string            // "" is /
	Env     map[string]string // over the fixed environment
	Network bool              // the host's; without it only loopback
	Caches  []Cache
	Secrets []Secret
	Mounts  []Mount
	Files   []File // there while the step runs, if its path is free; gone afterwards unless changed
}

// Cache is a folder that stays from build to build. Users of one Key wait for each other.
type Cache struct {
	Path string // in the tree
	Key  string // a file name
}

// Secret is a file that only the step sees.
type Secret struct {
	Name  string // for errors
	Path  string
	Value []byte
}

// Mount is a tree that the step sees, read-only, owned by root and of the epoch's time:
// a folder's tree, or a file as the entry "/file" of one.
type Mount struct {
	Path string
	Tree *tree.Tree
	File bool
}

// File is a small file of the step's own.
type File struct {
	Path string
	Data []byte
	Mode uint16
}

// minSecret is the length of the shortest secret that can be told from chance, in bytes.
const minSecret = 8

// ExitError says that a step's program failed.
type ExitError struct {
	Step   string
	Status string // "exit status 1", "signal: killed"
	Tail   string // the last lines that it wrote
}

func (e *ExitError) Error() string {
	s := fmt.Sprintf("step %s: %s", e.Step, e.Status)
	if e.Tail == "" {
		return s + "; it wrote nothing"
	}
	return s + "; its last lines:\n" + indent(e.Tail)
}

// SecretError says that a secret is in what a step changed.
type SecretError struct {
	Step, Secret, Path string
}

func (e *SecretError) Error() string {
	return fmt.Sprintf("step %s: the secret %s is in %s; nothing of the step was kept", e.Step, e.Secret, e.Path)
}

// StepError is a mistake in the step itself: a user that the tree does not have.
type StepError struct {
	Field   string // of the recipe's step: user, script
	Problem string
}

func (e *StepError) Error() string { return e.Field + ": " + e.Problem }

// ErrRefused is wrapped by the error for a host that does not let a sandbox be made.
var ErrRefused = errors.New("this host does not let a sandbox be made")

// ErrNoSubordinateIDs is wrapped by the error for an ordinary user without them.
var ErrNoSubordinateIDs = errors.New("no subordinate user and group ids")

// ErrTooFewIDs is wrapped by the error for an owner that no id of this user's stands for.
var ErrTooFewIDs = errors.New("no id for an owner in the tree")

// errFull is what a step that has filled the work directory's memory ends with.
var errFull = errors.New("the work directory is full")

// Sandbox runs steps, one at a time. It is not safe for concurrent use.
type Sandbox struct {
	o       Options
	session *session // nil until the first step
	onDisk  bool     // memory was not enough
}

// New returns a sandbox. Nothing is started before the first step.
func New(o Options) *Sandbox { return &Sandbox{o: o} }

// Run lays t out, runs a step in it, and returns the tree as it is then. Inodes that
// did not change are those of t; contents of others are read from the sandbox, until
// the next Run, Shell or Close. When ctx ends, all that the step started is killed.
func (s *Sandbox) Run(ctx context.Context, t *tree.Tree, step Step) (*tree.Tree, error) {
	out, err := s.run(ctx, t, step)
	if errors.Is(err, errFull) && !s.onDisk && s.o.WorkDir == "" && ctx.Err() == nil {
		s.onDisk = true
		if err = s.Close(); err == nil {
			out, err = s.run(ctx, t, step)
		}
	}
	if errors.Is(err, errFull) {
		err = fmt.Errorf("%w: free some of %s, or name another place with --scratch", err, s.session.where)
	}
	if ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), s.Close()) // whatever else broke broke because of that
	}
	return out, err
}

func (s *Sandbox) run(ctx context.Context, t *tree.Tree, step Step) (*tree.Tree, error) {
	for _, secret := range step.Secrets {
		if len(trimmed(secret.Value)) < minSecret {
			return nil, &StepError{"secrets", fmt.Sprintf("the secret %s has less than %d bytes: it could not be told from other text", secret.Name, minSecret)}
		}
	}
	config, err := plan(t, step, s.o)
	if err == nil {
		err = foreign(t, step.Script)
	}
	if err != nil {
		return nil, err
	}
	if err := s.start(t); err != nil {
		return nil, err
	}
	unlock, err := lockCaches(ctx, s.o.CacheDir, step.Caches)
	if err != nil {
		return nil, err
	}
	defer unlock()
	stop := context.AfterFunc(ctx, s.session.kill)
	defer stop()
	return s.session.run(t, step, config)
}

// Shell opens /bin/sh on Options.Terminal in the sandbox as a failed Run left it.
func (s *Sandbox) Shell(ctx context.Context, t *tree.Tree, step Step) error {
	if s.session == nil || s.o.Terminal == nil {
		return nil
	}
	config, err := plan(t, step, s.o)
	if err != nil {
		return err
	}
	unlock, err := lockCaches(ctx, s.o.CacheDir, step.Caches)
	if err != nil {
		return err
	}
	defer unlock()
	stop := context.AfterFunc(ctx, s.session.kill)
	defer stop()
	return s.session.shell(step, config)
}

// start makes the session, if there is none.
func (s *Sandbox) start(t *tree.Tree) error {
	if s.session != nil {
		return nil
	}
	parent, need := s.o.WorkDir, footprint(t)
	memory := int64(0)
	switch {
	case parent != "":
	case s.onDisk || !workdir.FitsMemory(need):
		parent = workdir.VarTmp
	default:
		memory = workdir.Memory() * 3 / 4
	}
	var err error
	s.session, err = open(s.o, parent, memory)
	return err
}

// Close ends the sandbox and removes its work directory.
func (s *Sandbox) Close() error {
	if s.session == nil {
		return nil
	}
	err := s.session.close()
	s.session = nil
	return err
}

// footprint is about what a tree and a step in it take, in bytes.
func footprint(t *tree.Tree) int64 {
	n := int64(512 << 20)
	for e := range t.All() {
		n += 1024
		if e.Inode.Kind == tree.Regular && !hidden(e.Path) {
			n += (e.Inode.Size() + 4095) &^ 4095
		}
	}
	return n + n/4
}

// lockCaches takes the locks of the caches in the order of their keys.
func lockCaches(ctx context.Context, dir string, caches []Cache) (unlock func(), err error) {
	var held []*os.File
	unlock = func() {
		for _, f := range held {
			f.Close()
		}
	}
	for _, key := range keysOf(caches) {
		f, err := workdir.Wait(ctx, filepath.Join(dir, "locks", "mount-"+key))
		if err != nil {
			unlock()
			return nil, fmt.Errorf("cache %s: %w", key, err)
		}
		held = append(held, f)
	}
	return unlock, nil
}
