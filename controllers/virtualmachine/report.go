package virtualmachine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
)

// ownConditions are those that the operator writes.
var ownConditions = []string{v1alpha1.ConditionScheduled, v1alpha1.ConditionReady, v1alpha1.ConditionStalled}

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines/status,verbs=patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch;update

// quiet is how long a berth that comes or goes stays unreported as long as all is well: by then it mostly is there, or gone.
const quiet = 3 * time.Second

// report writes what Kubernetes knows of the guest, if it differs from what
// stands there. failure is what act came back with. It returns when to look
// again for want of something worth writing.
func (r *Reconciler) report(ctx context.Context, seen snapshot, failure error) (time.Duration, error) {
	if seen.vm == nil {
		return 0, nil
	}
	want, have := statusOf(seen, failure), owned(&seen.vm.Status)
	if wait := seen.underWay(want, have); wait > 0 {
		return wait, nil
	}
	wrote, err := r.Status.Write(ctx, seen.vm, want, have)
	if wrote {
		r.tell(seen.vm, have.Conditions, want.Conditions)
	}
	return 0, err
}

// underWay is for how long nothing needs to be told of a berth that comes or goes. That there is one is told at once:
// its node's agent waits for that. So is whatever goes wrong, and that it is over.
func (s *snapshot) underWay(want, have *v1alpha1.VirtualMachineStatus) time.Duration {
	var since time.Time
	switch {
	case want.Berth != nil && !equality.Semantic.DeepEqual(want.Berth, have.Berth),
		slices.ContainsFunc(want.Conditions, isTrouble), slices.ContainsFunc(have.Conditions, isTrouble):
		return 0
	case !s.vm.DeletionTimestamp.IsZero():
		since = s.vm.DeletionTimestamp.Time
	case s.berth != nil && ending(s.berth) && s.berth.DeletionGracePeriodSeconds != nil:
		since = s.berth.DeletionTimestamp.Add(-time.Duration(*s.berth.DeletionGracePeriodSeconds) * time.Second)
	case s.berth != nil && !condition.Is(want.Conditions, v1alpha1.ConditionReady, metav1.ConditionTrue):
		since = s.berth.CreationTimestamp.Time
	default:
		return 0
	}
	age := s.now.Sub(since)
	if age < 0 || age >= quiet { // our clock and the API server's may differ
		return 0
	}
	return quiet - age
}

// tell raises an Event for what went wrong newly, with the condition's own words.
func (r *Reconciler) tell(vm *v1alpha1.VirtualMachine, had, has []metav1.Condition) {
	for _, c := range has {
		old := meta.FindStatusCondition(had, c.Type)
		if isTrouble(c) && (old == nil || old.Reason != c.Reason || old.Message != c.Message) {
			r.Events.Eventf(vm, nil, corev1.EventTypeWarning, c.Reason, "Reconcile", "%s", c.Message)
		}
	}
}

// isTrouble: somebody has to act on what this condition says. Ready and Stalled only repeat what another says.
func isTrouble(c metav1.Condition) bool {
	reason := v1alpha1.Reason(c.Reason)
	return reason.StandsIn(c.Type) && reason.IsWarning()
}

// owned is the operator's part of a status.
func owned(s *v1alpha1.VirtualMachineStatus) *v1alpha1.VirtualMachineStatus {
	part := &v1alpha1.VirtualMachineStatus{
		ObservedGeneration: s.ObservedGeneration, Phase: s.Phase, NodeName: s.NodeName, Berth: s.Berth,
		Addresses: s.Addresses, Image: s.Image, VCPUs: s.VCPUs, Restarts: s.Restarts,
	}
	for _, c := range s.Conditions {
		if slices.Contains(ownConditions, c.Type) {
			part.Conditions = append(part.Conditions, c)
		}
	}
	slices.SortFunc(part.Conditions, byType)
	return part
}

func byType(a, b metav1.Condition) int { return strings.Compare(a.Type, b.Type) }

// statusOf builds the operator's part of the status, whole.
func statusOf(seen snapshot, failure error) *v1alpha1.VirtualMachineStatus {
	vm, pod := seen.vm, seen.berth
	s := &v1alpha1.VirtualMachineStatus{
		ObservedGeneration: vm.Generation,
		NodeName:           vm.Status.NodeName, // the disks' home, until a new berth has one
		Image:              bootImage(vm),
		VCPUs:              berth.VCPUs(vm),
	}
	if pod == nil && !seen.formerGone() {
		s.Berth = vm.Status.Berth
	}
	if pod != nil && pod.Spec.NodeName != "" {
		s.NodeName = pod.Spec.NodeName
		s.Berth = &v1alpha1.BerthReference{PodName: pod.Name, PodUID: pod.UID}
		for _, ip := range pod.Status.PodIPs {
			s.Addresses = append(s.Addresses, ip.IP)
		}
		if c := guestStatus(pod); c != nil {
			s.Restarts = c.RestartCount
		}
	}
	placed := scheduled(seen, failure)
	conditions := []metav1.Condition{placed}
	if c := ready(seen, placed); c != nil {
		conditions = append(conditions, *c)
		if seen.endedForGood() && seen.guestIdle() && !seen.nodeLost() { // it failed, and its agent says how
			conditions = append(conditions, condition.New(v1alpha1.ConditionStalled, true, v1alpha1.Reason(c.Reason), c.Message))
		}
	}
	slices.SortFunc(conditions, byType)
	s.Conditions = condition.Carry(conditions, vm.Status.Conditions, vm.Generation, seen.now)
	s.Phase = phaseOf(seen)
	return s
}

func bootImage(vm *v1alpha1.VirtualMachine) string {
	if len(vm.Spec.Disks) > 0 {
		return vm.Spec.Disks[0].Image
	}
	return vm.Spec.Kernel.Image
}

func guestStatus(pod *corev1.Pod) *corev1.ContainerStatus {
	if len(pod.Status.ContainerStatuses) == 0 {
		return nil
	}
	return &pod.Status.ContainerStatuses[0]
}

func scheduled(seen snapshot, failure error) metav1.Condition {
	no := func(reason v1alpha1.Reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionScheduled, false, reason, message)
	}
	if reason := fault.ReasonOf(failure); failure != nil && reason.StandsIn(v1alpha1.ConditionScheduled) {
		return no(reason, failure.Error())
	}
	switch {
	case seen.nodeLost():
		return condition.Unknown(v1alpha1.ConditionScheduled, v1alpha1.ReasonNodeLost, lostMessage(seen))
	case seen.berth == nil && !seen.wantsGuest():
		return no(v1alpha1.ReasonNotWanted, "")
	case seen.berth == nil && !seen.formerGone():
		return no(v1alpha1.ReasonBerthVanished, fmt.Sprintf(
			"the berth was removed before its guest was proven gone, so no other may start until the agent on node %[1]s reports that it is. If node %[1]s is gone for good, delete its Node object or taint it node.kubernetes.io/out-of-service", seen.home()))
	case seen.berth == nil && seen.boundTo() != "" && seen.node == nil:
		return no(v1alpha1.ReasonNodeLost, fmt.Sprintf("the guest's disks are on node %s, which is gone: bring it back, or make the VirtualMachine anew", seen.boundTo()))
	case seen.berth == nil:
		return no(v1alpha1.ReasonPending, "")
	case seen.berth.Spec.NodeName == "":
		return waiting(seen, no)
	default:
		return condition.New(v1alpha1.ConditionScheduled, true, v1alpha1.ReasonScheduled, "")
	}
}

func lostMessage(seen snapshot) string {
	return fmt.Sprintf("node %s does not answer, the guest may still run: bring the node back, or if it is surely off delete its Node object or taint it node.kubernetes.io/out-of-service", seen.home())
}

// waiting says why the berth has no node.
func waiting(seen snapshot, no func(v1alpha1.Reason, string) metav1.Condition) metav1.Condition {
	var problems []string
	for i := range seen.hosts {
		if c := meta.FindStatusCondition(seen.hosts[i].Status.Conditions, v1alpha1.ConditionHostReady); c != nil && c.Status != metav1.ConditionTrue {
			problems = append(problems, fmt.Sprintf("%s: %s", seen.hosts[i].Name, c.Message))
		}
	}
	for _, c := range seen.berth.Status.Conditions {
		if c.Type != corev1.PodScheduled || c.Status != corev1.ConditionFalse {
			continue
		}
		if len(problems) == len(seen.hosts) {
			if len(problems) == 0 {
				return no(v1alpha1.ReasonNoHost, "no node runs Berth's agent: label or untaint nodes so that its DaemonSet runs there")
			}
			return no(v1alpha1.ReasonNoHost, "no host is ready: "+strings.Join(problems, "; "))
		}
		says := []string{c.Message}
		if home := seen.boundTo(); home != "" {
			says = []string{"the guest's disks are on node " + home, c.Message}
		}
		return no(v1alpha1.ReasonUnschedulable, strings.Join(append(says, problems...), "; "))
	}
	return no(v1alpha1.ReasonPending, "")
}

// ready is nil where all is as it should be without a running guest: none is wanted and none is there, it is paused as
// asked, or it has done its work. Whoever waits for Ready alone, as kstatus does, takes that for done. Where another
// condition says what is in the way, it says the same, since many ask for no other.
func ready(seen snapshot, scheduled metav1.Condition) *metav1.Condition {
	running := meta.FindStatusCondition(seen.vm.Status.Conditions, v1alpha1.ConditionRunning)
	disks := meta.FindStatusCondition(seen.vm.Status.Conditions, v1alpha1.ConditionDisksReady)
	unspoken := seen.berth == nil || running == nil || !seen.named() // no agent has told of this berth yet
	var c metav1.Condition
	no := func(reason v1alpha1.Reason, message string) {
		c = condition.New(v1alpha1.ConditionReady, false, reason, message)
	}
	switch {
	case seen.berth == nil && !seen.wantsGuest():
		return nil
	case seen.nodeLost():
		c = condition.Unknown(v1alpha1.ConditionReady, v1alpha1.ReasonNodeLost, lostMessage(seen))
	case seen.endedForGood() && seen.berth.Status.Phase == corev1.PodSucceeded:
		return nil
	case unspoken && scheduled.Status != metav1.ConditionTrue:
		no(v1alpha1.Reason(scheduled.Reason), scheduled.Message)
	case unspoken:
		no(v1alpha1.ReasonPending, "")
	case running.Status == metav1.ConditionUnknown:
		c = condition.Unknown(v1alpha1.ConditionReady, v1alpha1.Reason(running.Reason), running.Message)
	case running.Reason == string(v1alpha1.ReasonStarting) && disks != nil && disks.Status == metav1.ConditionFalse && disks.Reason != string(v1alpha1.ReasonPullingImage):
		no(v1alpha1.Reason(disks.Reason), disks.Message)
	case seen.vm.Spec.State == v1alpha1.StatePaused && running.Reason == string(v1alpha1.ReasonPaused) && !ending(seen.berth):
		return nil
	case running.Status == metav1.ConditionFalse:
		no(v1alpha1.Reason(running.Reason), running.Message)
	case ending(seen.berth):
		no(v1alpha1.ReasonStopping, "")
	case podReady(seen.berth):
		c = condition.New(v1alpha1.ConditionReady, true, v1alpha1.ReasonReady, "")
	default:
		no(v1alpha1.ReasonProbesFailing, "the guest runs, but its probes do not pass yet")
	}
	return &c
}

func podReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func phaseOf(seen snapshot) v1alpha1.Phase {
	running := meta.FindStatusCondition(seen.vm.Status.Conditions, v1alpha1.ConditionRunning)
	switch {
	case seen.nodeLost():
		return v1alpha1.PhaseUnknown
	case seen.berth == nil && !seen.formerGone():
		return v1alpha1.PhaseStopping
	case seen.berth == nil && seen.wantsGuest():
		return v1alpha1.PhasePending
	case seen.berth == nil && !seen.vm.DeletionTimestamp.IsZero():
		return v1alpha1.PhaseStopping
	case seen.berth == nil:
		return v1alpha1.PhaseStopped
	case ending(seen.berth):
		return v1alpha1.PhaseStopping
	case seen.berth.Status.Phase == corev1.PodSucceeded:
		return v1alpha1.PhaseSucceeded
	case seen.berth.Status.Phase == corev1.PodFailed:
		return v1alpha1.PhaseFailed
	case seen.berth.Spec.NodeName == "":
		return v1alpha1.PhasePending
	case running == nil || !seen.named():
		return v1alpha1.PhaseStarting
	case running.Status == metav1.ConditionUnknown:
		return v1alpha1.PhaseUnknown
	case running.Status == metav1.ConditionTrue:
		return v1alpha1.PhaseRunning
	case v1alpha1.Reason(running.Reason) == v1alpha1.ReasonPaused:
		return v1alpha1.PhasePaused
	case backingOff(seen.berth):
		return v1alpha1.PhaseBackOff
	default:
		return v1alpha1.PhaseStarting
	}
}

func backingOff(pod *corev1.Pod) bool {
	c := guestStatus(pod)
	return c != nil && c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff"
}
