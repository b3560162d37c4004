// Package kms lets package signer use keys that lie in key management systems:
// awskms://, azurekms://, gcpkms:// and hashivault:// references, as cosign
// spells them, with each system's usual credentials from the environment.
//
//	import _ "github.com/imgpipe/imgpipe/pkg/oci/sign/kms"
//
// It is a package of its own because of what it links: only imgbuild imports it.
package kms

import (
	_ "github.com/sigstore/sigstore/pkg/signature/kms/aws"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/azure"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/gcp"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/hashivault"
)
