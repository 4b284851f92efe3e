package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// TestExamples applies each file of examples/, waits until its guests are as
// their specs ask, and deletes it. The lab reaches no public registry, so images
// are replaced by its own of the same kind; nothing else is.
func TestExamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(env.Root(), "examples", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("finding examples: %v", err)
	}
	for _, file := range files {
		if slices.Contains([]string{"web.yaml", tenantsExample}, filepath.Base(file)) {
			continue // TestDemo and TestBounds apply them and ask more of them
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			l := start(t)
			objects := readExample(t, file)
			for _, o := range objects {
				o.SetNamespace(l.ns)
				if err := l.Create(t.Context(), o); err != nil {
					t.Fatalf("creating %s %s: %v", o.GetKind(), o.GetName(), err)
				}
			}
			for _, o := range objects {
				awaitExample(l, o)
			}
			for _, o := range objects {
				if err := l.Delete(t.Context(), o); err != nil {
					t.Errorf("deleting %s %s: %v", o.GetKind(), o.GetName(), err)
				}
			}
			for _, o := range objects {
				if o.GetKind() == "VirtualMachine" {
					l.vm(o.GetName(), "to be gone", isGone)
					nothingLeft(l, string(o.GetUID()))
				}
			}
		})
	}
}

func readExample(t *testing.T, file string) []*unstructured.Unstructured {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return decodeExample(t, file, raw)
}

// decodeExample reads the objects of a manifest that has been read from a file, with the lab's images in them.
func decodeExample(t *testing.T, file string, raw []byte) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := documents.Decode(o); errors.Is(err, io.EOF) {
			return objects
		} else if err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		useLabImages(o)
		objects = append(objects, o)
	}
}

// useLabImages replaces images by the lab's: its kernel, and for every disk that has one its Debian.
func useLabImages(o *unstructured.Unstructured) {
	spec, ok := o.Object["spec"].(map[string]any)
	switch {
	case ok && o.GetKind() == "VirtualMachineImage":
		spec["image"] = os.Getenv("LAB_IMAGE_CLOUD")
		return
	case ok && o.GetKind() == "VirtualMachineCommit":
		spec["image"] = os.Getenv("LAB_REGISTRY") + "/examples/" + o.GetName() + ":1"
		delete(spec, "pushSecretName")
		return
	case !ok || o.GetKind() != "VirtualMachine":
		return
	}
	if kernel, ok := spec["kernel"].(map[string]any); ok {
		kernel["image"] = os.Getenv("LAB_IMAGE_KERNEL")
	}
	disks, _ := spec["disks"].([]any)
	for _, d := range disks {
		if disk := d.(map[string]any); disk["image"] != nil {
			disk["image"] = os.Getenv("LAB_IMAGE_CLOUD")
		}
	}
}

// awaitExample waits for what the object's own spec promises.
func awaitExample(l *lab, o *unstructured.Unstructured) {
	l.Helper()
	switch o.GetKind() {
	case "VirtualMachine":
		l.vm(o.GetName(), "to be as its spec asks", asAsked)
	case "VirtualMachineImage":
		l.kubectl("", "wait", "--for=condition=Ready", "--timeout=10m", "vmimage/"+o.GetName())
	case "VirtualMachineCommit":
		l.kubectl("", "wait", "--for=condition=Complete", "--timeout=10m", "vmcommit/"+o.GetName())
	case "Service":
		l.kubectl("", "wait", "--for=jsonpath={.endpoints[0].conditions.ready}=true", "--timeout=2m",
			"endpointslice", "-l", "kubernetes.io/service-name="+o.GetName())
	}
}

// asAsked: a guest that is to end has succeeded, one that is to run is Ready, any other has the phase that it asks for.
func asAsked(vm *v1alpha1.VirtualMachine) bool {
	switch {
	case vm == nil:
		return false
	case vm.Spec.State != v1alpha1.StateRunning:
		return string(vm.Status.Phase) == string(vm.Spec.State)
	case vm.Spec.RestartPolicy == v1alpha1.RestartNever:
		return vm.Status.Phase == v1alpha1.PhaseSucceeded
	default:
		return isReady(vm)
	}
}
