module github.com/imgpipe/imgpipe/testdata/judge-evidence

go 1.26

require (
	github.com/github/go-spdx/v2 v2.8.0
	github.com/in-toto/attestation v1.2.0
	github.com/package-url/packageurl-go v0.1.7
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3
	github.com/spdx/tools-golang v0.5.7
	google.golang.org/protobuf v1.36.11
)

require (
	github.com/anchore/go-struct-converter v0.1.0 // indirect
	golang.org/x/text v0.14.0 // indirect
)
