package docs

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/test/env"
)

// TestAPI holds the reference of the API against the CRDs. Fields without a
// description are Kubernetes' own, and are left to its documentation.
func TestAPI(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(env.Root(), "config", "crd", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("finding CRDs: %v", err)
	}
	var kinds []apiextensions.CustomResourceDefinition
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd apiextensions.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(raw, &crd); err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		kinds = append(kinds, crd)
	}
	slices.SortFunc(kinds, func(a, b apiextensions.CustomResourceDefinition) int {
		return len(a.Spec.Names.Kind) - len(b.Spec.Names.Kind)
	})
	var text strings.Builder
	for _, crd := range kinds {
		root := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
		for _, part := range []string{"spec", "status"} {
			if schema, ok := root.Properties[part]; ok {
				fmt.Fprintf(&text, "\n## %s %s\n\n| field | type | default | |\n|---|---|---|---|\n", crd.Spec.Names.Kind, part)
				fields(&text, "", &schema)
			}
		}
	}
	section(t, "docs/api.md", "fields", text.String())
}

// fields writes a line for each field below a schema, those of lists as field[].
func fields(text *strings.Builder, path string, s *apiextensions.JSONSchemaProps) {
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		field := s.Properties[name]
		if field.Description == "" {
			continue
		}
		at, inner := path+name, &field
		if field.Items != nil && field.Items.Schema != nil {
			at, inner = at+"[]", field.Items.Schema
		}
		required := ""
		if slices.Contains(s.Required, name) {
			required = " **required**"
		}
		fmt.Fprintf(text, "| `%s` | %s | %s | %s%s |\n", at, kind(inner), standard(field.Default), prose(field.Description, name), required)
		fields(text, at+".", inner)
	}
}

func kind(s *apiextensions.JSONSchemaProps) string {
	var words []string
	for _, e := range s.Enum {
		words = append(words, strings.Trim(string(e.Raw), `"`))
	}
	switch {
	case len(words) > 0:
		return strings.Join(words, ", ")
	case s.XIntOrString:
		return "quantity"
	case s.Format == "date-time":
		return "time"
	}
	return s.Type
}

func standard(v *apiextensions.JSON) string {
	var text any
	switch {
	case v == nil:
		return ""
	case json.Unmarshal(v.Raw, &text) != nil || strings.HasPrefix(string(v.Raw), "{"):
		return "" // its fields say it
	}
	return "`" + strings.Trim(string(v.Raw), `"`) + "`"
}

// prose is a description in a table's cell, without the field's name in front.
func prose(description, name string) string {
	text := strings.Join(strings.Fields(description), " ")
	for _, verb := range []string{" is ", " are "} {
		text = strings.TrimPrefix(text, name+verb)
	}
	return strings.ReplaceAll(text, "|", `\|`)
}
