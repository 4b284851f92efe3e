package berth

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// liveFields of the spec act on a berth as it is; every other field takes a new one.
var liveFields = []string{"state", "restartedAt"}

// fingerprint maps each field of a spec that shapes its berth to a hash.
func fingerprint(spec *v1alpha1.VirtualMachineSpec) (map[string]string, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encoding spec: %w", err)
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("decoding spec: %w", err)
	}
	prints := make(map[string]string, len(fields))
	for name, value := range fields {
		if !slices.Contains(liveFields, name) {
			sum := sha256.Sum256(value)
			prints[name] = hex.EncodeToString(sum[:6])
		}
	}
	return prints, nil
}

// Drift returns the fields of the spec, sorted, that differ from what the berth
// was made from. A berth whose record cannot be read differs in all of them.
func Drift(vm *v1alpha1.VirtualMachine, pod *corev1.Pod) ([]string, error) {
	now, err := fingerprint(&vm.Spec)
	if err != nil {
		return nil, err
	}
	then := map[string]string{}
	if json.Unmarshal([]byte(pod.Annotations[AnnotationSpec]), &then) != nil {
		then = nil // somebody wrote over it: the berth fits nothing
	}
	var fields []string
	for name, print := range now {
		if then[name] != print {
			fields = append(fields, name)
		}
	}
	for name := range then {
		if _, ok := now[name]; !ok {
			fields = append(fields, name)
		}
	}
	slices.Sort(fields)
	return fields, nil
}
