package oci_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func Example() {
	ctx := context.Background()
	tmp, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(tmp)

	dir, err := oci.CreateDir(ctx, filepath.Join(tmp, "images"))
	if err != nil {
		log.Fatal(err)
	}
	defer dir.Close()
	hello, err := diskimage.Join(64<<20, diskimage.Part{Off: 1 << 20, Disk: diskimage.Bytes([]byte("hello"))})
	if err != nil {
		log.Fatal(err)
	}
	packed, err := oci.Pack(ctx, hello, oci.Config{
		OS: "linux", Architecture: "amd64", Name: "hello", Version: "1",
		Epoch: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
	}, dir, oci.PackOptions{})
	if err != nil {
		log.Fatal(err)
	}
	if err := dir.Publish(ctx, packed.Descriptor, "1"); err != nil {
		log.Fatal(err)
	}

	ref, err := oci.ParseRef("oci:" + dir.Path() + ":1")
	if err != nil {
		log.Fatal(err)
	}
	a, err := oci.Open(ctx, ref)
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	b := make([]byte, 5)
	if _, err := a.Disk(ctx).ReadAt(b, 1<<20); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: a disk of %d bytes, %d chunk of data\n", b, a.Index().DiskSize, len(a.Index().Chunks))
	// Output: hello: a disk of 67108864 bytes, 1 chunk of data
}
