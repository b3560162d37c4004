package cmdtest

import (
	"net/http/httptest"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

// serve serves a directory as a registry until the script ends.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2 && len(args) <= 3, "serve VAR DIR [read-only]")
	dir := ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(dir, 0o755))
	reg, err := registry.New(dir, registry.Options{ReadOnly: len(args) == 3})
	ts.Check(err)
	server := httptest.NewServer(reg)
	ts.Defer(func() {
		server.Close()
		ts.Check(reg.Close())
	})
	ts.Setenv(args[0], strings.TrimPrefix(server.URL, "http://"))
}
