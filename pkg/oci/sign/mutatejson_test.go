package sign_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// mutateJSON changes a JSON document by its structure: members swapped with the
// donor's, doubled, renamed, removed, wrapped, or only written differently. What
// is no JSON stays as it is.
func mutateJSON(r *rand.Rand, b, donor []byte) []byte {
	var v, other any
	if json.Unmarshal(b, &v) != nil || json.Unmarshal(donor, &other) != nil {
		return b
	}
	objects, others := objectsIn(v), objectsIn(other)
	if len(objects) == 0 || len(others) == 0 {
		return b
	}
	o := objects[r.IntN(len(objects))]
	keys := slices.Sorted(maps.Keys(o))
	if len(keys) == 0 {
		return b
	}
	key := keys[r.IntN(len(keys))]
	switch r.IntN(9) {
	case 0: // the donor's value under the same name
		for _, d := range others {
			if x, ok := d[key]; ok {
				o[key] = x
				break
			}
		}
	case 1: // any value of the donor's
		d := others[r.IntN(len(others))]
		for _, x := range d {
			o[key] = x
			break
		}
	case 2:
		delete(o, key)
	case 3:
		o[strings.ToUpper(key[:min(1, len(key))])+key[min(1, len(key)):]] = o[key]
		if r.IntN(2) == 0 {
			delete(o, key)
		}
	case 4:
		o[key] = []any{o[key]}
	case 5:
		if list, ok := o[key].([]any); ok && len(list) > 0 {
			o[key] = append(list, list...)
		}
	case 6: // the same name twice, with the donor's value before or behind
		return double(r, b, key, donor)
	case 7:
		var out bytes.Buffer
		_ = json.Indent(&out, b, " ", "\t") // it was JSON
		return out.Bytes()
	case 8:
		o["more"] = o[key]
	}
	out, err := json.Marshal(v)
	if err != nil {
		return b
	}
	return out
}

// double writes a member a second time, with the value that the donor has.
func double(r *rand.Rand, b []byte, key string, donor []byte) []byte {
	name := fmt.Appendf(nil, "%q:", key)
	i, j := bytes.Index(b, name), bytes.Index(donor, name)
	if i < 0 || j < 0 {
		return b
	}
	var value json.RawMessage
	if json.NewDecoder(bytes.NewReader(donor[j+len(name):])).Decode(&value) != nil {
		return b
	}
	member := append(bytes.Clone(name), value...)
	if r.IntN(2) == 0 {
		return slices.Concat(b[:i], member, []byte(","), b[i:])
	}
	end := bytes.LastIndexByte(b, '}')
	return slices.Concat(b[:end], []byte(","), member, b[end:])
}

// objectsIn returns all objects in a JSON value.
func objectsIn(v any) (out []map[string]any) {
	switch x := v.(type) {
	case map[string]any:
		out = append(out, x)
		for _, k := range slices.Sorted(maps.Keys(x)) {
			out = append(out, objectsIn(x[k])...)
		}
	case []any:
		for _, e := range x {
			out = append(out, objectsIn(e)...)
		}
	}
	return out
}
