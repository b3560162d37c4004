package main

import (
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/guard"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
)

func TestTwinsAreListed(t *testing.T) {
	found := []guard.Twin{
		{Path: "/dev/sda", Shares: []signature.Identity{{Kind: "disk GUID", Value: "1"}}, Allowed: true},
		{Path: "/dev/sdb", Shares: []signature.Identity{{Kind: "label", Value: "CIDATA"}}},
	}
	var list strings.Builder
	writeTwins(&list, found)
	if want := "  /dev/sda shares disk GUID 1: left as it is: while both are in one machine, either may boot\n  /dev/sdb shares label CIDATA: refused without --retire /dev/sdb\n"; list.String() != want {
		t.Errorf("got %q, want %q", list.String(), want)
	}
}
