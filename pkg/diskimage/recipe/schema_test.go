package recipe

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/goccy/go-yaml"
)

// validate is as much of JSON Schema as Schema uses; any other keyword is an
// error, so that the schema cannot say what nobody checks.
func validate(schema map[string]any, v any, at string) (errs []string) {
	bad := func(format string, args ...any) { errs = append(errs, at+": "+fmt.Sprintf(format, args...)) }
	for key, arg := range schema {
		switch key {
		case "$schema", "title", "description", "default":
		case "type":
			if !isType(arg.(string), v) {
				bad("%v is no %v", v, arg)
			}
		case "enum":
			found := false
			for _, x := range arg.([]any) {
				found = found || reflect.DeepEqual(x, v)
			}
			if !found {
				bad("%v is not in %v", v, arg)
			}
		case "const":
			if v != arg {
				bad("%v is not %v", v, arg)
			}
		case "pattern":
			if s, ok := v.(string); ok && !regexp.MustCompile(goPattern(arg.(string))).MatchString(s) {
				bad("%q does not match %v", s, arg)
			}
		case "minLength":
			if s, ok := v.(string); ok && len(s) < int(arg.(float64)) {
				bad("%q is too short", s)
			}
		case "minimum", "maximum":
			if n, ok := v.(float64); ok && (key == "minimum" && n < arg.(float64) || key == "maximum" && n > arg.(float64)) {
				bad("%v is beyond %v", n, arg)
			}
		case "anyOf":
			errs = append(errs, anyOf(arg.([]any), v, at)...)
		case "items":
			list, _ := v.([]any)
			for i, x := range list {
				errs = append(errs, validate(arg.(map[string]any), x, fmt.Sprintf("%s[%d]", at, i))...)
			}
		case "required", "properties", "additionalProperties", "propertyNames":
			errs = append(errs, object(key, arg, schema, v, at)...)
		case "if":
			branch := "then"
			if len(validate(arg.(map[string]any), v, at)) > 0 {
				branch = "else"
			}
			errs = append(errs, validate(schema[branch].(map[string]any), v, at)...)
		case "then", "else":
		default:
			bad("keyword %s is not checked", key)
		}
	}
	return errs
}

func goPattern(s string) string { return strings.ReplaceAll(s, `\u00`, `\x`) }

func isType(name string, v any) bool {
	switch name {
	case "object":
		_, ok := v.(map[string]any)
		return ok
	case "array":
		_, ok := v.([]any)
		return ok
	case "string":
		_, ok := v.(string)
		return ok
	case "boolean":
		_, ok := v.(bool)
		return ok
	}
	n, ok := v.(float64)
	return ok && (name == "number" || n == float64(int64(n)))
}

func anyOf(schemas []any, v any, at string) (errs []string) {
	for _, s := range schemas {
		e := validate(s.(map[string]any), v, at)
		if len(e) == 0 {
			return nil
		}
		errs = append(errs, e...)
	}
	return errs
}

func object(key string, arg any, schema map[string]any, v any, at string) (errs []string) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	properties, _ := schema["properties"].(map[string]any)
	if key == "required" {
		for _, name := range arg.([]any) {
			if _, ok := m[name.(string)]; !ok {
				errs = append(errs, fmt.Sprintf("%s: %v is missing", at, name))
			}
		}
		return errs
	}
	for name, x := range m {
		p, known := properties[name].(map[string]any)
		switch rest, free := arg.(map[string]any); {
		case key == "properties" && known:
			errs = append(errs, validate(p, x, at+"."+name)...)
		case key == "additionalProperties" && free:
			errs = append(errs, validate(rest, x, at+"."+name)...)
		case key == "additionalProperties" && !known:
			errs = append(errs, fmt.Sprintf("%s: unknown key %s", at, name))
		case key == "propertyNames":
			errs = append(errs, validate(rest, name, at+"."+name)...)
		}
	}
	return errs
}

// asJSON is what an editor hands to the schema.
func asJSON(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	v = nil
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func parsedSchema(t *testing.T) map[string]any {
	t.Helper()
	var schema map[string]any
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

func TestTheSchemaTakesWhatLoadTakes(t *testing.T) {
	schema := parsedSchema(t)
	texts := map[string][]byte{"every key": []byte(everyKey), "ok": []byte(okRecipe),
		"of a few keys": []byte("extends: ok.yaml\nname: child\n")}
	if _, err := loadFS(fstest.MapFS{"ok.yaml": {Data: texts["ok"]}, "recipe.yaml": {Data: texts["of a few keys"]}}, "recipe.yaml", nil); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(recipesDir + "/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if texts[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		all, err := Matrix(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := Load(path, Options{Choose: all[0].Choose()})
		if err != nil {
			t.Fatal(err)
		}
		texts["resolved "+path] = []byte(show(t, r))
	}
	r, err := loadFS(everyFile, "recipe.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	texts["resolved every key"] = []byte(show(t, r))
	for name, text := range texts {
		if errs := validate(schema, asJSON(t, text), name); len(errs) > 0 {
			t.Errorf("%s", strings.Join(errs, "\n"))
		}
	}
}

func TestTheSchemaRefusesWhatLoadRefuses(t *testing.T) {
	schema := parsedSchema(t)
	for _, wrong := range []string{
		"paackages: [vim]", "release: 2026.1", "arch: i386", "epoch: 2026-11-01", "packages: [Vim]", "packages: vim", "packages: ~",
		"files: [{content: x}]", `files: [{path: /a, directory: false}]`, "files: [{path: /a, mode: 420}]", "users: [{name: Ops}]",
		"users: [{name: a, uid: -1}]", "users: [{name: a, uid: 1.5}]", "users: [{name: a, system: \"yes\"}]", "boot: {firmware: coreboot}",
		"disk: {size: 4GB}", "disk: {sectorSize: 520}", "disk: {partitions: [{name: a, type: swop}]}", "disk: {partitions: [{size: 1MiB}]}",
		"disk: {partitions: [{name: a, free: 100}]}", "test: {timeout: 5}", "vars: {a: [b]}", "vars: {1a: b}", "version: 2",
		"extends: [5]", "base: {debian: {suite: x, variant: y}}", "users: [{name: a, gecos: \"a:b\"}]",
	} {
		text := strings.ReplaceAll(okRecipe, "version: 1\n", "")
		if key, _, _ := strings.Cut(wrong, ":"); key != "version" {
			text = "version: 1\nkind: DiskImage\n"
		}
		if errs := validate(schema, asJSON(t, []byte(text+wrong+"\n")), "recipe"); len(errs) == 0 {
			t.Errorf("%s: the schema takes it", wrong)
		}
	}
}
