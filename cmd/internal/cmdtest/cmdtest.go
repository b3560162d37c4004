// Package cmdtest runs the scripts that test imgbuild and imgpush from outside,
// as programs of their own, with testscript:
//
//	func TestMain(m *testing.M) {
//		testscript.Main(m, map[string]func(){"imgpush": main})
//	}
//
//	func TestScripts(t *testing.T) { cmdtest.Run(t, "testdata/script") }
//
// Besides testscript's own, the scripts have these commands and conditions:
//
//	mkimage REF [sector=512] [name=tiny] [root=16] [config=2] [random=4] [motd=TEXT] [untested=true]
//	        [release=1.0] [packages=NAME=VERSION,…] [extra=PATH,…] [code=N]
//	                               pack a small complete image; sizes in MiB; extra are files of the root
//	exits CODE PROGRAM [ARG…]      run a program that ends with this exit code
//	filled FILE SIZE [BYTE]        make a file of SIZE bytes, each BYTE, or a hole
//	corrupt FILE [OFFSET]          flip the bits of one byte
//	plant FILE NAME [OFFSET LENGTH]
//	                               make the file, or a range of it, look as if it were a md1.0,
//	                               zfs, … (delivertest.Plants)
//	blob VAR REF [N]               set VAR to the path of the image's Nth largest blob
//	unpack REF FILE                decompress the image's blobs with zstd
//	bytes FILE OFFSET LENGTH BYTE  the range of the file holds nothing but BYTE
//	[!] same FILE FILE OFFSET LENGTH
//	                               the range is equal in both files
//	json PATH [VALUE]              stdout is JSON and has PATH (a.b.0.c), equal to VALUE;
//	                               VALUE may be >N or <N
//	[!] lines stdout|stderr N      so many lines were printed
//	interrupt writing FILE SIZE OFFSET PROGRAM [ARG…]
//	                               make FILE of SIZE bytes 0xA5, run a program until it has
//	                               zeroed the first 512 and changed those at OFFSET, and send
//	                               it SIGINT there; it must exit with 130
//	interrupt begun GLOB PROGRAM [ARG…]
//	                               the same, until a file of that name exists
//	mkkey NAME                     make NAME.key and NAME.pub
//	sign REF NAME                  sign an image in a layout with NAME.key
//	attest REF NAME TYPE JSON      attest a predicate of an image, with NAME.key
//	[!] trusted REF FILE [TYPE…]   the key in FILE signed the image, and attested the types
//	loop VAR FILE SIZE [SECTOR]    set VAR to a loop device over FILE, made for it
//	serve VAR DIR [read-only]      VAR is a registry over DIR, until the script ends
//	[root]                         the test may use loop devices
//	[boots]                        the test may boot machines: IMGPIPE_BOOTS is set
package cmdtest

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Run runs the scripts in dir. A condition [exec:PROGRAM] skips what needs a
// program that is not there.
func Run(t *testing.T, dir string) {
	t.Helper()
	repo, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("REPO", repo+"/../..")
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/.cache")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "boots" {
				return os.Getenv("IMGPIPE_BOOTS") != "", nil
			}
			if cond != "root" || os.Getuid() != 0 {
				return false, nil
			}
			control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
			if err == nil {
				control.Close()
			}
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"mkimage": mkimage, "exits": exits, "filled": filled, "corrupt": corrupt, "plant": plant, "blob": blob, "bytes": allBytes,
			"same": same, "unpack": unpack, "json": hasJSON, "lines": lines, "interrupt": interrupt, "loop": loop,
			"serve": serve, "mkkey": mkkey, "sign": signImage, "attest": attestImage, "trusted": trusted,
		},
	})
}
