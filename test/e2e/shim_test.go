package e2e

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestShimKilled: the shim is the guest's PID 1. Killed, the guest ends with it, though the runtime waits for QEMU
// before it calls the container ended, and kubelet restarts both in place.
func TestShimKilled(t *testing.T) {
	l := start(t)
	l.apply(tiny)
	vm := l.vm("tiny", "to be Ready", isReady)
	before := l.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
	l.logs("tiny").await("tiny: up")
	l.onNode(vm.Status.NodeName, "sh", "-c", fmt.Sprintf(
		`for p in $(pgrep -f ^/berth-shim); do if grep -q %s /proc/$p/cgroup; then kill -KILL $p; fi; done`, before.UID))

	// The operator counts kubelet's restarts, and may see one before the agent tells how the guest ended.
	vm = l.vm("tiny", "to be Ready again", func(vm *v1alpha1.VirtualMachine) bool {
		return isReady(vm) && vm.Status.Restarts == 1 && vm.Status.LastExit != nil
	})
	if e := vm.Status.LastExit; e.Reason != v1alpha1.ReasonShimLost || e.ExitCode != 137 {
		t.Errorf("last exit is %+v, want ShimLost and 137", e)
	}
	after := l.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
	if after.UID != before.UID || after.Status.PodIP != before.Status.PodIP {
		t.Errorf("the berth or its address changed: %s %s, was %s %s", after.UID, after.Status.PodIP, before.UID, before.Status.PodIP)
	}
	l.logs("tiny").await("tiny: up")
}
