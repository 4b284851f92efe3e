package berth

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// Owner returns the controller reference to the VirtualMachine whose berth the pod claims to be, nil if it refers to none. The
// pod's own name says nothing. Only together with that VirtualMachine's status is the claim a proof.
func Owner(pod metav1.Object) *metav1.OwnerReference {
	ref := metav1.GetControllerOf(pod)
	if ref == nil || ref.Kind != "VirtualMachine" || ref.APIVersion != v1alpha1.GroupVersion.String() {
		return nil
	}
	return ref
}

// OwnerUID returns the UID of Owner.
func OwnerUID(pod metav1.Object) (types.UID, bool) {
	if ref := Owner(pod); ref != nil {
		return ref.UID, true
	}
	return "", false
}

// Mutation says what of a berth is no longer as the operator accepted it when it named it in the status, "" if all is. It
// looks at what the API server lets anybody change of a pod: image, debug containers and resources. What is found decides
// whether a guest starts, and never whether one goes on running.
func Mutation(pod *corev1.Pod, vm *v1alpha1.VirtualMachine) string {
	for _, c := range pod.Spec.EphemeralContainers {
		return fmt.Sprintf("debug container %q was added", c.Name)
	}
	named := vm.Status.Berth
	for _, c := range pod.Spec.Containers {
		switch limit := c.Resources.Limits.Memory(); {
		case named != nil && named.PodUID == pod.UID && named.Image != "" && c.Image != named.Image:
			return fmt.Sprintf("the image of container %s is %.200s, not %s", c.Name, c.Image, named.Image)
		case limit.Value() < vm.Spec.Memory.Size.Value():
			return fmt.Sprintf("the memory limit of container %s is %s, less than the guest's memory", c.Name, limit)
		}
	}
	return ""
}

// Image is the image of a berth's container.
func Image(pod *corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		return c.Image
	}
	return ""
}

// maxWaiting bounds what is kept of kubelet's words, in bytes: they may carry those of a registry.
const maxWaiting = 1024

func bounded(s corev1.ContainerState) corev1.ContainerState {
	if w := s.Waiting; w != nil && len(w.Message) > maxWaiting {
		s.Waiting = &corev1.ContainerStateWaiting{Reason: w.Reason, Message: strings.Clone(w.Message[:maxWaiting])}
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
