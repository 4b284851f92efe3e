package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// whole has every object of the spec below which the schema has a default, and no more. One that others exclude is in another.
var whole = []string{`
memory: {size: 1Gi}
disks: [{name: root, image: a}]
kernel: {image: a}
cloudInit: {userDataSecretRef: {name: a}, networkDataSecretRef: {name: b}}
display: {}
readinessProbe: {grpc: {port: 1}}
livenessProbe: {grpc: {port: 1}}
startupProbe: {grpc: {port: 1}}
`, `
memory: {size: 1Gi}
disks: [{name: root, image: a}]
ignition: {secretRef: {name: a}}
`}

// Records are read through Default, so it must be what the API server does to a spec.
func TestDefaultIsTheSchemas(t *testing.T) {
	_, c := env.APIServer(t)
	var shown []any // as the API server returns them
	for i, yaml := range whole {
		name := fmt.Sprint("whole-", i)
		sent, read := object(t, name, yaml), object(t, name, yaml)
		if err := c.Create(t.Context(), read, client.FieldOwner("kubectl")); err != nil {
			t.Fatal(err)
		}
		var got, want v1alpha1.VirtualMachine
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(read.Object, &got); err != nil {
			t.Fatal(err)
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(sent.Object, &want); err != nil {
			t.Fatal(err)
		}
		v1alpha1.Default(&want.Spec)
		if !equality.Semantic.DeepEqual(want.Spec, got.Spec) {
			t.Errorf("-Default +API server:\n%s", cmp.Diff(want.Spec, got.Spec))
		}
		shown = append(shown, read.Object["spec"])
	}

	raw, err := os.ReadFile(filepath.Join(env.Root(), "config", "crd", "virtualmachines.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensions.CustomResourceDefinition
	if err := yaml.Unmarshal(raw, &crd); err != nil {
		t.Fatal(err)
	}
	spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	if seen := unseen(t, "spec", &spec, shown...); seen < 10 {
		t.Errorf("the schema has %d defaults", seen)
	}
}

// unseen fails the test for each default of a schema that none of the objects shows, and counts them all.
func unseen(t *testing.T, path string, s *apiextensions.JSONSchemaProps, objects ...any) (count int) {
	if s.Default != nil {
		count++
		if !slices.ContainsFunc(objects, func(o any) bool { return o != nil }) {
			t.Errorf("nothing in this test shows the default of %s, %s: extend whole", path, s.Default.Raw)
		}
	}
	if s.Items != nil && s.Items.Schema != nil {
		var first []any
		for _, o := range objects {
			if items, _ := o.([]any); len(items) > 0 {
				first = append(first, items[0])
			}
		}
		return count + unseen(t, path+"[]", s.Items.Schema, first...)
	}
	for name, property := range s.Properties {
		var values []any
		for _, o := range objects {
			if fields, ok := o.(map[string]any); ok {
				values = append(values, fields[name])
			}
		}
		count += unseen(t, path+"."+name, &property, values...)
	}
	return count
}

func TestDefaultKeepsWhatIsThere(t *testing.T) {
	var given v1alpha1.VirtualMachineSpec
	if err := json.Unmarshal([]byte(`{"state":"Stopped","restartPolicy":"Never","terminationGracePeriodSeconds":0,
		"cpu":{"cores":2,"sockets":3,"threads":4,"model":"EPYC"},"memory":{"size":"1Gi"},"networks":[],
		"kernel":{"image":"a","kernelPath":"/k","commandLine":"c"},"cloudInit":{"userDataSecretRef":{"name":"a","key":"k"}},"guestTools":"None","imagePullPolicy":"Never","volumeClaimRetention":"Delete","display":{"type":"Virtio"},
		"readinessProbe":{"grpc":{"port":1,"service":"s"}}}`), &given); err != nil {
		t.Fatal(err)
	}
	got := given.DeepCopy()
	v1alpha1.Default(got)
	if diff := cmp.Diff(&given, got); diff != "" {
		t.Errorf("-given +defaulted:\n%s", diff)
	}
}
