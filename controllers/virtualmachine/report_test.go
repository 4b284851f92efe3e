package virtualmachine

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

func TestReadySaysWhatIsInTheWay(t *testing.T) {
	const (
		running, disks = v1alpha1.ConditionRunning, v1alpha1.ConditionDisksReady
		registry       = v1alpha1.ReasonRegistryUnreachable
	)
	starts := says(running, false, v1alpha1.ReasonStarting)
	placed := condition.New(v1alpha1.ConditionScheduled, true, v1alpha1.ReasonScheduled, "")
	waits := condition.New(v1alpha1.ConditionScheduled, false, v1alpha1.ReasonUnschedulable, "no memory")
	passing := func(pod *corev1.Pod) {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	waiting := func(reason string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			waits := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "kubelet's words"}}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "guest", State: waits}}
		}
	}
	for name, tc := range map[string]struct {
		seen snapshot
		is   string
	}{
		"no guest is wanted":                     {snapshot{vm: vm(stopped)}, ""},
		"there is no berth yet":                  {snapshot{vm: vm()}, "False Unschedulable no memory"},
		"the berth has no node":                  {snapshot{vm: vm(neverScheduled), berth: pod(withoutNode)}, "False Unschedulable no memory"},
		"its agent has not spoken":               {snapshot{vm: vm(), berth: pod()}, "False Pending " + v1alpha1.ReasonPending.When()},
		"its container is created":               {snapshot{vm: vm(), berth: pod(waiting("ContainerCreating"))}, "False Pending " + v1alpha1.ReasonPending.When()},
		"its shim cannot be pulled":              {snapshot{vm: vm(), berth: pod(), notStarted: "ErrImagePull: words"}, "False BerthNotStarted kubelet does not run the berth's container: ErrImagePull: words"},
		"nor later":                              {snapshot{vm: vm(starts), berth: pod(), notStarted: "ImagePullBackOff: words"}, "False BerthNotStarted kubelet does not run the berth's container: ImagePullBackOff: words"},
		"it starts":                              {snapshot{vm: vm(starts, says(disks, true, v1alpha1.ReasonDisksReady)), berth: pod()}, "False Starting " + v1alpha1.ReasonStarting.When()},
		"its image is pulled":                    {snapshot{vm: vm(starts, says(disks, false, v1alpha1.ReasonPullingImage)), berth: pod()}, "False Starting " + v1alpha1.ReasonStarting.When()},
		"its image cannot be had":                {snapshot{vm: vm(starts, says(disks, false, registry)), berth: pod()}, "False RegistryUnreachable " + registry.When()},
		"it runs, and a disk is to come":         {snapshot{vm: vm(says(running, true, v1alpha1.ReasonStarted), says(disks, false, registry)), berth: pod(passing)}, "True Ready " + v1alpha1.ReasonReady.When()},
		"its probes fail":                        {snapshot{vm: vm(says(running, true, v1alpha1.ReasonStarted)), berth: pod()}, "False ProbesFailing the guest runs, but its probes do not pass yet"},
		"it resets again and again":              {snapshot{vm: vm(says(running, true, v1alpha1.ReasonGuestResetLoop)), berth: pod(passing)}, "False GuestResetLoop " + v1alpha1.ReasonGuestResetLoop.When()},
		"it ended for good, and its pod is gone": {snapshot{vm: vm(never, released, ended(v1alpha1.PhaseFailed), exited(v1alpha1.ReasonPoweredOff, 3, ""))}, "False PoweredOff " + v1alpha1.ReasonPoweredOff.When() + " Its exit code is 3."},
		"so it did, in its agent's words":        {snapshot{vm: vm(never, released, ended(v1alpha1.PhaseFailed), exited(v1alpha1.ReasonPoweredOff, 3, "words"))}, "False PoweredOff words"},
		"so it did, and no agent saw it":         {snapshot{vm: vm(never, released, ended(v1alpha1.PhaseFailed), exited(v1alpha1.ReasonGuestPanicked, 134, "words"))}, "False PoweredOff " + v1alpha1.ReasonPoweredOff.When()},
		"it is stopped":                          {snapshot{vm: vm(says(running, true, v1alpha1.ReasonStarted)), berth: pod(passing, ends)}, "False Stopping " + v1alpha1.ReasonStopping.When()},
	} {
		t.Run(name, func(t *testing.T) {
			tc.seen.node = node()
			scheduled := placed
			if tc.seen.berth == nil || tc.seen.berth.Spec.NodeName == "" {
				scheduled = waits
			}
			is := ""
			if c := ready(tc.seen, scheduled); c != nil {
				is = string(c.Status) + " " + c.Reason + " " + c.Message
			}
			if diff := cmp.Diff(tc.is, is); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func exited(reason v1alpha1.Reason, code int32, message string) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) {
		vm.Status.LastExit = &v1alpha1.LastExit{Reason: reason, ExitCode: code, Message: message}
	}
}

// TestABerthIsNamedOnceItsDisksAreKept: an agent makes them for what the status names.
func TestABerthIsNamedOnceItsDisksAreKept(t *testing.T) {
	kept := statusOf(snapshot{vm: vm(neverScheduled), berth: pod(), node: node()}, nil)
	if kept.Berth == nil || kept.NodeName != "n1" {
		t.Errorf("the status names %+v on node %q", kept.Berth, kept.NodeName)
	}
	lacking := statusOf(snapshot{vm: vm(neverScheduled, noFinalizer), berth: pod(), node: node()}, errors.New("the finalizer could not be set"))
	if lacking.Berth != nil || lacking.NodeName != "" || lacking.Phase != v1alpha1.PhasePending {
		t.Errorf("without the finalizer the status is %s and names %+v on node %q", lacking.Phase, lacking.Berth, lacking.NodeName)
	}
}

func TestEventsTellWhatIsWrongOnce(t *testing.T) {
	recorder := events.NewFakeRecorder(4)
	r := &Reconciler{Events: recorder}
	r.recordEvents(vm(), nil, []metav1.Condition{
		condition.New(v1alpha1.ConditionScheduled, false, v1alpha1.ReasonUnschedulable, "no memory"),
		condition.New(v1alpha1.ConditionReady, false, v1alpha1.ReasonUnschedulable, "no memory"),
		condition.New(v1alpha1.ConditionStalled, true, v1alpha1.ReasonGuestPanicked, "told by the agent"),
		condition.New(v1alpha1.ConditionUpToDate, false, v1alpha1.ReasonChangesPending, "cpu"),
	})
	if n := len(recorder.Events); n != 1 {
		t.Errorf("there are %d Events, want one", n)
	}
}

// TestNothingIsWrittenTwice: what the operator makes of a status is what it takes for its own, or it would write at each look.
func TestNothingIsWrittenTwice(t *testing.T) {
	large := func(vm *v1alpha1.VirtualMachine) { vm.Spec.CPU = v1alpha1.CPU{Sockets: 2, Cores: 3, Threads: 2} }
	seen := snapshot{vm: vm(large, never, says(v1alpha1.ConditionRunning, false, v1alpha1.ReasonGuestPanicked)), berth: pod(failed), node: node()}
	s := statusOf(seen, nil)
	if s.VCPUs != 12 {
		t.Errorf("2 sockets of 3 cores of 2 threads are %d vCPUs", s.VCPUs)
	}
	if diff := cmp.Diff(s, owned(s)); diff != "" {
		t.Errorf("-made +own:\n%s", diff)
	}
}

// TestAddresses: those that lead to the guest.
func TestAddresses(t *testing.T) {
	dual := func(pod *corev1.Pod) { pod.Status.PodIPs = []corev1.PodIP{{IP: "fd00::7"}, {IP: "10.9.8.7"}} }
	s := statusOf(snapshot{vm: vm(), berth: pod(dual), node: node()}, nil)
	if diff := cmp.Diff([]string{"10.9.8.7"}, s.Addresses); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
