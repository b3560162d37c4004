package oci

import (
	"fmt"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

// CheckName says what is wrong with the name of a repository that is a
// directory among others: the grammar of distribution-spec 1.1, without the
// names that a layout's own files have, since "a" may have "a/b" below it.
func CheckName(name string) error {
	if err := names.CheckRepository(name); err != nil {
		return err
	}
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "blobs", indexFile, layoutFile:
			return fmt.Errorf("repository %q: %s is a file of every repository, and cannot be a part of a name", name, part)
		}
	}
	return nil
}
