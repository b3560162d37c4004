package main

import (
	"slices"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci"
)

func TestConfigDifferences(t *testing.T) {
	var a, b oci.Config
	a.Architecture, b.Architecture = "amd64", "amd64"
	a.OS, b.OS = "linux", "other"
	a.Disk.Size, b.Disk.Size = 1<<53+1, 1<<53 // not to be told apart as floating point numbers
	found, err := configDifferences(a, b, 20)
	var got []string
	for _, d := range found {
		got = append(got, d.Partition+" "+d.What)
	}
	want := []string{"config disk.size: 9007199254740993, now 9007199254740992", `config os: "linux", now "other"`}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if found, err := configDifferences(a, b, 1); err != nil || len(found) != 1 {
		t.Errorf("limited to one: %+v, %v", found, err)
	}
	if found, err := configDifferences(a, a, 20); err != nil || len(found) != 0 {
		t.Errorf("the same: %+v, %v", found, err)
	}
}

func TestJSONDifferencesOfLists(t *testing.T) {
	var got []string
	say := func(path, what string) bool { got = append(got, path+": "+what); return true }
	jsonDifferences("", map[string]any{"p": []any{"a", "b"}, "q": "x"}, map[string]any{"p": []any{"a"}, "q": []any{}}, say)
	if want := []string{`p[1]: "b", now nothing`, `q: "x", now []`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
