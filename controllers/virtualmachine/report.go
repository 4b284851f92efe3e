package virtualmachine

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
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

// statusDebounce is for how long the status may leave out that a berth is being created or deleted while nothing is
// wrong: mostly that is over by then, and one write is saved.
const statusDebounce = 3 * time.Second

// report writes the operator's part of the status, if it differs from what is there. failure is the error of act. It returns
// after how long to reconcile again if a write was put off.
func (r *Reconciler) report(ctx context.Context, seen snapshot, failure error) (time.Duration, error) {
	if seen.vm == nil {
		return 0, nil
	}
	want, have := statusOf(seen, failure), owned(&seen.vm.Status)
	if wait := seen.debounce(want, have); wait > 0 {
		return wait, nil
	}
	wrote, err := r.Status.Write(ctx, seen.vm, want, have)
	if wrote {
		r.recordEvents(seen.vm, have.Conditions, want.Conditions)
	}
	c := condition.Find(want.Conditions, v1alpha1.ConditionReady)
	if v1alpha1.Reason(c.Reason).IsUsers() && condition.Reason(want.Conditions, v1alpha1.ConditionStalled) == "" {
		return max(usersLimit-seen.usersFor(&c), time.Second), err
	}
	return 0, err
}

// debounce is for how long the status may leave out that a berth is being created or deleted. The berth's name and its claims
// are written at once, since the agent of its node waits for them; so is what goes wrong, and that the deletion is over.
func (s *snapshot) debounce(want, have *v1alpha1.VirtualMachineStatus) time.Duration {
	var since time.Time
	switch {
	case want.Berth != nil && (!equality.Semantic.DeepEqual(want.Berth, have.Berth) || !equality.Semantic.DeepEqual(want.Disks, have.Disks)), !equality.Semantic.DeepEqual(want.Ended, have.Ended),
		slices.ContainsFunc(want.Conditions, isWarning), slices.ContainsFunc(have.Conditions, isWarning):
		return 0
	case !s.vm.DeletionTimestamp.IsZero():
		since = s.vm.DeletionTimestamp.Time
	case s.berth != nil && terminating(s.berth) && s.berth.DeletionGracePeriodSeconds != nil:
		since = s.berth.DeletionTimestamp.Add(-time.Duration(*s.berth.DeletionGracePeriodSeconds) * time.Second)
	case s.berth != nil && !condition.Is(want.Conditions, v1alpha1.ConditionReady, metav1.ConditionTrue):
		since = s.berth.CreationTimestamp.Time
	}
	age := s.now.Sub(since)
	if age < 0 { // our clock and the API server's may differ
		return 0
	}
	return max(statusDebounce-age, 0)
}

// recordEvents raises an Event for each condition that newly says that something is wrong, with its message.
func (r *Reconciler) recordEvents(vm *v1alpha1.VirtualMachine, had, has []metav1.Condition) {
	for _, c := range has {
		if old := condition.Find(had, c.Type); isWarning(c) && (old.Reason != c.Reason || old.Message != c.Message) {
			r.Events.Eventf(vm, nil, corev1.EventTypeWarning, c.Reason, "Reconcile", "%s", c.Message)
		}
	}
}

// isWarning: something or somebody has to act on this condition. Ready and Stalled only repeat what another says.
func isWarning(c metav1.Condition) bool {
	reason := v1alpha1.Reason(c.Reason)
	return reason.StandsIn(c.Type) && reason.IsWarning()
}

// owned is the operator's part of a status.
func owned(s *v1alpha1.VirtualMachineStatus) *v1alpha1.VirtualMachineStatus {
	return &v1alpha1.VirtualMachineStatus{
		ObservedGeneration: s.ObservedGeneration, Phase: s.Phase, NodeName: s.NodeName, Berth: s.Berth,
		Addresses: s.Addresses, Image: s.Image, VCPUs: s.VCPUs, Restarts: s.Restarts, Ended: s.Ended,
		Conditions: condition.Of(s.Conditions, ownConditions), Disks: ownedDisks(s.Disks),
	}
}

// ownedDisks are, by their names, those that have a claim, and the claim's part of them.
func ownedDisks(all []v1alpha1.DiskStatus) (disks []v1alpha1.DiskStatus) {
	for _, d := range all {
		if d.ClaimName != "" {
			disks = append(disks, v1alpha1.DiskStatus{Name: d.Name, ClaimName: d.ClaimName, ClaimUID: d.ClaimUID, Capacity: d.Capacity, VolumeMode: d.VolumeMode})
		}
	}
	slices.SortFunc(disks, func(a, b v1alpha1.DiskStatus) int { return cmp.Compare(a.Name, b.Name) })
	return disks
}

// disks are the disks of the spec that have a claim.
func (s *snapshot) disks() (disks []v1alpha1.DiskStatus) {
	for _, d := range s.claims {
		told := v1alpha1.DiskStatus{Name: d.disk.Name, ClaimName: d.name}
		if c := d.claim; c != nil {
			told.ClaimUID, told.VolumeMode = c.UID, volumeMode(c)
			if capacity, bound := c.Status.Capacity[corev1.ResourceStorage]; bound {
				told.Capacity = &capacity
			}
		}
		disks = append(disks, told)
	}
	return ownedDisks(disks)
}

// statusOf builds the operator's part of the status, whole.
func statusOf(seen snapshot, failure error) *v1alpha1.VirtualMachineStatus {
	vm, pod := seen.vm, seen.berth
	s := &v1alpha1.VirtualMachineStatus{
		ObservedGeneration: vm.Generation,
		NodeName:           vm.Status.NodeName, // where the disks are, until a new berth has a node
		Image:              bootImage(vm),
		VCPUs:              berth.VCPUs(vm),
		Ended:              seen.ended(),
		Disks:              seen.disks(),
	}
	if pod == nil && !seen.previousReleased() {
		s.Berth = vm.Status.Berth
	}
	if pod != nil && seen.accepted() {
		s.NodeName = pod.Spec.NodeName
		s.Berth = &v1alpha1.BerthReference{PodName: pod.Name, PodUID: pod.UID, Image: berth.Image(pod)}
		if seen.statusMatchesBerth() && vm.Status.Berth.Image != "" {
			s.Berth.Image = vm.Status.Berth.Image
		}
		for _, ip := range pod.Status.PodIPs {
			if net.ParseIP(ip.IP).To4() != nil { // no other leads to the guest yet
				s.Addresses = append(s.Addresses, ip.IP)
			}
		}
		s.Restarts = berth.ContainerStatus(pod).RestartCount
	}
	isScheduled := scheduled(seen, failure)
	conditions := []metav1.Condition{isScheduled}
	if c := ready(seen, isScheduled); c != nil {
		conditions = append(conditions, *c)
		failed := s.Ended != nil && (pod == nil || !terminating(pod) && seen.guestIdle()) && !seen.nodeLost() // and the agent has said why
		if failed || seen.usersFor(c) >= usersLimit {
			conditions = append(conditions, condition.New(v1alpha1.ConditionStalled, true, v1alpha1.Reason(c.Reason), c.Message))
		}
	}
	slices.SortFunc(conditions, condition.ByType)
	s.Conditions = condition.MergeTransitionTimes(conditions, vm.Status.Conditions, vm.Generation, seen.now)
	s.Phase = phaseOf(seen)
	return s
}

// usersLimit is for how long what waits for its user may be about to come: a Secret that another controller makes, say.
const usersLimit = time.Minute

// usersFor is for how long the VirtualMachine was not ready, if its user has to act; else 0.
func (s *snapshot) usersFor(ready *metav1.Condition) time.Duration {
	had := condition.Find(s.vm.Status.Conditions, v1alpha1.ConditionReady)
	if had.Status != metav1.ConditionFalse || ready.Status != metav1.ConditionFalse || !v1alpha1.Reason(ready.Reason).IsUsers() {
		return 0
	}
	return s.now.Sub(had.LastTransitionTime.Time)
}

func bootImage(vm *v1alpha1.VirtualMachine) string {
	if k, disks := vm.Spec.Kernel, vm.Spec.Disks; k != nil && (len(disks) == 0 || disks[0].ImageName() == "") {
		return k.Image
	}
	return vm.Spec.Disks[0].ImageName()
}

func scheduled(seen snapshot, failure error) metav1.Condition {
	no := func(reason v1alpha1.Reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionScheduled, false, reason, message)
	}
	if reason := fault.ReasonOf(failure); failure != nil && reason.ToldIn() == v1alpha1.ConditionScheduled {
		return no(reason, failure.Error())
	}
	switch {
	case seen.nodeLost():
		return condition.Unknown(v1alpha1.ConditionScheduled, v1alpha1.ReasonNodeLost, lostMessage(seen))
	case seen.berth == nil && !seen.wantsGuest():
		return no(v1alpha1.ReasonNotWanted, "")
	case seen.berth == nil && seen.previousReleased() && seen.ended() != nil:
		return no(v1alpha1.ReasonNotWanted, "the guest has ended, and restartPolicy starts no other: change restartedAt to run it once more")
	case seen.berth == nil && !seen.previousReleased():
		return no(v1alpha1.ReasonBerthVanished, fmt.Sprintf(
			"the berth was removed before its guest was proven gone, so no other may start until the agent on node %[1]s reports that it is. If node %[1]s is gone for good, delete its Node object or taint it node.kubernetes.io/out-of-service", seen.guestNode()))
	case seen.berth == nil && seen.pinnedNode() != "" && seen.node == nil:
		return no(v1alpha1.ReasonNodeLost, fmt.Sprintf("the guest's disks are on node %s, which does not exist. Bring the node back, or delete the VirtualMachine and create it again, without its data", seen.pinnedNode()))
	case seen.berth == nil && len(seen.surplus) > 0:
		pod := seen.surplus[0].pod
		return no(v1alpha1.ReasonPending, fmt.Sprintf(
			"pod %s (UID %s) of a VirtualMachine of this name is terminating on node %q: no other guest may start until the agent of that node reports that its guest is gone",
			pod.Name, pod.UID, pod.Spec.NodeName))
	case seen.berth == nil:
		return no(v1alpha1.ReasonPending, "")
	case seen.berth.Spec.NodeName == "":
		return unscheduled(seen, no)
	case seen.mutation != "" && !seen.statusMatchesBerth():
		return no(v1alpha1.ReasonBerthMutated, fmt.Sprintf(
			"the berth was changed on its way through admission, or is not of Berth's making: %s; exempt pods with the label %s from the webhook or policy that changes them", seen.mutation, berth.LabelVM))
	case seen.misplaced:
		return no(v1alpha1.ReasonPending, fmt.Sprintf("the berth is on node %s, and the guest's disks are on node %s: another berth replaces it", seen.berth.Spec.NodeName, seen.pinnedNode()))
	case !seen.accepted():
		return no(v1alpha1.ReasonPending, "")
	default:
		return condition.New(v1alpha1.ConditionScheduled, true, v1alpha1.ReasonScheduled, "")
	}
}

func lostMessage(seen snapshot) string {
	if seen.node == nil {
		return fmt.Sprintf("node %s does not exist. Kubernetes deletes the pods of such a node; a guest that is wanted is started again then", seen.guestNode())
	}
	return fmt.Sprintf("node %s is not Ready, and the guest may still run there. Bring the node back; if it is surely off, delete its Node object or taint it node.kubernetes.io/out-of-service", seen.guestNode())
}

// unscheduled says why the berth has no node.
func unscheduled(seen snapshot, no func(v1alpha1.Reason, string) metav1.Condition) metav1.Condition {
	var problems []string
	for i := range seen.hosts {
		if c := condition.Find(seen.hosts[i].Status.Conditions, v1alpha1.ConditionHostReady); c.Type != "" && c.Status != metav1.ConditionTrue {
			problems = append(problems, fmt.Sprintf("%s: %s", seen.hosts[i].Name, c.Message))
		}
	}
	placed := berth.Condition(seen.berth, corev1.PodScheduled)
	switch node := seen.pinnedNode(); {
	case placed.Status != corev1.ConditionFalse:
		return no(v1alpha1.ReasonPending, "")
	case len(seen.hosts) == 0:
		return no(v1alpha1.ReasonNoHost, "no node runs berth-agent: label or untaint nodes so that its DaemonSet runs there")
	case len(problems) == len(seen.hosts):
		return no(v1alpha1.ReasonNoHost, "no host is ready: "+strings.Join(problems, "; "))
	case node != "":
		problems = slices.Insert(problems, 0, "the guest's disks are on node "+node, placed.Message)
	default:
		problems = slices.Insert(problems, 0, placed.Message)
	}
	return no(v1alpha1.ReasonUnschedulable, strings.Join(problems, "; "))
}

// ready is nil where all is as it should be without a running guest: none is wanted and none is there, it is paused as
// asked, or it has done its work. Whoever waits for Ready alone, as kstatus does, takes that for done. Where another
// condition says what is in the way, it says the same, since many ask for no other.
func ready(seen snapshot, scheduled metav1.Condition) *metav1.Condition {
	running := condition.Find(seen.vm.Status.Conditions, v1alpha1.ConditionRunning)
	disks := condition.Find(seen.vm.Status.Conditions, v1alpha1.ConditionDisksReady)
	unreported := seen.berth == nil || running.Status == "" || !seen.statusMatchesBerth() // no agent has reported on this berth yet
	ended := seen.ended()
	no := func(reason v1alpha1.Reason, message string) *metav1.Condition {
		return new(condition.New(v1alpha1.ConditionReady, false, reason, message))
	}
	switch reason := v1alpha1.Reason(running.Reason); {
	case seen.berth == nil && !seen.wantsGuest():
		return nil
	case seen.nodeLost():
		return new(condition.Unknown(v1alpha1.ConditionReady, v1alpha1.ReasonNodeLost, lostMessage(seen)))
	case ended != nil && ended.Phase == v1alpha1.PhaseSucceeded:
		return nil
	case ended != nil && seen.berth == nil && seen.previousReleased():
		return no(ended.Reason, endMessage(ended, seen.vm.Status.LastExit))
	case unreported && scheduled.Status != metav1.ConditionTrue:
		return no(v1alpha1.Reason(scheduled.Reason), scheduled.Message)
	case seen.notStarted != "" && !terminating(seen.berth):
		return no(v1alpha1.ReasonBerthNotStarted, "kubelet does not run the berth's container: "+seen.notStarted)
	case unreported:
		return no(v1alpha1.ReasonPending, "")
	case running.Status == metav1.ConditionUnknown:
		return new(condition.Unknown(v1alpha1.ConditionReady, reason, running.Message))
	case reason == v1alpha1.ReasonStarting && disks.Status == metav1.ConditionFalse && disks.Reason != string(v1alpha1.ReasonPullingImage):
		return no(v1alpha1.Reason(disks.Reason), disks.Message)
	case seen.vm.Spec.State == v1alpha1.StatePaused && reason == v1alpha1.ReasonPaused && !terminating(seen.berth):
		return nil
	case running.Status == metav1.ConditionFalse, reason == v1alpha1.ReasonGuestResetLoop && !terminating(seen.berth):
		return no(reason, running.Message)
	case terminating(seen.berth):
		return no(v1alpha1.ReasonStopping, "")
	case berth.Condition(seen.berth, corev1.PodReady).Status == corev1.ConditionTrue:
		return new(condition.New(v1alpha1.ConditionReady, true, v1alpha1.ReasonReady, ""))
	default:
		return no(v1alpha1.ReasonProbesFailing, "the guest runs, but its probes do not pass yet")
	}
}

// endMessage says more of how a guest ended than its reason, "" for no more: the agent's word, if it is of the same end.
func endMessage(ended *v1alpha1.Ended, last *v1alpha1.LastExit) string {
	switch {
	case last == nil || last.Reason != ended.Reason:
		return ""
	case last.Message == "" && last.ExitCode != 0:
		return fmt.Sprintf("%s Its exit code is %d.", ended.Reason.When(), last.ExitCode)
	default:
		return last.Message
	}
}

func phaseOf(seen snapshot) v1alpha1.Phase {
	running := condition.Find(seen.vm.Status.Conditions, v1alpha1.ConditionRunning)
	switch {
	case seen.nodeLost():
		return v1alpha1.PhaseUnknown
	case seen.berth == nil && !seen.previousReleased():
		return v1alpha1.PhaseStopping
	case seen.berth == nil && seen.ended() != nil:
		return seen.ended().Phase
	case seen.berth == nil && seen.wantsGuest():
		return v1alpha1.PhasePending
	case seen.berth == nil && !seen.vm.DeletionTimestamp.IsZero():
		return v1alpha1.PhaseStopping
	case seen.berth == nil:
		return v1alpha1.PhaseStopped
	case terminating(seen.berth):
		return v1alpha1.PhaseStopping
	case completed(seen.berth):
		return v1alpha1.Phase(seen.berth.Status.Phase) // Succeeded or Failed, as a pod's
	case !seen.accepted():
		return v1alpha1.PhasePending
	case seen.notStarted != "":
		return v1alpha1.PhaseWaiting
	case running.Status == "", !seen.statusMatchesBerth():
		return v1alpha1.PhaseStarting
	case running.Status == metav1.ConditionUnknown:
		return v1alpha1.PhaseUnknown
	case running.Status == metav1.ConditionTrue:
		return v1alpha1.PhaseRunning
	case v1alpha1.Reason(running.Reason) == v1alpha1.ReasonPaused:
		return v1alpha1.PhasePaused
	case backingOff(seen.berth):
		return v1alpha1.PhaseBackOff
	case waits(seen.vm.Status.Conditions):
		return v1alpha1.PhaseWaiting
	default:
		return v1alpha1.PhaseStarting
	}
}

// waits: a start does not go on before something or somebody acts.
func waits(conditions []metav1.Condition) bool {
	return slices.ContainsFunc(conditions, func(c metav1.Condition) bool {
		return (c.Type == v1alpha1.ConditionRunning || c.Type == v1alpha1.ConditionDisksReady) && c.Status == metav1.ConditionFalse && isWarning(c)
	})
}

func backingOff(pod *corev1.Pod) bool {
	waiting := berth.ContainerStatus(pod).State.Waiting
	return waiting != nil && waiting.Reason == "CrashLoopBackOff"
}
