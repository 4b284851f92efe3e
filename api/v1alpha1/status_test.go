package v1alpha1_test

import (
	"os"
	"path/filepath"
	"testing"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// TestStatusIsBounded: whoever has a node's token writes statuses, which everybody keeps in memory who watches.
func TestStatusIsBounded(t *testing.T) {
	files, err := filepath.Glob("../../config/crd/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("CRDs are %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd apiextensions.CustomResourceDefinition
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		for _, v := range crd.Spec.Versions {
			status := v.Schema.OpenAPIV3Schema.Properties["status"]
			unbounded(&status, crd.Spec.Names.Kind+".status", func(path, wants string) { t.Errorf("%s has no %s", path, wants) })
		}
	}
}

// unbounded calls tell for each part of a schema that may be of any size.
func unbounded(s *apiextensions.JSONSchemaProps, path string, tell func(path, wants string)) {
	switch {
	case s.Type == "string" && s.MaxLength == nil && s.Enum == nil && s.Format == "", s.XIntOrString && s.MaxLength == nil:
		tell(path, "maxLength")
	case s.Type == "array" && s.MaxItems == nil:
		tell(path, "maxItems")
	case s.AdditionalProperties != nil && s.MaxProperties == nil:
		tell(path, "maxProperties")
	}
	for name, p := range s.Properties {
		unbounded(&p, path+"."+name, tell)
	}
	if s.Items != nil && s.Items.Schema != nil {
		unbounded(s.Items.Schema, path+"[]", tell)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		unbounded(s.AdditionalProperties.Schema, path+"{}", tell)
	}
}
