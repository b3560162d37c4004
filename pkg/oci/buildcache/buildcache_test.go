package buildcache

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

var name = "roots/" + strings.Repeat("4f", 32)

// entry writes the entry name into a new directory.
func entry(t *testing.T, tar []byte, record map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, filepath.FromSlash(name))
	b, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if tar != nil {
		if err := os.WriteFile(path+".tar", tar, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path+".json", b, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func repositories(t *testing.T) map[string]oci.Repository {
	t.Helper()
	dir, err := oci.CreateDir(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	server := httptest.NewServer(ocitest.NewRegistry())
	t.Cleanup(server.Close)
	client := remote.New(remote.Options{})
	t.Cleanup(client.Close)
	repo, err := client.Repo(strings.TrimPrefix(server.URL, "http://"), "cache")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]oci.Repository{"layout": dir, "registry": repo}
}

func content(t *testing.T) []byte {
	b := make([]byte, 300_000)
	if _, err := rand.Read(b[:100_000]); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWhatIsPutIsGot(t *testing.T) {
	for kind, repo := range repositories(t) {
		tar := content(t)
		from := entry(t, tar, map[string]any{"size": len(tar), "digest": diskimage.DigestOf(tar), "more": 1})
		to := t.TempDir()
		if found, err := Get(t.Context(), repo, name, to); found || err != nil {
			t.Fatalf("%s: before: %v, %v", kind, found, err)
		}
		sent, err := Put(t.Context(), repo, name, from)
		if err != nil || sent < 100_000 || sent > 150_000 {
			t.Fatalf("%s: put %d bytes, %v", kind, sent, err)
		}
		if sent, err := Put(t.Context(), repo, name, from); err != nil || sent != 0 {
			t.Errorf("%s: put again: %d bytes, %v", kind, sent, err)
		}
		if found, err := Get(t.Context(), repo, name, to); !found || err != nil {
			t.Fatalf("%s: got %v, %v", kind, found, err)
		}
		for _, ext := range []string{".tar", ".json"} {
			a, errA := os.ReadFile(filepath.Join(from, name+ext))
			b, errB := os.ReadFile(filepath.Join(to, name+ext))
			if !bytes.Equal(a, b) || errA != nil || errB != nil {
				t.Errorf("%s: %s differs: %v", kind, ext, errors.Join(errA, errB))
			}
		}
		left, err := filepath.Glob(filepath.Join(to, "roots", ".*"))
		if len(left) > 0 || err != nil {
			t.Errorf("%s: left behind: %q, %v", kind, left, err)
		}
	}
}

// A record without a tar, such as which key a request led to.
func TestRecordsAlone(t *testing.T) {
	for kind, repo := range repositories(t) {
		from, to := entry(t, nil, map[string]any{"key": "x"}), t.TempDir()
		if _, err := Put(t.Context(), repo, name, from); err != nil {
			t.Fatal(err)
		}
		if found, err := Get(t.Context(), repo, name, to); !found || err != nil {
			t.Errorf("%s: %v, %v", kind, found, err)
		}
		if _, err := os.Stat(filepath.Join(to, name+".tar")); err == nil {
			t.Errorf("%s: a tar came of nothing", kind)
		}
	}
}

// What a record does not vouch for leaves no trace.
func TestWrongTarsAreRefused(t *testing.T) {
	for what, record := range map[string]func(tar []byte) map[string]any{
		"another digest": func(tar []byte) map[string]any {
			return map[string]any{"size": len(tar), "digest": diskimage.DigestOf(tar[1:])}
		},
		"shorter": func(tar []byte) map[string]any {
			return map[string]any{"size": len(tar) - 1, "digest": diskimage.DigestOf(tar[:len(tar)-1])}
		},
		"longer": func(tar []byte) map[string]any {
			return map[string]any{"size": len(tar) + 1, "digest": diskimage.DigestOf(tar)}
		},
		"nothing": func([]byte) map[string]any { return map[string]any{} },
	} {
		for kind, repo := range repositories(t) {
			tar := content(t)
			from := entry(t, tar, record(tar))
			if sent, err := Put(t.Context(), repo, name, from); err == nil {
				t.Errorf("%s, %s: was put, %d bytes", kind, what, sent)
			}
			if _, _, err := repo.Manifest(t.Context(), tag(name)); !errors.Is(err, oci.ErrNotFound) {
				t.Errorf("%s, %s: the name is taken: %v", kind, what, err)
			}
			poison(t, repo, from)
			to := t.TempDir()
			if found, err := Get(t.Context(), repo, name, to); found || err == nil {
				t.Errorf("%s, %s: %v, %v", kind, what, found, err)
			}
			left, err := filepath.Glob(filepath.Join(to, "roots", "*"))
			hidden, err2 := filepath.Glob(filepath.Join(to, "roots", ".*"))
			if len(left)+len(hidden) > 0 || err != nil || err2 != nil {
				t.Errorf("%s, %s: left behind: %q %q", kind, what, left, hidden)
			}
		}
	}
}

// poison stores an entry whose tar is not what its record says, as nothing of ours would.
func poison(t *testing.T, repo oci.Repository, dir string) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(name))
	tar, err := os.ReadFile(path + ".tar")
	if err != nil {
		t.Fatal(err)
	}
	record, err := os.ReadFile(path + ".json")
	if err != nil {
		t.Fatal(err)
	}
	layer, _, err := putTar(t.Context(), repo, path+".tar", &vouched{Size: int64(len(tar)), Digest: diskimage.DigestOf(tar)})
	if err != nil {
		t.Fatal(err)
	}
	config, _, err := putBytes(t.Context(), repo, recordType, record)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "artifactType": ArtifactType,
		"config": config, "layers": []v1.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.PushManifest(t.Context(), tag(name), types.OCIManifestSchema1, body); err != nil {
		t.Fatal(err)
	}
}

func TestNamesStayInTheDirectory(t *testing.T) {
	for _, bad := range []string{"", "roots/x", "../" + name, "roots/../" + name[6:], "Roots/" + name[6:], name + "/"} {
		if _, err := Get(t.Context(), nil, bad, t.TempDir()); err == nil {
			t.Errorf("%q was asked for", bad)
		}
		if _, err := Put(t.Context(), nil, bad, t.TempDir()); err == nil {
			t.Errorf("%q was put", bad)
		}
	}
}

func TestAnotherArtifactIsNoEntry(t *testing.T) {
	for kind, repo := range repositories(t) {
		body := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`)
		if _, err := repo.PushManifest(t.Context(), tag(name), "application/vnd.oci.image.manifest.v1+json", body); err != nil {
			continue // this place wants blobs first
		}
		if found, err := Get(t.Context(), repo, name, t.TempDir()); found || err == nil || !strings.Contains(err.Error(), "no entry of a build cache") {
			t.Errorf("%s: %v, %v", kind, found, err)
		}
	}
}
