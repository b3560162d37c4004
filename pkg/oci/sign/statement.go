package sign

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Types of in-toto statements: the envelope "_type".
const (
	statementV1  = "https://in-toto.io/Statement/v1"
	statementV01 = "https://in-toto.io/Statement/v0.1" // cosign attest still writes it
)

// shortNames are cosign's short names of predicate types.
var shortNames = map[string]string{
	"slsaprovenance":   "https://slsa.dev/provenance/v0.2",
	"slsaprovenance02": "https://slsa.dev/provenance/v0.2",
	"slsaprovenance1":  "https://slsa.dev/provenance/v1",
	"spdx":             "https://spdx.dev/Document",
	"spdxjson":         "https://spdx.dev/Document",
	"cyclonedx":        "https://cyclonedx.org/bom",
	"link":             "https://in-toto.io/Link/v1",
	"vuln":             "https://cosign.sigstore.dev/attestation/vuln/v1",
	"openvex":          "https://openvex.dev/ns",
}

// PredicateType returns the URI of a predicate type that is given as that, or
// by cosign's short name: "spdxjson".
func PredicateType(s string) (string, error) {
	if uri, ok := shortNames[s]; ok {
		return uri, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || strings.ContainsAny(s, " \t\n") {
		return "", fmt.Errorf("predicate type %q: want spdxjson, slsaprovenance1, another of cosign's short names, or a URI", s)
	}
	return s, nil
}

// statement is an in-toto statement: a predicate about subjects.
type statement struct {
	predicateType string
	predicate     json.RawMessage // an object, or nil
	subjects      []diskimage.Digest
}

// parseStatement reads a payload whose signature was verified.
func parseStatement(b []byte) (*statement, error) {
	m, err := members(b)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	version, err := text(m, "_type")
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	if version != statementV1 && version != statementV01 {
		return nil, fmt.Errorf("statement: type %q is not known", version)
	}
	s := &statement{predicate: m["predicate"]}
	if s.predicateType, err = text(m, "predicateType"); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	subjects, err := list(m, "subject", maxSubjects)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	for i, raw := range subjects {
		d, err := parseSubject(raw)
		if err != nil {
			return nil, fmt.Errorf("statement: subject %d: %w", i, err)
		}
		if !d.IsZero() {
			s.subjects = append(s.subjects, d)
		}
	}
	return s, nil
}

// parseSubject returns the SHA-256 of a subject, or zero where it has none.
func parseSubject(raw json.RawMessage) (d diskimage.Digest, err error) {
	m, err := members(raw)
	if err != nil {
		return d, err
	}
	digests, err := members(m["digest"])
	if err != nil {
		return d, fmt.Errorf("digest: %w", err)
	}
	if digests["sha256"] == nil {
		return d, nil
	}
	h, err := text(digests, "sha256")
	if err != nil {
		return d, err
	}
	return diskimage.ParseDigest("sha256:" + h)
}

// about reports whether the statement has that subject.
func (s *statement) about(d diskimage.Digest) bool {
	for _, have := range s.subjects {
		if have == d {
			return true
		}
	}
	return false
}

// encodeStatement returns the statement about one manifest. The same arguments
// give the same bytes.
func encodeStatement(subject diskimage.Digest, predicateType string, predicate json.RawMessage) ([]byte, error) {
	type resource struct {
		Digest map[string]string `json:"digest"`
	}
	if predicate == nil {
		predicate = json.RawMessage("{}")
	}
	if !json.Valid(predicate) || bytes.TrimLeft(predicate, " \t\r\n")[0] != '{' {
		return nil, errors.New("predicate: not a JSON object")
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(struct {
		Type          string          `json:"_type"`
		Subject       []resource      `json:"subject"`
		PredicateType string          `json:"predicateType"`
		Predicate     json.RawMessage `json:"predicate"`
	}{statementV1, []resource{{map[string]string{"sha256": hex.EncodeToString(subject[:])}}}, predicateType, predicate})
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// simplePayloadType is critical.type of cosign's older signatures.
const simplePayloadType = "cosign container image signature"

// parseSimple reads the payload of an older signature ("simple signing"), whose
// signature was verified, and returns the manifest that it is about.
func parseSimple(b []byte) (d diskimage.Digest, err error) {
	m, err := members(b)
	if err != nil {
		return d, fmt.Errorf("payload: %w", err)
	}
	critical, err := members(m["critical"])
	if err != nil {
		return d, fmt.Errorf("payload: critical: %w", err)
	}
	kind, err := text(critical, "type")
	if err != nil {
		return d, fmt.Errorf("payload: critical: %w", err)
	}
	if kind != simplePayloadType {
		return d, fmt.Errorf("payload: type %q, want %q", kind, simplePayloadType)
	}
	image, err := members(critical["image"])
	if err != nil {
		return d, fmt.Errorf("payload: critical.image: %w", err)
	}
	s, err := text(image, "docker-manifest-digest")
	if err != nil {
		return d, fmt.Errorf("payload: critical.image: %w", err)
	}
	return diskimage.ParseDigest(s)
}
