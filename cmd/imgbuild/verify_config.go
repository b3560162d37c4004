package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// configDifferences are those of what two configs say of their images, at most limit.
func configDifferences(a, b oci.Config, limit int) (out []content.Difference, err error) {
	var values [2]any
	for i, c := range []oci.Config{a, b} {
		text, err := json.Marshal(c)
		if err != nil {
			return nil, err
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&values[i]); err != nil {
			return nil, err
		}
	}
	jsonDifferences("", values[0], values[1], func(path, what string) bool {
		out = append(out, content.Difference{Partition: "config", What: path + ": " + what})
		return len(out) < limit
	})
	return out, nil
}

// jsonDifferences calls say for every value at a path that two JSON values do not have
// in common, until it returns false.
func jsonDifferences(path string, a, b any, say func(path, what string) bool) bool {
	switch a := a.(type) {
	case map[string]any:
		if b, ok := b.(map[string]any); ok {
			names := maps.Clone(a)
			maps.Copy(names, b)
			for _, name := range slices.Sorted(maps.Keys(names)) {
				at := name
				if path != "" {
					at = path + "." + name
				}
				if !jsonDifferences(at, a[name], b[name], say) {
					return false
				}
			}
			return true
		}
	case []any:
		if b, ok := b.([]any); ok {
			for i := range max(len(a), len(b)) {
				var v, w any
				if i < len(a) {
					v = a[i]
				}
				if i < len(b) {
					w = b[i]
				}
				if !jsonDifferences(fmt.Sprintf("%s[%d]", path, i), v, w, say) {
					return false
				}
			}
			return true
		}
	}
	x, y := shortJSON(a), shortJSON(b)
	return x == y || say(path, x+", now "+y)
}

// shortJSON is a value for a line of text.
func shortJSON(v any) string {
	if v == nil {
		return "nothing"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	if len(b) > 200 {
		return string(b[:200]) + "…"
	}
	return string(b)
}
