package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
)

// quiet is how long a start that goes well stays unreported: most are over by then.
const quiet = 2 * time.Second

// exitUnknownLimit is how long kubelet may take to say how a container ended.
const exitUnknownLimit = 10 * time.Second

// ownConditions are those that the agent writes.
var ownConditions = []string{
	v1alpha1.ConditionDisksReady, v1alpha1.ConditionRunning, v1alpha1.ConditionGuestAgentConnected, v1alpha1.ConditionUpToDate,
}

// Owned is the agent's part of a status.
func Owned(s *v1alpha1.VirtualMachineStatus) *v1alpha1.VirtualMachineStatus {
	part := &v1alpha1.VirtualMachineStatus{
		Guest: s.Guest, Disks: s.Disks, LastExit: s.LastExit, ReleasedBerth: s.ReleasedBerth, PendingChanges: s.PendingChanges,
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

// Report builds the agent's part of the status, whole, from what is seen and the
// memory of the looks before; failure is what the last step came back with. A
// positive wait says that there is nothing worth writing before that.
func Report(w Want, h Have, m Memory, failure error, now time.Time) (status *v1alpha1.VirtualMachineStatus, wait time.Duration) {
	had := &w.VM.Status
	unknownFor := age(m.after(w, h, now).exitUnknown, now)
	s := &v1alpha1.VirtualMachineStatus{
		Disks: h.Disks, Guest: h.Guest, LastExit: lastExit(w, h, unknownFor, now), ReleasedBerth: released(w, h),
	}
	run := running(w, h, s.LastExit, failure)
	conditions := []metav1.Condition{run, disksReady(w, h, failure)}
	if h.Domain == DomainRunning {
		conditions = append(conditions, agentConnected(h))
	}
	if changes, c := pending(w, h); c != nil {
		s.PendingChanges, conditions = changes, append(conditions, *c)
	}
	slices.SortFunc(conditions, byType)
	generation := w.VM.Generation
	if w.deleting() && len(had.Conditions) > 0 { // a deletion counts as one, and there is nothing new to observe
		generation = had.Conditions[0].ObservedGeneration
	}
	s.Conditions = condition.Carry(conditions, had.Conditions, generation, now)

	if h.Shim != nil && h.Shim.Attached && h.contradictory() {
		return s, killAgain // its QEMU is about to end; how, shows then
	}
	if exitUnknown(w, h) && unknownFor < exitUnknownLimit {
		return s, processGoneLook
	}
	if w.accepts() && failure == nil && run.Reason == string(v1alpha1.ReasonStarting) && condition.Is(conditions, v1alpha1.ConditionDisksReady, metav1.ConditionTrue) {
		if age := now.Sub(w.Berth.Created); age >= 0 && age < quiet { // our clock and the API server's may differ
			wait = quiet - age
		}
	}
	return s, wait
}

func agentConnected(h Have) metav1.Condition {
	if h.AgentConnected {
		return condition.New(v1alpha1.ConditionGuestAgentConnected, true, v1alpha1.ReasonGuestAgentConnected, "")
	}
	return condition.New(v1alpha1.ConditionGuestAgentConnected, false, v1alpha1.ReasonGuestAgentNotConnected, "")
}

func running(w Want, h Have, last *v1alpha1.LastExit, failure error) metav1.Condition {
	is := func(holds bool, reason v1alpha1.Reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionRunning, holds, reason, message)
	}
	attached := h.Shim != nil && h.Shim.Attached ||
		h.Shim == nil && h.Process == ProcessPlaced // by a former agent: the shim has not spoken to this one yet
	switch {
	case h.Unknown != nil:
		return condition.Unknown(v1alpha1.ConditionRunning, fault.ReasonOf(h.Unknown), h.Unknown.Error())
	case attached && h.Domain == DomainRunning:
		return is(true, v1alpha1.ReasonStarted, "")
	case attached && h.Domain == DomainBlocked:
		return is(false, v1alpha1.ReasonDiskBlocked, "QEMU paused the guest on an I/O error of a disk: free space on the node, or read the node's kernel log; Berth resumes the guest every 10 s")
	case attached && h.Domain == DomainPaused && w.paused():
		return is(false, v1alpha1.ReasonPaused, "")
	case failure != nil && !fault.ReasonOf(failure).StandsIn(v1alpha1.ConditionDisksReady):
		return is(false, fault.ReasonOf(failure), failure.Error())
	case w.accepts() && (h.guest() || h.Shim != nil && !attached || w.Berth.Fresh):
		return is(false, v1alpha1.ReasonStarting, "")
	case w.Berth != nil && w.Berth.Altered != "":
		return is(false, v1alpha1.ReasonBerthAltered, fmt.Sprintf(
			"the berth was changed on its way through admission: %s; exempt pods with the label vm.berth.dev/name from that webhook or policy", w.Berth.Altered))
	case w.Berth != nil && w.Berth.Runtime != "":
		return is(false, v1alpha1.ReasonBerthAltered, fmt.Sprintf(
			"the berth is run by %s, which would keep QEMU out of its container: run pods with the label vm.berth.dev/name by runc or crun", w.Berth.Runtime))
	case w.Berth != nil && len(w.Berth.Outdated) > 0 && !w.Berth.Ending:
		return is(false, v1alpha1.ReasonBerthOutdated, "the operator replaces the berth, because it cannot take these changes: "+describe(w.Berth.Outdated))
	case last != nil && (w.Berth != nil || w.deleting()):
		return is(false, last.Reason, last.Message)
	default:
		return is(false, v1alpha1.ReasonNotRunning, "")
	}
}

func disksReady(w Want, h Have, failure error) metav1.Condition {
	is := func(holds bool, reason v1alpha1.Reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionDisksReady, holds, reason, message)
	}
	if w.deleting() && !h.Kept && h.Unknown == nil && !h.guest() && (w.Berth == nil || w.Berth.Ending) {
		return is(false, v1alpha1.ReasonDisksRemoved, "")
	}
	if failure != nil && fault.ReasonOf(failure).StandsIn(v1alpha1.ConditionDisksReady) {
		return is(false, fault.ReasonOf(failure), failure.Error())
	}
	var failed, pulling []string
	var reason v1alpha1.Reason
	for _, base := range slices.Sorted(maps.Keys(h.Base)) {
		switch image := h.Base[base]; {
		case image.State == ImageReady:
		case image.Err != nil:
			failed, reason = append(failed, image.Err.Error()), fault.ReasonOf(image.Err)
		default:
			pulling = append(pulling, strings.TrimSpace(strings.TrimPrefix(base, "\x00")+" "+image.Progress))
		}
	}
	switch {
	case h.guest() || !w.accepts():
		return is(len(h.Disks) >= len(w.VM.Spec.Disks), v1alpha1.ReasonDisksReady, "")
	case len(failed) > 0:
		return is(false, reason, strings.Join(failed, "; "))
	case len(pulling) > 0:
		return is(false, v1alpha1.ReasonPullingImage, strings.Join(pulling, "; "))
	default:
		return is(true, v1alpha1.ReasonDisksReady, "")
	}
}

// lastExit is how the guest ended just now, or what stands there. unknownFor is for how long that was unknown.
func lastExit(w Want, h Have, unknownFor time.Duration, now time.Time) *v1alpha1.LastExit {
	end, isNew := newEnd(w, h, unknownFor)
	if !isNew {
		return w.VM.Status.LastExit
	}
	if !end.Told.IsZero() {
		now = end.Told
	}
	return exitOf(end, now)
}

// newEnd is an end of the guest that the status does not tell yet.
func newEnd(w Want, h Have, unknownFor time.Duration) (end End, isNew bool) {
	had := w.VM.Status.LastExit
	was := w.ran()
	if h.End != nil && h.End.Reason == v1alpha1.ReasonNotRunning { // a shim was told to end without a guest
		h.End = nil
	}
	switch {
	case h.Unknown != nil:
		return End{}, false
	case h.guest():
		return missed(w)
	case h.End != nil && !h.End.Told.IsZero():
		end = *h.End
	case h.Shim != nil && h.Shim.Attached:
		end = ended(w, h)
	case was && h.Container != ContainerAlive && h.End != nil && !kubeletKnowsMore(w, h, unknownFor):
		end = *h.End
		if end.Reason == v1alpha1.ReasonDestroyed { // by us, because its container was gone
			end = ShimLost
		}
	default:
		return missed(w)
	}
	told := !was && had != nil && had.Reason == end.Reason && had.ExitCode == end.Code && had.Message == condition.Shorten(end.Message)
	return end, !told
}

// kubeletKnowsMore: the guest may have ended with its container, for want of memory say, and kubelet is to say so yet.
func kubeletKnowsMore(w Want, h Have, unknownFor time.Duration) bool {
	withContainer := h.End.Reason == v1alpha1.ReasonQEMUFailed || h.End.Reason == v1alpha1.ReasonDestroyed
	return w.Berth != nil && withContainer && unknownFor < exitUnknownLimit
}

// exitUnknown: a guest that ran, or may have, is gone, and its container with it, at once or while no agent was there.
// Kubelet is about to say how, in the pod, which must not be released before that.
func exitUnknown(w Want, h Have) bool {
	mayHaveRun := w.ran() || condition.Is(w.VM.Status.Conditions, v1alpha1.ConditionRunning, metav1.ConditionUnknown)
	gone := h.Unknown == nil && !h.guest() && h.Container != ContainerAlive
	if w.Berth == nil || !mayHaveRun || !gone {
		return false
	}
	_, isNew := newEnd(w, h, 0)
	return !isNew
}

func exitOf(end End, at time.Time) *v1alpha1.LastExit {
	return &v1alpha1.LastExit{Reason: end.Reason, ExitCode: end.Code, Message: condition.Shorten(end.Message), Time: metav1.NewTime(at).Rfc3339Copy()}
}

// sameEnd is how much later than the status kubelet may tell of one and the same end.
const sameEnd = 10 * time.Second

// missed is a later end that kubelet tells of: the API server was away when it came, and the guest lives again.
func missed(w Want) (End, bool) {
	if w.Berth == nil || w.Berth.Ended == nil {
		return End{}, false
	}
	end := *w.Berth.Ended
	if had := w.VM.Status.LastExit; had != nil {
		later, same := end.Told.Sub(had.Time.Time), had.Reason == end.Reason && had.ExitCode == end.Code
		if later <= 0 || same && later < sameEnd {
			return End{}, false
		}
	}
	return end, true
}

// released names the berth of which nothing is left, for as long as no other is named.
func released(w Want, h Have) (uid types.UID) {
	switch {
	case w.Vanished != "" && h.Unknown == nil && !h.guest():
		return w.Vanished
	case w.Berth == nil:
		return w.VM.Status.ReleasedBerth
	case w.Berth.Ending && h.Unknown == nil && !h.guest():
		return w.Berth.UID
	case w.VM.Status.ReleasedBerth == w.Berth.UID:
		return w.Berth.UID
	}
	return ""
}
