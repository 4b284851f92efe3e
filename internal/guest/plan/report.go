package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
)

// statusDebounce is how long a start that goes well stays unreported: most are over by then.
const statusDebounce = 2 * time.Second

// exitUnknownLimit is how long kubelet may take to say how a container ended.
const exitUnknownLimit = 10 * time.Second

// ownConditions are those that the agent writes.
var ownConditions = []string{
	v1alpha1.ConditionDisksReady, v1alpha1.ConditionRunning, v1alpha1.ConditionGuestAgentConnected, v1alpha1.ConditionUpToDate,
}

// Owned is the agent's part of a status.
func Owned(s *v1alpha1.VirtualMachineStatus) *v1alpha1.VirtualMachineStatus {
	return &v1alpha1.VirtualMachineStatus{
		Resets: s.Resets, LastReset: s.LastReset,
		Guest: s.Guest, Disks: ownedDisks(s), Kernel: s.Kernel, LastExit: s.LastExit, ReleasedBerth: s.ReleasedBerth, PendingChanges: s.PendingChanges,
		Conditions: condition.Of(s.Conditions, ownConditions),
	}
}

// Report builds the agent's part of the status, whole, from what is seen and the
// memory of the looks before; failure is what the last step came back with. A
// positive wait says that there is nothing worth writing before that.
func Report(w Want, h Have, m Memory, failure error, now time.Time) (status *v1alpha1.VirtualMachineStatus, wait time.Duration) {
	had := &w.VM.Status
	if failure == nil && !h.guest() { // it is what a start waits for
		failure = h.StartUnknown
	}
	m = m.after(w, h, now)
	unknownFor := age(m.exitUnknown, now)
	s := &v1alpha1.VirtualMachineStatus{
		Disks: diskStatus(w, h), Kernel: kernelStatus(w, h), Guest: guestInfo(w, h, m), LastExit: lastExit(w, h, unknownFor, now), ReleasedBerth: released(w, h),
	}
	s.Resets, s.LastReset = resets(w, h, m)
	run := running(w, h, s.LastExit, failure)
	if run.Reason == string(v1alpha1.ReasonStarted) && resetting(w, h, s.LastReset, now) {
		run = condition.New(v1alpha1.ConditionRunning, true, v1alpha1.ReasonGuestResetLoop, resetLoopMessage)
	}
	conditions := []metav1.Condition{run}
	if h.Unknown != nil || h.StartUnknown != nil { // what cannot be seen stays as it was: the disks say which node the VirtualMachine is bound to
		s.Disks, s.PendingChanges = ownedDisks(had), had.PendingChanges
	}
	if h.Unknown != nil {
		s.Guest = had.Guest
		conditions = append(conditions, slices.DeleteFunc(Owned(had).Conditions, func(c metav1.Condition) bool { return c.Type == run.Type })...)
	}
	if meta.FindStatusCondition(conditions, v1alpha1.ConditionDisksReady) == nil {
		conditions = append(conditions, disksReady(w, h, failure))
	}
	if h.Domain == DomainRunning && h.Unknown == nil {
		reason := v1alpha1.ReasonGuestAgentNotConnected
		if h.AgentConnected {
			reason = v1alpha1.ReasonGuestAgentConnected
		}
		conditions = append(conditions, condition.New(v1alpha1.ConditionGuestAgentConnected, h.AgentConnected, reason, ""))
	}
	if changes, c := pending(w, h, m, failure, now); c != nil {
		s.PendingChanges, conditions = changes, append(conditions, *c)
	} else if c := meta.FindStatusCondition(had.Conditions, v1alpha1.ConditionUpToDate); c != nil && h.Unknown == nil && h.StartUnknown != nil && h.guest() {
		conditions = append(conditions, *c)
	}
	slices.SortFunc(conditions, condition.ByType)
	generation := w.VM.Generation
	if w.deleting() && len(had.Conditions) > 0 { // a deletion counts as one, and there is nothing new to observe
		generation = had.Conditions[0].ObservedGeneration
	}
	s.Conditions = condition.MergeTransitionTimes(conditions, had.Conditions, generation, now)

	if h.Shim != nil && h.Shim.Attached && h.contradictory() {
		return s, killAgain // its QEMU is about to end; how, shows then
	}
	if left := drainLimit - age(m.draining, now); h.draining() && left > 0 {
		return s, left
	}
	if exitUnknown(w, h) && unknownFor < exitUnknownLimit {
		return s, processGoneLook
	}
	if w.accepts(&h) && failure == nil && run.Reason == string(v1alpha1.ReasonStarting) && condition.Is(conditions, v1alpha1.ConditionDisksReady, metav1.ConditionTrue) {
		if age := now.Sub(w.Berth.Created); age >= 0 && age < statusDebounce { // our clock and the API server's may differ
			wait = statusDebounce - age
		}
	}
	return s, wait
}

func running(w Want, h Have, last *v1alpha1.LastExit, failure error) metav1.Condition {
	is := func(holds bool, reason v1alpha1.Reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionRunning, holds, reason, message)
	}
	attached := h.Shim != nil && h.Shim.Attached ||
		h.Shim == nil && h.Process == ProcessInContainer // by a former agent: the shim has not spoken to this one yet
	switch {
	case h.Unknown != nil:
		return condition.Unknown(v1alpha1.ConditionRunning, fault.ReasonOf(h.Unknown), h.Unknown.Error())
	case attached && h.Domain == DomainRunning:
		return is(true, v1alpha1.ReasonStarted, "")
	case attached && h.Domain == DomainPausedOnIOError:
		return is(false, v1alpha1.ReasonDiskIOError, "QEMU paused the guest on an I/O error of a disk: free space on the node, or read the node's kernel log; Berth resumes the guest every 10 s")
	case attached && h.Domain == DomainPaused && w.paused():
		return is(false, v1alpha1.ReasonPaused, "")
	case failure != nil && fault.ReasonOf(failure).ToldIn() != v1alpha1.ConditionDisksReady:
		return is(false, fault.ReasonOf(failure), failure.Error())
	case h.ShimBroken && w.accepts(&h):
		return is(false, v1alpha1.ReasonShimProtocolError, shimBroken)
	case w.accepts(&h) && (h.guest() || h.Shim != nil && !attached || w.Berth.NeverStarted):
		return is(false, v1alpha1.ReasonStarting, "")
	case h.shimLacks() && w.Berth != nil && !w.Berth.Terminating && w.wantsGuest():
		return is(false, v1alpha1.ReasonShimOutdated, "the operator replaces the berth, because its shim is older than the node's agent and does not take: "+strings.Join(h.Shim.Lacks, ", "))
	case w.Berth != nil && len(w.Berth.Outdated) > 0 && !w.Berth.Terminating:
		return is(false, v1alpha1.ReasonBerthOutdated, "the operator replaces the berth, because it cannot take these changes: "+describe(w.Berth.Outdated))
	case w.Berth != nil && w.Berth.Mutation != "":
		return is(false, v1alpha1.ReasonBerthMutated, fmt.Sprintf(
			"the berth was changed after Berth accepted it: %s; a new berth replaces it", w.Berth.Mutation))
	case w.Berth != nil && h.UnsupportedRuntime != "":
		return is(false, v1alpha1.ReasonBerthMutated, fmt.Sprintf(
			"the berth is run by %s, which would keep QEMU out of its container: run pods with the label vm.berth.dev/name by runc or crun", h.UnsupportedRuntime))
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
	if w.deleting() && !h.Kept && h.Unknown == nil && h.StartUnknown == nil && !h.guest() && (w.Berth == nil || w.Berth.Terminating) {
		return is(false, v1alpha1.ReasonDisksRemoved, "")
	}
	if failure != nil && fault.ReasonOf(failure).ToldIn() == v1alpha1.ConditionDisksReady {
		return is(false, fault.ReasonOf(failure), failure.Error())
	}
	if h.StartUnknown != nil {
		return condition.Unknown(v1alpha1.ConditionDisksReady, fault.ReasonOf(h.StartUnknown), h.StartUnknown.Error())
	}
	var failed, pulling []string
	var reason v1alpha1.Reason
	for _, image := range w.Machine.Images() {
		switch has, known := h.Images[image.For]; {
		case !known, has.State == ImageReady, h.guest() && has.State == ImageMissing:
		case has.Err != nil:
			failed, reason = append(failed, has.Err.Error()), fault.ReasonOf(has.Err)
		default:
			pulling = append(pulling, strings.TrimSpace(cmp.Or(image.For, "kernel")+" "+has.Progress))
		}
	}
	unusable, unmade, volumes := unusableDisks(w, h), volumesFailed(w, h), volumesReady(w, h)
	switch {
	case unmade != nil:
		return *unmade
	case h.guest() && len(failed) == 0 && len(pulling) == 0, !h.guest() && !w.accepts(&h):
		return is(disksMade(w, h), v1alpha1.ReasonDisksReady, "")
	case unusable != nil && !h.guest():
		return is(false, fault.ReasonOf(unusable), unusable.Error())
	case len(failed) > 0:
		return is(false, reason, strings.Join(failed, "; "))
	case len(pulling) > 0:
		return is(false, v1alpha1.ReasonPullingImage, strings.Join(pulling, "; "))
	case volumes != nil:
		return *volumes
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
	if !end.ReportedAt.IsZero() {
		now = end.ReportedAt
	}
	return exitOf(end, now)
}

// newEnd is an end of the guest that the status does not tell yet.
func newEnd(w Want, h Have, unknownFor time.Duration) (end Exit, isNew bool) {
	had := w.VM.Status.LastExit
	was := w.ran()
	if h.Exit != nil && h.Exit.Reason == v1alpha1.ReasonNotRunning { // a shim was told to end without a guest
		h.Exit = nil
	}
	switch {
	case h.Unknown != nil:
		return Exit{}, false
	case h.guest():
		return missed(w)
	case h.Exit != nil && !h.Exit.ReportedAt.IsZero():
		end = *h.Exit
	case h.Shim != nil && h.Shim.Attached:
		end = ended(w, h)
	case was && h.Container != ContainerAlive && h.Exit != nil && !kubeletKnowsMore(w, h, unknownFor):
		end = *h.Exit
		if end.Reason == v1alpha1.ReasonDestroyed { // by us, because its container was gone
			end = ShimLost
		}
	default:
		return missed(w)
	}
	told := !was && had != nil && had.Reason == end.Reason && had.ExitCode == end.Code && had.Message == condition.Sanitize(end.Message)
	return end, !told
}

// kubeletKnowsMore: the guest may have ended with its container, for want of memory say, or powered off because it was asked
// to, and kubelet is to say so yet.
func kubeletKnowsMore(w Want, h Have, unknownFor time.Duration) bool {
	unsure := []v1alpha1.Reason{v1alpha1.ReasonQEMUFailed, v1alpha1.ReasonDestroyed, v1alpha1.ReasonPoweredOff}
	return w.Berth != nil && unknownFor < exitUnknownLimit && slices.Contains(unsure, h.Exit.Reason)
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

func exitOf(end Exit, at time.Time) *v1alpha1.LastExit {
	return &v1alpha1.LastExit{Reason: end.Reason, ExitCode: end.Code, Message: condition.Sanitize(end.Message), Time: metav1.NewTime(at).Rfc3339Copy()}
}

// sameEnd is how much later than the status kubelet may tell of one and the same end, of a container that had begun before.
const sameEnd = 10 * time.Second

// missed is a later end that kubelet tells of: the API server was away when it came, and the guest lives again.
func missed(w Want) (Exit, bool) {
	if w.Berth == nil || w.Berth.LastExit == nil {
		return Exit{}, false
	}
	end := *w.Berth.LastExit
	if had := w.VM.Status.LastExit; had != nil {
		later, same := end.ReportedAt.Sub(had.Time.Time), had.Reason == end.Reason && had.ExitCode == end.Code
		if later <= 0 || same && later < sameEnd && !end.Began.After(had.Time.Time) {
			return Exit{}, false
		}
	}
	return end, true
}

// gone: nothing of the guest is left that could do harm elsewhere. Not while its disks cannot be read: one may have been
// made that is to be kept, and of which the status does not tell yet; then the guest would be started on another node, with
// a new one.
func gone(w Want, h Have) bool {
	kept := berth.HasLocalDisks(w.VM)
	told := slices.ContainsFunc(w.VM.Status.Disks, berth.OnNode)
	return h.Unknown == nil && !h.guest() && len(h.Volumes) == 0 && (h.StartUnknown == nil || !kept || told || w.deleting())
}

// released names the berth of which nothing is left, for as long as no other is named.
func released(w Want, h Have) (uid types.UID) {
	switch {
	case w.Vanished != "" && gone(w, h):
		return w.Vanished
	case w.Berth == nil:
		return w.VM.Status.ReleasedBerth
	case w.Berth.Terminating && gone(w, h):
		return w.Berth.UID
	case w.VM.Status.ReleasedBerth == w.Berth.UID:
		return w.Berth.UID
	}
	return ""
}
