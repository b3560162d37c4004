package sign_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// An image is resolved to a digest, the digest is judged, and only then is the
// image opened.
func Example() {
	text := []byte(`
version: 1
keys: {release: {file: cosign/p256.pub}}
repositories:
  - {match: oci:images/*, keys: [release], minRelease: "2026.10"}
  - {match: "*", reject: true}
`)
	policy, err := sign.ParsePolicy("testdata/trust.yaml", text, os.ReadFile)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	ref, err := oci.ParseRef("oci:../../../testdata/format/layout")
	if err != nil {
		fmt.Println(err)
		return
	}
	dir, err := oci.OpenDir(ctx, ref.Dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer dir.Close()
	pin, err := oci.Resolve(ctx, dir, ref)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = sign.TrustPolicy(policy).Verify(ctx, dir, "oci:testdata/images/vector", pin.Digest())
	fmt.Println(errors.Is(err, sign.ErrUntrusted))
	fmt.Println(err)
	// Output:
	// true
	// oci:testdata/images/vector@sha256:0aa5a21fd6d481cea29329e7ddd9afabc934c7ff199e5c42b7d8a12aa8d70c8d: not trusted: no signature by a trusted key; tried release (sha256:b2d9784dc176); found 0 referrers, 0 bundles
}
