package berth

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func TestTrimVM(t *testing.T) {
	made := func(changes ...func(*v1alpha1.VirtualMachineSpec)) *v1alpha1.VirtualMachine {
		vm := vm(changes...)
		vm.ObjectMeta = metav1.ObjectMeta{
			Namespace: "shop", Name: "web", UID: "u", ResourceVersion: "7", Generation: 3, Finalizers: []string{DiskFinalizer},
			Annotations: map[string]string{"a": "a"}, Labels: map[string]string{"a": "a"},
		}
		vm.Status.NodeName = "n1"
		return vm
	}
	const most = 16 << 10
	usual, kept := made(everything), made(everything)
	if err := TrimVM(kept, most); err != nil || Incomplete(kept) {
		t.Fatalf("%v; incomplete: %t", err, Incomplete(kept))
	}
	if diff := cmp.Diff([]any{usual.Spec, usual.Status, usual.Finalizers}, []any{kept.Spec, kept.Status, kept.Finalizers}); diff != "" {
		t.Errorf("of a usual one, -want +got:\n%s", diff)
	}
	if kept.Annotations != nil || kept.Labels != nil {
		t.Errorf("kept %v, %v", kept.Annotations, kept.Labels)
	}

	stub := &v1alpha1.VirtualMachine{TypeMeta: usual.TypeMeta, Status: usual.Status, ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "web", UID: "u", ResourceVersion: "7", Generation: 3, Annotations: map[string]string{annotationIncomplete: "true"},
	}}
	large := made(func(s *v1alpha1.VirtualMachineSpec) {
		s.NodeSelector = map[string]string{"a": strings.Repeat("v", most)}
	})
	forged := made(everything)
	forged.Annotations[annotationIncomplete] = "as its user says"
	for name, vm := range map[string]*v1alpha1.VirtualMachine{"large": large, "said to be large": forged} {
		for range 2 {
			if err := TrimVM(vm, most); err != nil || !Incomplete(vm) {
				t.Fatalf("%s: %v; incomplete: %t", name, err, Incomplete(vm))
			}
			if diff := cmp.Diff(stub, vm); diff != "" {
				t.Errorf("%s, -want +got:\n%s", name, diff)
			}
		}
	}
}
