package docs

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/test/env"
)

// TestFirstVMIsAccepted gives the README's first VM to a real API server, which knows our schema.
func TestFirstVMIsAccepted(t *testing.T) {
	manifest, _ := FirstVM(t)
	_, c := env.APIServer(t)
	vm := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(manifest, &vm.Object); err != nil {
		t.Fatalf("reading %s: %v", manifest, err)
	}
	vm.SetNamespace("default")
	if err := c.Create(t.Context(), vm, client.FieldValidation(metav1.FieldValidationStrict), client.DryRunAll); err != nil {
		t.Error(err)
	}
}
