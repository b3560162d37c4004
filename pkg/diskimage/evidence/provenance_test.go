package evidence

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func origin(t testing.TB) *Origin {
	digest := func(s string) diskimage.Digest { return diskimage.DigestOf([]byte(s)) }
	return &Origin{
		Recipe: "small.yaml", Set: map[string]string{"console": "tty0 <x>"}, Level: "default",
		Inputs:   []Input{{"small.yaml", digest("small")}, {"base.yaml", digest("base")}, {"app/x", digest("x")}, {"base.yaml", digest("base")}},
		Archives: []Archive{{"bookworm", digest("release")}},
		Database: contents(t).Database, Compressor: "zstd 1", Resolved: digest("resolved"),
		Packages: &PackageRun{Mode: "root", FromCache: true, Tree: digest("tar")},
		Builder:  "https://ci.example.org/runner/1", Versions: map[string]string{"imgpipe": "1"}, Invocation: "run-7",
		Started: time.Unix(1_790_000_000, 999), Finished: time.Unix(1_790_000_010, 0).In(time.FixedZone("", 3600)),
	}
}

func provenance(t testing.TB, o *Origin) []byte {
	t.Helper()
	b, err := Provenance(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestJudgesAcceptTheProvenance(t *testing.T) {
	for name, o := range map[string]*Origin{"all": origin(t), "least": {Recipe: "a.yaml"}} {
		if out, err := judge(t, "provenance", provenance(t, o)); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
	good := string(provenance(t, origin(t)))
	for _, edit := range [][2]string{
		{`"buildType"`, `"buildKind"`}, {`"sha256":"`, `"sha256":"0`}, {`"startedOn":"2026`, `"startedOn":"year`}, {`g%2B%2B`, `g++`},
	} {
		bad := strings.Replace(good, edit[0], edit[1], 1)
		if out, err := judge(t, "provenance", []byte(bad)); err == nil || bad == good {
			t.Errorf("with %s it is accepted: %s", edit[1], out)
		}
	}
}

func TestWhatTheProvenanceSays(t *testing.T) {
	var got slsaPredicate
	if err := json.Unmarshal(provenance(t, origin(t)), &got); err != nil {
		t.Fatal(err)
	}
	d, r := got.BuildDefinition, got.RunDetails
	if d.BuildType != BuildType || !reflect.DeepEqual(d.External, slsaExternal{"small.yaml", map[string]string{"console": "tty0 <x>"}, "default"}) {
		t.Errorf("definition %+v", d)
	}
	if r.Builder.ID != "https://ci.example.org/runner/1" || *r.Metadata != (slsaMetadata{"run-7", "2026-09-21T14:13:20Z", "2026-09-21T14:13:30Z"}) {
		t.Errorf("run %+v %+v", r, r.Metadata)
	}
	if len(d.Dependencies) != 3+1+5 { // one base.yaml, five packages
		t.Errorf("%d dependencies: %+v", len(d.Dependencies), d.Dependencies)
	}
	for _, want := range []slsaResource{
		{Name: "bookworm/InRelease", Digest: sha256Set(diskimage.DigestOf([]byte("release")))},
		{Name: "app/x", Digest: sha256Set(diskimage.DigestOf([]byte("x")))},
		{URI: "pkg:deb/debian/g%2B%2B@4:12.2.0-3?arch=amd64&distro=debian-12", Digest: sha256Set(diskimage.DigestOf([]byte("g++")))},
	} {
		if !slices.ContainsFunc(d.Dependencies, func(r slsaResource) bool { return reflect.DeepEqual(r, want) }) {
			t.Errorf("no %+v", want)
		}
	}
	if !reflect.DeepEqual(d.Internal["packages"], map[string]any{"mode": "root", "fromCache": true}) || len(r.Byproducts) != 2 {
		t.Errorf("internal %v, byproducts %v", d.Internal, r.Byproducts)
	}
}

func TestTheOrderOfInputsMeansNothing(t *testing.T) {
	a, b := origin(t), origin(t)
	slices.Reverse(b.Inputs)
	if x, y := provenance(t, a), provenance(t, b); !bytes.Equal(x, y) {
		t.Errorf("got\n%s\nand\n%s", x, y)
	}
}

func TestSameRuns(t *testing.T) {
	a := provenance(t, origin(t))
	for name, c := range map[string]struct {
		edit func(*Origin)
		same bool
	}{
		"nothing":    {func(*Origin) {}, true},
		"times":      {func(o *Origin) { o.Started, o.Finished = o.Started.Add(1e9), o.Finished.Add(2e9) }, true},
		"the cache":  {func(o *Origin) { o.Packages.FromCache = false }, true},
		"an input":   {func(o *Origin) { o.Inputs[0].Digest[0]++ }, false},
		"a variable": {func(o *Origin) { o.Set["console"] = "ttyS0" }, false},
		"a version":  {func(o *Origin) { o.Versions["imgpipe"] = "2" }, false},
		"the run":    {func(o *Origin) { o.Invocation = "run-8" }, false},
		"who built":  {func(o *Origin) { o.Builder = "https://ci.example.org/runner/2" }, false},
	} {
		o := origin(t)
		c.edit(o)
		if got := SameRun(a, provenance(t, o)); got != c.same {
			t.Errorf("%s differs: got %v", name, got)
		}
	}
	for _, other := range []string{"", "{}", "null", strings.Replace(string(a), `"runDetails"`, `"more":1,"runDetails"`, 1)} {
		if SameRun(a, []byte(other)) || SameRun([]byte(other), a) {
			t.Errorf("the same as %s", other)
		}
	}
}

func TestBuildersAreURIs(t *testing.T) {
	for _, bad := range []string{"me", "https://a b", "://", "http://[", "urn:x\n"} {
		o := origin(t)
		o.Builder = bad
		if b, err := Provenance(o); err == nil {
			t.Errorf("%q is accepted: %s", bad, b)
		}
	}
	var got slsaPredicate
	if err := json.Unmarshal(provenance(t, &Origin{Recipe: "a"}), &got); err != nil || got.RunDetails.Builder.ID != DefaultBuilder || got.RunDetails.Metadata != nil {
		t.Errorf("%+v, %v", got.RunDetails, err)
	}
	if _, err := Provenance(&Origin{}); err == nil {
		t.Error("provenance without a recipe")
	}
}
