package cmdtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

// ref reads a reference whose directory is relative to the script's.
func ref(ts *testscript.TestScript, text string) oci.Ref {
	r, err := oci.ParseRef(text)
	ts.Check(err)
	r.Dir = ts.MkAbs(r.Dir)
	return r
}

func number(ts *testscript.TestScript, text string) int64 {
	n, err := strconv.ParseInt(text, 0, 64)
	ts.Check(err)
	return n
}

func mkimage(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, "mkimage REF [NAME=VALUE…]")
	im := Image{Name: "tiny", Sector: 512, Root: 16, Config: 2, Random: 4, Motd: "welcome\n"}
	for _, a := range args[1:] {
		name, value, _ := strings.Cut(a, "=")
		switch name {
		case "sector":
			im.Sector = number(ts, value)
		case "name":
			im.Name = value
		case "root":
			im.Root = number(ts, value)
		case "config":
			im.Config = number(ts, value)
		case "random":
			im.Random = number(ts, value)
		case "motd":
			im.Motd = value + "\n"
		case "release":
			im.Release = value
		case "packages": // NAME=VERSION,…
			im.Packages = strings.Split(value, ",")
		case "extra": // PATH,…
			im.Extra = strings.Split(value, ",")
		case "code":
			im.Code = number(ts, value)
		case "untested":
			im.Untested = value == "true"
		default:
			ts.Fatalf("mkimage: no setting %q", name)
		}
	}
	ts.Check(im.Pack(context.Background(), ref(ts, args[0])))
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "exits CODE PROGRAM [ARG…]")
	want := number(ts, args[0])
	err := ts.Exec(args[1], args[2:]...)
	checkExit(ts, err, int(want))
}

func checkExit(ts *testscript.TestScript, err error, want int) {
	code := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

func filled(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2 && len(args) <= 3, "filled FILE SIZE [BYTE]")
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	size := number(ts, args[1])
	if len(args) == 2 {
		ts.Check(f.Truncate(size))
		return
	}
	block := bytes.Repeat([]byte{byte(number(ts, args[2]))}, 1<<20)
	for size > 0 {
		n := min(size, int64(len(block)))
		_, err := f.Write(block[:n])
		ts.Check(err)
		size -= n
	}
}

func corrupt(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 1 && len(args) <= 2, "corrupt FILE [OFFSET]")
	path := ts.MkAbs(args[0])
	ts.Check(os.Chmod(path, 0o644))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	off := int64(0)
	if len(args) == 2 {
		off = number(ts, args[1])
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	ts.Check(err)
	b[0] ^= 0xff
	_, err = f.WriteAt(b[:], off)
	ts.Check(err)
}

func blob(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2 && len(args) <= 3, "blob VAR REF [N]")
	n := 0
	if len(args) == 3 {
		n = int(number(ts, args[2]))
	}
	r := ref(ts, args[1])
	a, err := oci.Open(context.Background(), r)
	ts.Check(err)
	defer a.Close()
	segments := slices.Clone(a.Index().Segments)
	slices.SortFunc(segments, func(a, b diskimage.Segment) int { return int(b.Size - a.Size) })
	ts.Setenv(args[0], r.Dir+"/blobs/"+strings.Replace(segments[n].Digest.String(), ":", "/", 1))
}

// unpack does what docs/format.md promises that anybody can: one blob behind the
// other is the compressed disk.
func unpack(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "unpack REF FILE")
	r := ref(ts, args[0])
	a, err := oci.Open(context.Background(), r)
	ts.Check(err)
	defer a.Close()
	var blobs []io.Reader
	for _, s := range a.Index().Segments {
		f, err := os.Open(r.Dir + "/blobs/" + strings.Replace(s.Digest.String(), ":", "/", 1))
		ts.Check(err)
		defer f.Close()
		blobs = append(blobs, f)
	}
	cmd := exec.Command("zstd", "-q", "-d", "-f", "-o", ts.MkAbs(args[1]))
	cmd.Stdin = io.MultiReader(blobs...)
	out, err := cmd.CombinedOutput()
	ts.Logf("%s", out)
	ts.Check(err)
}

// section reads a range of a file.
func section(ts *testscript.TestScript, name string, off, length int64) []byte {
	f, err := os.Open(ts.MkAbs(name))
	ts.Check(err)
	defer f.Close()
	b := make([]byte, length)
	_, err = io.ReadFull(io.NewSectionReader(f, off, length), b)
	ts.Check(err)
	return b
}

func allBytes(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 4, "bytes FILE OFFSET LENGTH BYTE")
	off, want := number(ts, args[1]), byte(number(ts, args[3]))
	for i, b := range section(ts, args[0], off, number(ts, args[2])) {
		if b != want {
			ts.Fatalf("%s: byte %d is %#x, want %#x", args[0], off+int64(i), b, want)
		}
	}
}

func same(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 4, "[!] same FILE FILE OFFSET LENGTH")
	off, length := number(ts, args[2]), number(ts, args[3])
	a, b := section(ts, args[0], off, length), section(ts, args[1], off, length)
	if bytes.Equal(a, b) != neg {
		return
	}
	if neg {
		ts.Fatalf("%s and %s are equal there", args[0], args[1])
	}
	for i := range a {
		if a[i] != b[i] {
			ts.Fatalf("byte %d: %#x in %s, %#x in %s", off+int64(i), a[i], args[0], b[i], args[1])
		}
	}
}

func hasJSON(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 1 && len(args) <= 2, "json PATH [VALUE]")
	var v any
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber()
	ts.Check(d.Decode(&v))
	if _, err := d.Token(); err != io.EOF {
		ts.Fatalf("something follows the JSON on stdout")
	}
	for key := range strings.SplitSeq(args[0], ".") {
		var next any
		ok := false
		switch v := v.(type) {
		case map[string]any:
			next, ok = v[key]
		case []any:
			if i, err := strconv.Atoi(key); err == nil && i < len(v) {
				next, ok = v[i], true
			}
		}
		if !ok {
			ts.Fatalf("%s: there is no %q", args[0], key)
		}
		v = next
	}
	got := fmt.Sprint(v)
	if len(args) == 2 && !matches(ts, got, args[1]) {
		ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
	}
}

func matches(ts *testscript.TestScript, got, want string) bool {
	switch {
	case strings.HasPrefix(want, ">"):
		return number(ts, got) > number(ts, want[1:])
	case strings.HasPrefix(want, "<"):
		return number(ts, got) < number(ts, want[1:])
	}
	return got == want
}

func lines(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2, "[!] lines stdout|stderr N")
	got := int64(strings.Count(ts.ReadFile(args[0]), "\n"))
	if (got == number(ts, args[1])) == neg {
		ts.Fatalf("%s has %d lines", args[0], got)
	}
}

func loop(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 3 && len(args) <= 4, "loop VAR FILE SIZE [SECTOR]")
	filled(ts, false, args[1:3])
	o := disktest.LoopOptions{Direct: true, Partitions: true}
	if len(args) == 4 {
		o.Sector = uint32(number(ts, args[3]))
	}
	dev, detach, err := disktest.NewLoop(ts.MkAbs(args[1]), o)
	ts.Check(err)
	ts.Defer(detach)
	ts.Setenv(args[0], dev)
}
