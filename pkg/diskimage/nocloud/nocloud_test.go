package nocloud_test

import (
	"slices"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/imgpipe/imgpipe/pkg/diskimage/nocloud"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// TestBlankIsASeed checks what cloud-init asks of one: both files there, both
// of them mappings, user-data of a known type.
func TestBlankIsASeed(t *testing.T) {
	s, err := nocloud.Blank(epoch)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Children("/"); !slices.Equal(got, []string{"meta-data", "user-data"}) {
		t.Errorf("files %q", got)
	}
	for name, want := range map[string]int{"/meta-data": 1, "/user-data": 0} {
		b, err := s.ReadFile(name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := yaml.Unmarshal(b, &m); err != nil || m == nil || len(m) != want {
			t.Errorf("%s: %q is %v, %v", name, b, m, err)
		}
		if name == "/meta-data" && m["instance-id"] != "nocloud" {
			t.Errorf("meta-data: %v", m)
		}
		if name == "/user-data" && string(b[:14]) != "#cloud-config\n" {
			t.Errorf("user-data: %q", b)
		}
		if at := s.Get(name).MTime; !at.Equal(epoch) {
			t.Errorf("%s: time %v", name, at)
		}
	}
}

func TestSeedKeepsWhatItIsGiven(t *testing.T) {
	want := map[string]string{"meta-data": "a: 1\n", "user-data": "#!/bin/sh\n", "network-config": "version: 2\n", "vendor-data": "#cloud-config\nv: 1\n"}
	s, err := nocloud.Seed{MetaData: []byte(want["meta-data"]), UserData: []byte(want["user-data"]),
		NetworkConfig: []byte(want["network-config"]), VendorData: []byte(want["vendor-data"])}.Tree(epoch)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Children("/"); len(got) != len(want) {
		t.Errorf("files %q", got)
	}
	for name, content := range want {
		if b, err := s.ReadFile(name, 100); string(b) != content {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}
