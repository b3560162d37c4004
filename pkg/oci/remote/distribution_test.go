package remote_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

func TestDistribution(t *testing.T) {
	t.Parallel()
	suite(t, ocitest.Distribution(t), quirks{})
}

// TestEmbedded is imgpush registry.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	reg, err := registry.New(t.TempDir(), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	suite(t, served(t, reg), quirks{})
}

// TestOthers are the registry of this project's tests, and go-containerregistry's.
func TestOthers(t *testing.T) {
	t.Parallel()
	t.Run("ocitest", func(t *testing.T) { suite(t, served(t, ocitest.NewRegistry()), quirks{}) })
	t.Run("ggcr", func(t *testing.T) {
		suite(t, served(t, ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithReferrersSupport(true))), quirks{oneStore: true, noSessions: true})
	})
}

func served(t *testing.T, h http.Handler) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.Listener.Addr().String()
}
