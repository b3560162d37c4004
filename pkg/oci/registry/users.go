package registry

import (
	"bufio"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"

	"golang.org/x/crypto/bcrypt"
)

// maxUsers bounds the lines of a password file.
const maxUsers = 10_000

// Users are names and passwords in a file as htpasswd -B writes it: lines
// NAME:HASH, the hash bcrypt's. It is read again when it changes; while it
// cannot be read, what it held before counts.
type Users struct {
	path string
	key  [32]byte // of proven

	mu     sync.Mutex
	info   fs.FileInfo
	hashes map[string][]byte
	nobody []byte            // what names without one are compared with, so that time does not tell them
	proven map[[32]byte]bool // names and passwords that matched, as a MAC: bcrypt is slow on purpose

	slow chan struct{} // who may compute bcrypt
}

// LoadUsers reads a password file. Every line that is no NAME:HASH is an error
// that names it.
func LoadUsers(path string) (*Users, error) {
	u := &Users{path: path, slow: make(chan struct{}, 2)}
	_, _ = rand.Read(u.key[:]) // never fails
	if err := u.load(); err != nil {
		return nil, err
	}
	return u, nil
}

// load reads the file if it changed.
func (u *Users) load() error {
	info, err := os.Stat(u.path)
	if err != nil {
		return err
	}
	if u.info != nil && os.SameFile(info, u.info) && info.Size() == u.info.Size() && info.ModTime().Equal(u.info.ModTime()) {
		return nil
	}
	f, err := os.Open(u.path)
	if err != nil {
		return err
	}
	defer f.Close()
	hashes := map[string][]byte{}
	slowest := bcrypt.MinCost
	var wrong []error
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		cost, err := bcrypt.Cost([]byte(hash))
		slowest = max(slowest, cost)
		switch {
		case !ok || name == "":
			wrong = append(wrong, fmt.Errorf("%s:%d: want NAME:HASH", u.path, n))
		case err != nil:
			wrong = append(wrong, fmt.Errorf("%s:%d: the password of %.40q is no bcrypt hash", u.path, n, name))
		case len(hashes) >= maxUsers:
			return fmt.Errorf("%s: more than %d users", u.path, maxUsers)
		}
		hashes[name] = []byte(hash)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", u.path, err)
	}
	if len(wrong) == 0 && len(hashes) == 0 {
		wrong = append(wrong, fmt.Errorf("%s: no users", u.path))
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	nobody, err := bcrypt.GenerateFromPassword(u.key[:], slowest)
	if err != nil {
		return fmt.Errorf("%s: %w", u.path, err)
	}
	u.info, u.hashes, u.nobody, u.proven = info, hashes, nobody, map[[32]byte]bool{}
	return nil
}

// Check reports whether a name and password are those of a user. Two at most
// are computed at once.
func (u *Users) Check(name, password string) bool {
	u.mu.Lock()
	_ = u.load() // what it held before counts
	hash, known := u.hashes[name]
	if !known {
		hash = u.nobody
	}
	mac := u.mac(name, password, hash)
	proven := u.proven[mac]
	u.mu.Unlock()
	if proven {
		return true
	}
	u.slow <- struct{}{}
	err := bcrypt.CompareHashAndPassword(hash, []byte(password))
	<-u.slow
	if err != nil || !known {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.proven) > maxUsers {
		clear(u.proven)
	}
	u.proven[mac] = true
	return true
}

func (u *Users) mac(name, password string, hash []byte) (sum [32]byte) {
	h := hmac.New(sha256.New, u.key[:])
	fmt.Fprintf(h, "%d:%s:%d:%s:%s", len(name), name, len(password), password, hash)
	h.Sum(sum[:0])
	return sum
}

// admit says who a request is from, or that nobody may ask that.
func (r *Registry) admit(req *http.Request) (user string, err error) {
	if r.o.Users == nil {
		return "", nil
	}
	name, password, given := req.BasicAuth()
	if given && name+password != "" { // some clients send nothing, spelled out
		if r.o.Users.Check(name, password) {
			return name, nil
		}
		return "", fail(http.StatusUnauthorized, codeUnauthorized, "wrong name or password")
	}
	// /v2/ asks even then: by its answer clients know that they may have to log in.
	pull := !changes(req.Method) && req.URL.Path != "/v2/" && req.URL.Path != "/v2" && !strings.Contains(req.URL.Path, "/blobs/uploads/")
	if r.o.AnonymousPull && pull {
		return "", nil
	}
	return "", fail(http.StatusUnauthorized, codeUnauthorized, "a name and a password are needed")
}
