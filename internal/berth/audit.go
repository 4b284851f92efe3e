package berth

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// OwnerUID returns the UID of the VirtualMachine whose berth the pod claims to
// be. Only together with that VirtualMachine's status is the claim a proof.
func OwnerUID(pod metav1.Object) (types.UID, bool) {
	ref := metav1.GetControllerOf(pod)
	if ref == nil || ref.Kind != "VirtualMachine" || ref.APIVersion != v1alpha1.GroupVersion.String() {
		return "", false
	}
	return ref.UID, true
}

// Altered says how admission changed a berth so that its promises no longer
// hold, or "" when they do. Such a berth gets no guest.
func Altered(pod *corev1.Pod, vm *v1alpha1.VirtualMachine) string {
	spec := &pod.Spec
	for _, c := range spec.InitContainers {
		return fmt.Sprintf("container %q was added", c.Name)
	}
	for _, c := range spec.Containers {
		if c.Name != Container {
			return fmt.Sprintf("container %q was added", c.Name)
		}
	}
	if len(spec.Containers) != 1 {
		return "container guest was removed"
	}
	guest := spec.Containers[0]
	sc := guest.SecurityContext
	switch {
	case spec.HostNetwork, spec.HostPID, spec.HostIPC:
		return fmt.Sprintf("hostNetwork, hostPID or hostIPC is true (%t, %t, %t)", spec.HostNetwork, spec.HostPID, spec.HostIPC)
	case spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace:
		return "shareProcessNamespace is true"
	case spec.RuntimeClassName != nil: // only runc's and crun's containers can hold a guest, and nothing tells whose class it is
		return fmt.Sprintf("runtimeClassName is %s", *spec.RuntimeClassName)
	case sc == nil:
		return "securityContext of container guest was removed"
	case sc.Privileged != nil && *sc.Privileged:
		return "securityContext.privileged of container guest is true"
	case sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation:
		return "securityContext.allowPrivilegeEscalation of container guest is not false"
	case sc.Capabilities == nil:
		return "securityContext.capabilities of container guest was removed"
	case len(sc.Capabilities.Add) > 0:
		return fmt.Sprintf("securityContext.capabilities.add of container guest is %v", sc.Capabilities.Add)
	case !guest.Stdin || !guest.TTY:
		return fmt.Sprintf("stdin or tty of container guest is false (%t, %t)", guest.Stdin, guest.TTY)
	case len(guest.Command) > 0 || len(guest.Args) > 0:
		return fmt.Sprintf("container guest has the command %.100q, not the image's", append(slices.Clone(guest.Command), guest.Args...))
	case guest.Resources.Limits.Memory().Value() < vm.Spec.Memory.Size.Value()+shimMemory+qemuMemory:
		return fmt.Sprintf("the memory limit of container guest is %s, less than the guest needs", guest.Resources.Limits.Memory())
	}
	return ""
}

// Slim keeps of a berth what Berth reads of it, for a cache of many thousands: what Altered and Changes look at, what
// kubelet and scheduler say of it, and who it is.
func Slim(pod *corev1.Pod) {
	spec, status := &pod.Spec, &pod.Status
	pod.ManagedFields, pod.Labels = nil, nil
	pod.Annotations = map[string]string{
		AnnotationSpec: pod.Annotations[AnnotationSpec], AnnotationRestartedAt: pod.Annotations[AnnotationRestartedAt],
	}
	slim := corev1.PodSpec{
		NodeName: spec.NodeName, TerminationGracePeriodSeconds: spec.TerminationGracePeriodSeconds, RuntimeClassName: spec.RuntimeClassName,
		HostNetwork: spec.HostNetwork, HostPID: spec.HostPID, HostIPC: spec.HostIPC, ShareProcessNamespace: spec.ShareProcessNamespace,
	}
	for _, c := range spec.InitContainers {
		slim.InitContainers = append(slim.InitContainers, corev1.Container{Name: c.Name})
	}
	for _, c := range spec.Containers {
		slim.Containers = append(slim.Containers, corev1.Container{
			Name: c.Name, Command: c.Command, Args: c.Args, Stdin: c.Stdin, TTY: c.TTY, SecurityContext: c.SecurityContext,
			Resources: corev1.ResourceRequirements{Limits: c.Resources.Limits},
		})
	}
	said := corev1.PodStatus{Phase: status.Phase, PodIPs: status.PodIPs}
	for _, c := range status.Conditions {
		if c.Type == corev1.PodReady || c.Type == corev1.PodScheduled {
			said.Conditions = append(said.Conditions, corev1.PodCondition{Type: c.Type, Status: c.Status, Message: c.Message})
		}
	}
	for _, c := range status.ContainerStatuses {
		said.ContainerStatuses = append(said.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, RestartCount: c.RestartCount, State: c.State, LastTerminationState: c.LastTerminationState, Started: c.Started,
		})
	}
	pod.Spec, pod.Status = slim, said
}
