package cmdtest

import (
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func plant(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 2 || len(args) == 4), "plant FILE NAME [OFFSET LENGTH]")
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	st, err := f.Stat()
	ts.Check(err)
	region := diskimage.Extent{Len: st.Size()}
	if len(args) == 4 {
		region = diskimage.Extent{Off: number(ts, args[2]), Len: number(ts, args[3])}
	}
	ts.Check(delivertest.Plant(f, args[1], region))
}
