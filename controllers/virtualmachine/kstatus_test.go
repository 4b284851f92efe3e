package virtualmachine

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

// TestKstatus: what Flux, Helm and others make of a VirtualMachine by kstatus. The status is the operator's own, over
// what the agent wrote.
func TestKstatus(t *testing.T) {
	const running, disks = v1alpha1.ConditionRunning, v1alpha1.ConditionDisksReady
	runs := says(running, true, v1alpha1.ReasonStarted)
	starts := says(running, false, v1alpha1.ReasonStarting)
	poweredOff, panicked := says(running, false, v1alpha1.ReasonPoweredOff), says(running, false, v1alpha1.ReasonGuestPanicked)
	isPaused := says(running, false, v1alpha1.ReasonPaused)
	unreachable := func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Conditions = []metav1.Condition{condition.Unknown(running, v1alpha1.ReasonLibvirtUnreachable, "")}
	}
	paused := func(vm *v1alpha1.VirtualMachine) { vm.Spec.State = v1alpha1.StatePaused }
	passing := func(pod *corev1.Pod) {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	backsOff := func(pod *corev1.Pod) {
		waits := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: waits}}
	}
	lost := func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }
	for name, tc := range map[string]struct {
		seen     snapshot
		observed int64 // the generation that the status answers to, if the operator has not come by since
		is       string
	}{
		"just created":                  {snapshot{vm: vm(neverPlaced)}, -1, " InProgress"},
		"changed just now":              {snapshot{vm: vm(runs), berth: pod(passing), node: node()}, 1, " InProgress"},
		"without a berth yet":           {snapshot{vm: vm(neverPlaced)}, 0, "Pending InProgress"},
		"without a node yet":            {snapshot{vm: vm(neverPlaced), berth: pod(unbound)}, 0, "Pending InProgress"},
		"starting":                      {snapshot{vm: vm(starts), berth: pod(), node: node()}, 0, "Starting InProgress"},
		"its image is pulled":           {snapshot{vm: vm(starts, says(disks, false, v1alpha1.ReasonPullingImage)), berth: pod(), node: node()}, 0, "Starting InProgress"},
		"its image does not exist":      {snapshot{vm: vm(starts, says(disks, false, v1alpha1.ReasonImageNotFound)), berth: pod(), node: node()}, 0, "Starting InProgress"},
		"running":                       {snapshot{vm: vm(runs), berth: pod(passing), node: node()}, 0, "Running Current"},
		"running, with pending changes": {snapshot{vm: vm(runs), berth: pod(passing), node: node(), outdated: cores}, 0, "Running Current"},
		"its probes fail":               {snapshot{vm: vm(runs), berth: pod(), node: node()}, 0, "Running InProgress"},
		"libvirtd does not answer":      {snapshot{vm: vm(unreachable), berth: pod(passing), node: node()}, 0, "Unknown InProgress"},
		"its node is lost":              {snapshot{vm: vm(runs), berth: pod(passing), node: node(lost)}, 0, "Unknown InProgress"},
		"paused":                        {snapshot{vm: vm(paused, isPaused), berth: pod(), node: node()}, 0, "Paused Current"},
		"paused, and its node is lost":  {snapshot{vm: vm(paused, isPaused), berth: pod(), node: node(lost)}, 0, "Unknown InProgress"},
		"paused, and replaced":          {snapshot{vm: vm(paused, isPaused), berth: pod(ends), node: node()}, 0, "Stopping InProgress"},
		"to be resumed":                 {snapshot{vm: vm(isPaused), berth: pod(), node: node()}, 0, "Paused InProgress"},
		"stopping":                      {snapshot{vm: vm(stopped, runs), berth: pod(passing, ends), node: node()}, 0, "Stopping InProgress"},
		"stopped":                       {snapshot{vm: vm(stopped, released, poweredOff), node: node()}, 0, "Stopped Current"},
		"succeeded":                     {snapshot{vm: vm(onFailure, poweredOff), berth: pod(succeeded), node: node()}, 0, "Succeeded Current"},
		"succeeded, by kubelet alone":   {snapshot{vm: vm(never, unreachable), berth: pod(succeeded), node: node()}, 0, "Succeeded Current"},
		"powered off, to be restarted":  {snapshot{vm: vm(poweredOff), berth: pod(succeeded), node: node()}, 0, "Succeeded InProgress"},
		"failed":                        {snapshot{vm: vm(never, panicked), berth: pod(failed), node: node()}, 0, "Failed Failed"},
		"failed, as kubelet says first": {snapshot{vm: vm(never, runs), berth: pod(failed), node: node()}, 0, "Failed InProgress"},
		"failed, and its node is lost":  {snapshot{vm: vm(never, panicked), berth: pod(failed), node: node(lost)}, 0, "Unknown InProgress"},
		"evicted, to be restarted":      {snapshot{vm: vm(onFailure, panicked), berth: pod(failed), node: node()}, 0, "Failed InProgress"},
		"panicked again and again":      {snapshot{vm: vm(panicked), berth: pod(backsOff), node: node()}, 0, "BackOff InProgress"},
		"deleted":                       {snapshot{vm: vm(deleted, runs), berth: pod(ends), node: node()}, 0, "Stopping Terminating"},
	} {
		t.Run(name, func(t *testing.T) {
			vm := tc.seen.vm
			vm.Generation, vm.Status.ObservedGeneration = 2, tc.observed
			if tc.observed == 0 {
				s := statusOf(tc.seen, nil)
				for _, c := range s.Conditions {
					repeats := c.Type == v1alpha1.ConditionReady || c.Type == v1alpha1.ConditionStalled
					if !repeats && !v1alpha1.Reason(c.Reason).StandsIn(c.Type) {
						t.Errorf("the table of reasons does not have %s in %s", c.Reason, c.Type)
					}
				}
				vm.Status.Phase, vm.Status.ObservedGeneration = s.Phase, s.ObservedGeneration
				vm.Status.Conditions = slices.Concat(vm.Status.Conditions, s.Conditions)
			}
			object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(vm)
			if err != nil {
				t.Fatal(err)
			}
			result, err := status.Compute(&unstructured.Unstructured{Object: object})
			if err != nil {
				t.Fatal(err)
			}
			if is := string(vm.Status.Phase) + " " + result.Status.String(); is != tc.is {
				t.Errorf("is %q, want %q: %s, %+v", is, tc.is, result.Message, vm.Status.Conditions)
			}
		})
	}
}
