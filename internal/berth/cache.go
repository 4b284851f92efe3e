package berth

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
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

// maxWaiting bounds what is kept of kubelet's words, in bytes: they may carry those of a registry.
const maxWaiting = 1024

func bounded(s corev1.ContainerState) corev1.ContainerState {
	if w := s.Waiting; w != nil && len(w.Message) > maxWaiting {
		s.Waiting = &corev1.ContainerStateWaiting{Reason: w.Reason, Message: strings.Clone(w.Message[:maxWaiting])}
	}
	return s
}

// Condition is the condition of a pod of that type, all zero if it is absent.
func Condition(pod *corev1.Pod, kind corev1.PodConditionType) (c corev1.PodCondition) {
	if i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == kind }); i >= 0 {
		c = pod.Status.Conditions[i]
	}
	return c
}

// ContainerStatus is what kubelet says of a berth's container, all zero if it has not said anything yet.
func ContainerStatus(pod *corev1.Pod) (s corev1.ContainerStatus) {
	if i := slices.IndexFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == Container }); i >= 0 {
		s = pod.Status.ContainerStatuses[i]
	}
	return s
}

// TrimForCache keeps of a berth what Berth reads of it, for a cache of many thousands: what Mutation and Changes look at, what
// kubelet and scheduler say of it, and who it is.
func TrimForCache(pod *corev1.Pod) {
	spec, status := &pod.Spec, &pod.Status
	pod.ManagedFields, pod.Labels = nil, nil
	pod.Annotations = map[string]string{
		AnnotationSpec: pod.Annotations[AnnotationSpec], AnnotationRestartedAt: pod.Annotations[AnnotationRestartedAt],
		AnnotationErrand: pod.Annotations[AnnotationErrand],
	}
	trimmed := corev1.PodSpec{NodeName: spec.NodeName, TerminationGracePeriodSeconds: spec.TerminationGracePeriodSeconds}
	if c := spec.SecurityContext; c != nil && c.FSGroup != nil {
		trimmed.SecurityContext = &corev1.PodSecurityContext{FSGroup: c.FSGroup}
	}
	for _, c := range spec.EphemeralContainers {
		trimmed.EphemeralContainers = append(trimmed.EphemeralContainers,
			corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: c.Name}})
	}
	for _, c := range spec.Containers {
		trimmed.Containers = append(trimmed.Containers, corev1.Container{
			Name: c.Name, Image: c.Image, Resources: corev1.ResourceRequirements{Limits: c.Resources.Limits},
		})
	}
	said := corev1.PodStatus{Phase: status.Phase, Reason: status.Reason, PodIPs: status.PodIPs, StartTime: status.StartTime}
	for _, c := range status.Conditions {
		if c.Type == corev1.PodReady || c.Type == corev1.PodScheduled || c.Type == corev1.DisruptionTarget {
			said.Conditions = append(said.Conditions, corev1.PodCondition{Type: c.Type, Status: c.Status, Message: c.Message})
		}
	}
	for _, c := range status.ContainerStatuses {
		said.ContainerStatuses = append(said.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, RestartCount: c.RestartCount, State: bounded(c.State), LastTerminationState: c.LastTerminationState, Started: c.Started,
		})
	}
	pod.Spec, pod.Status = trimmed, said
}
