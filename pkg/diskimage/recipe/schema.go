package recipe

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Schema returns the JSON Schema (draft 2020-12) of one recipe file, made from
// the table that Load follows. It takes every file that Load takes; what needs
// the resolved recipe, such as which keys have to be there at all, is Load's.
func Schema() []byte {
	root := map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "imgpipe recipe",
		"if": map[string]any{"type": "object", "required": []string{"kind"},
			"properties": map[string]any{"kind": map[string]any{"enum": []string{KindEnvironment}}}},
		"then": fileSchema(environmentShape),
		"else": fileSchema(recipeShape),
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(root); err != nil {
		panic(err) // maps, lists and texts always encode
	}
	return b.Bytes()
}

// fileSchema returns the schema of a file of one kind. A file that others extend
// need not say its kind: it passes for that of an image.
func fileSchema(table *shape) map[string]any {
	m := table.schema()
	fileName := map[string]any{"type": "string", "minLength": 1}
	m["properties"].(map[string]any)["extends"] = map[string]any{
		"description": "Recipe files, relative to this one, that this one is laid over.",
		"anyOf":       []any{fileName, map[string]any{"type": "array", "items": fileName}},
	}
	m["properties"].(map[string]any)["matrix"] = matrixSchema(table)
	return m
}

// matrixSchema returns the schema of matrix: lists of what the keys themselves take.
func matrixSchema(table *shape) map[string]any {
	value := table.child("vars").value.schema()
	properties := map[string]any{"exclude": map[string]any{
		"description": "Combinations that there are not.",
		"type":        "array", "items": map[string]any{"type": "object", "additionalProperties": value},
	}}
	for _, key := range overridden {
		if s := table.child(key); s != nil {
			properties[key] = map[string]any{"type": "array", "items": s.schema()}
		}
	}
	return map[string]any{
		"description": "What varies: one image for each combination.",
		"type":        "object", "properties": properties,
		"additionalProperties": map[string]any{"type": "array", "items": value},
	}
}

func (s *shape) schema() map[string]any {
	switch {
	case s.kind == scalar:
		return s.value.schema()
	case s.kind == list:
		return map[string]any{"type": "array", "items": s.item.listed(s.key)}
	case s.value != nil:
		return map[string]any{
			"type": "object", "additionalProperties": s.value.schema(),
			"propertyNames": map[string]any{"pattern": varName.String()},
		}
	}
	properties := map[string]any{}
	for _, f := range s.fields {
		p := f.shape.schema()
		p["description"] = f.doc
		if f.preset != "" {
			p["default"] = f.defaultValue()
		}
		properties[f.name] = p
	}
	return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
}

// listed returns the schema of an item of a list, which has at least the field
// that names it.
func (s *shape) listed(key string) map[string]any {
	m := s.schema()
	if key != "" {
		m["required"] = []string{key}
	}
	return m
}

// defaultValue returns the default as JSON has it.
func (f *field) defaultValue() any {
	switch {
	case f.shape.kind == list:
		return []string{f.preset}
	case f.shape.value.class == number:
		return json.Number(f.preset)
	}
	return f.preset
}

// schema returns the schema of a scalar. A text with a variable in it passes for
// anything.
func (s *scalarShape) schema() map[string]any {
	var kinds []any
	if s.class&text != 0 {
		kinds = append(kinds, s.textSchema())
	}
	if s.class&number != 0 {
		n := map[string]any{"type": "number"}
		switch {
		case s.enum != nil:
			n = map[string]any{"enum": numbers(s.enum)}
		case s.most > 0:
			n = map[string]any{"type": "integer", "minimum": s.least, "maximum": s.most}
		}
		kinds = append(kinds, n)
	}
	if s.class&truth != 0 {
		b := map[string]any{"type": "boolean"}
		if len(s.enum) == 1 {
			b = map[string]any{"const": s.enum[0] == "true"}
		}
		kinds = append(kinds, b)
	}
	if s.class&text == 0 {
		kinds = append(kinds, map[string]any{"type": "string", "pattern": `\$\{`})
	}
	if len(kinds) == 1 {
		return kinds[0].(map[string]any)
	}
	return map[string]any{"anyOf": kinds}
}

func (s *scalarShape) textSchema() map[string]any {
	m := map[string]any{"type": "string"}
	switch {
	case s.enum != nil:
		m = map[string]any{"anyOf": []any{
			map[string]any{"enum": s.enum},
			map[string]any{"type": "string", "pattern": `\$\{`},
		}}
	case s.pattern != nil:
		m["pattern"] = "(?:" + strings.ReplaceAll(s.pattern.String(), `\x`, `\u00`) + `)|\$\{`
	}
	return m
}

func numbers(words []string) []json.Number {
	out := make([]json.Number, len(words))
	for i, w := range words {
		out[i] = json.Number(w)
	}
	return out
}
