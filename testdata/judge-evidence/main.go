// Command judge-evidence lets other people's code judge what
// pkg/diskimage/evidence writes. It is a module of its own, so that what it
// links is no business of imgpipe's.
//
//	judge-evidence spdx FILE          SPDX 2.3: the JSON schema of the specification,
//	                                  SPDX's own Go tools, licence expressions, package URLs
//	judge-evidence provenance FILE    SLSA v1 predicate: in-toto's own Go types, strictly
//
// It prints what it found and exits with 1 if anything is wrong.
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: judge-evidence spdx|provenance FILE")
	}
	b, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "spdx":
		return judgeSPDX(b)
	case "provenance":
		return judgeProvenance(b)
	}
	return fmt.Errorf("no judge of %q", args[0])
}
