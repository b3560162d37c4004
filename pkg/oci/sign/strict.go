package sign

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxMembers bounds the members of an object that is split.
const maxMembers = 100

// members splits a JSON object of at most maxMembers. Unlike encoding/json it
// takes names as they are written, refuses one that stands twice, and anything
// behind the object: two readers never see two different things.
func members(b []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	out := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("not a JSON object")
		}
		if _, ok := out[name]; ok {
			return nil, fmt.Errorf("%q stands twice", name)
		}
		if len(out) == maxMembers {
			return nil, fmt.Errorf("more than %d members", maxMembers)
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		out[name] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something stands behind the JSON object")
	}
	return out, nil
}

// text reads a member that must be a JSON string.
func text(m map[string]json.RawMessage, name string) (string, error) {
	raw, ok := m[name]
	if !ok {
		return "", fmt.Errorf("no %q", name)
	}
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", fmt.Errorf("%q is no text", name)
	}
	return *s, nil
}

// list reads a member that must be a JSON array of 1 to limit elements.
func list(m map[string]json.RawMessage, name string, limit int) (out []json.RawMessage, err error) {
	d := json.NewDecoder(bytes.NewReader(m[name]))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("%q is no list", name)
	}
	for d.More() {
		if len(out) == limit {
			return nil, fmt.Errorf("%q has more elements than %d", name, limit)
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		out = append(out, v)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q is empty", name)
	}
	return out, nil // m[name] was read as one value: the array ends
}

// encoded reads a member that must be base64 (RFC 4648, section 4).
func encoded(m map[string]json.RawMessage, name string) ([]byte, error) {
	s, err := text(m, name)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%q is no base64", name)
	}
	return b, nil
}
