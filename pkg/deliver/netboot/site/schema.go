package site

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
)

// Schema returns the JSON Schema (draft 2020-12) of SITE.yaml, made from the
// tags that Load follows. It takes every file that Load takes.
func Schema() []byte {
	root := schemaOf(reflect.TypeFor[Site]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "imgpipe site"
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(root); err != nil {
		panic(err) // maps, lists and texts always encode
	}
	return b.Bytes()
}

func schemaOf(t reflect.Type) map[string]any {
	properties, required := map[string]any{}, []string{}
	for _, f := range fields(t) {
		p := schemaOfField(f, f.Type)
		p["description"] = f.Tag.Get("doc")
		if d := f.Tag.Get("default"); d != "" {
			if f.Type.Kind() == reflect.Int {
				p["default"] = number(d)
			} else {
				p["default"] = d
			}
		}
		properties[f.Tag.Get("key")] = p
		if f.Tag.Get("required") != "" {
			required = append(required, f.Tag.Get("key"))
		}
	}
	out := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}

func schemaOfField(f reflect.StructField, t reflect.Type) map[string]any {
	switch {
	case t.Kind() == reflect.Pointer:
		return schemaOfField(f, t.Elem())
	case t == sourceType:
		return map[string]any{"anyOf": []any{map[string]any{"type": "string"}, schemaOf(t)}}
	case t == sizeType:
		return map[string]any{"type": []string{"string", "integer"}}
	case t == durationType:
		return map[string]any{"type": "string"}
	case t.Kind() == reflect.Struct:
		return schemaOf(t)
	case t.Kind() == reflect.Map:
		return map[string]any{"type": "object", "propertyNames": map[string]any{"pattern": varRE.String()}, "additionalProperties": schemaOfField(f, t.Elem())}
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem())}
	case t.Kind() == reflect.Slice:
		item := map[string]any{"type": "string", "minLength": 1}
		return map[string]any{"anyOf": []any{item, map[string]any{"type": "array", "items": item}}}
	case t.Kind() == reflect.Int:
		return map[string]any{"type": "integer", "minimum": number(f.Tag.Get("min")), "maximum": number(f.Tag.Get("max"))}
	case t.Kind() == reflect.Bool:
		return map[string]any{"type": "boolean"}
	}
	out := map[string]any{"type": "string", "minLength": 1}
	if enum := f.Tag.Get("enum"); enum != "" {
		out["enum"] = strings.Split(enum, ",")
	}
	return out
}
