package berth

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// annotationIncomplete marks a VirtualMachine of which a cache keeps little.
const annotationIncomplete = "berth.dev/incomplete"

// TrimVM keeps of a VirtualMachine, for a cache of many thousands, what decisions depend on. Of one that has more than
// most bytes even so, it keeps who that is and its status: the API bounds many fields, and no sum of affinities, probes,
// a berth's labels and finalizers. Incomplete tells of it, and the API server has the rest. What is trimmed again, as
// client-go may do, stays as it is.
func TrimVM(vm *v1alpha1.VirtualMachine, most int) error {
	trimmed := Incomplete(vm) // or its user says so: it is as good as any other
	vm.ManagedFields, vm.Annotations, vm.Labels, vm.OwnerReferences = nil, nil, nil, nil
	raw, err := json.Marshal([]any{vm.ObjectMeta, vm.Spec})
	if err != nil {
		return fmt.Errorf("measuring VirtualMachine %s/%s: %w", vm.Namespace, vm.Name, err)
	}
	if len(raw) <= most && !trimmed {
		return nil
	}
	vm.ObjectMeta = metav1.ObjectMeta{
		Namespace: vm.Namespace, Name: vm.Name, UID: vm.UID, ResourceVersion: vm.ResourceVersion, Generation: vm.Generation,
		CreationTimestamp: vm.CreationTimestamp, DeletionTimestamp: vm.DeletionTimestamp,
		Annotations: map[string]string{annotationIncomplete: "true"},
	}
	vm.Spec = v1alpha1.VirtualMachineSpec{}
	return nil
}

// Incomplete tells that a VirtualMachine is from a cache that keeps little of it. It says nothing of one from elsewhere.
func Incomplete(vm *v1alpha1.VirtualMachine) bool { return vm.Annotations[annotationIncomplete] != "" }
