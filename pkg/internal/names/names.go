// Package names is what tags and repositories may be called: distribution-spec
// 1.1, "Pulling manifests". References, registries and their client agree on it.
package names

import (
	"fmt"
	"regexp"
)

// maxRepository is the longest name of a repository, in bytes, that all clients
// can use.
const maxRepository = 255

var (
	tag        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	repository = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
)

// CheckTag says what is wrong with a tag.
func CheckTag(s string) error {
	if !tag.MatchString(s) {
		return fmt.Errorf("tag %.140q: want 1 to 128 letters, digits, '_', '.' or '-', not beginning with '.' or '-'", s)
	}
	return nil
}

// CheckRepository says what is wrong with the name of a repository.
func CheckRepository(s string) error {
	if len(s) > maxRepository || !repository.MatchString(s) {
		return fmt.Errorf("repository %.300q: want at most %d lower-case letters and digits, with '.', '_', '-' between them and '/' between parts", s, maxRepository)
	}
	return nil
}
