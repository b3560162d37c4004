package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgpipe/imgpipe/cmd/internal/cmdtest"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"imgbuild": main, "tell": tell}) }

func TestScripts(t *testing.T) { cmdtest.Run(t, "testdata/script") }

func TestHelp(t *testing.T) { cmdtest.Help(t, app()) }
