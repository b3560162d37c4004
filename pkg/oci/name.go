package oci

import (
	"fmt"
	"strings"
)

// maxName is the longest name of a repository, in bytes, that all clients can
// use: distribution-spec 1.1, "Pulling manifests".
const maxName = 255

// CheckName says what is wrong with the name of a repository that is a
// directory among others: the grammar of distribution-spec 1.1, without the
// names that a layout's own files have, since "a" may have "a/b" below it.
func CheckName(name string) error {
	if len(name) > maxName || !namePattern.MatchString(name) {
		return fmt.Errorf("repository %.300q: want at most %d lower-case letters and digits, with '.', '_', '-' between them and '/' between parts", name, maxName)
	}
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "blobs", indexFile, layoutFile:
			return fmt.Errorf("repository %q: %s is a file of every repository, and cannot be a part of a name", name, part)
		}
	}
	return nil
}
