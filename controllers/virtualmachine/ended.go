package virtualmachine

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
)

// ended is how the guest ended for good, nil if it did not, or is wanted again. While its berth is there, that tells;
// from its deletion on it is what the status has of it.
func (s *snapshot) ended() *v1alpha1.Ended {
	had := s.vm.Status.Ended
	holds := had != nil && had.RestartedAt == s.vm.Spec.RestartedAt && s.leaves(had.Phase)
	switch {
	case !s.wantsGuest():
		return nil
	case holds && (s.berth == nil || terminating(s.berth) && completed(s.berth)):
		return s.end(had.Phase, had.Reason)
	case s.berth != nil:
		return s.endOfBerth()
	case had == nil && !s.previousReleased() && s.leaves(v1alpha1.PhaseFailed) && s.saidToRun(): // its pod was removed by force
		return s.end(v1alpha1.PhaseFailed, v1alpha1.ReasonPodDeleted)
	default:
		return nil
	}
}

// endOfBerth is how the guest of the berth ended for good.
func (s *snapshot) endOfBerth() *v1alpha1.Ended {
	pod, phase := s.berth, v1alpha1.Phase(s.berth.Status.Phase)
	switch {
	case s.restartRequested():
		return nil
	case completed(pod) && guestEnded(pod):
		if s.leaves(phase) {
			return s.end(phase, s.whyEnded(phase))
		}
	case terminating(pod) && s.leaves(v1alpha1.PhaseFailed) && s.released(placedBerth{pod, s.node, s.host}) && s.mayHaveRun():
		if evicted(pod) {
			return s.end(v1alpha1.PhaseFailed, v1alpha1.ReasonEvicted)
		}
		return s.end(v1alpha1.PhaseFailed, v1alpha1.ReasonPodDeleted)
	}
	return nil
}

// end is seen now, or was when the status first told of it: by the operator's own clock, which also says when the time that
// the VirtualMachine is kept is over.
func (s *snapshot) end(phase v1alpha1.Phase, reason v1alpha1.Reason) *v1alpha1.Ended {
	e := &v1alpha1.Ended{Phase: phase, Reason: reason, RestartedAt: s.vm.Spec.RestartedAt, Time: new(metav1.NewTime(s.now).Rfc3339Copy())}
	if had := s.vm.Status.Ended; had != nil && had.RestartedAt == e.RestartedAt && had.Time != nil {
		e.Time = had.Time
	}
	return e
}

// timeToLive is for how long the VirtualMachine is kept after its guest has ended for good, as its status tells; counts is
// false if that is for ever, or if there is no such end.
func (s *snapshot) timeToLive() (left time.Duration, counts bool) {
	if s.vm == nil || s.vm.Spec.TTLSecondsAfterFinished == nil || s.vm.Status.Ended == nil || s.vm.Status.Ended.Time == nil || !s.endIsTold() {
		return 0, false
	}
	ttl := time.Duration(*s.vm.Spec.TTLSecondsAfterFinished) * time.Second
	return s.vm.Status.Ended.Time.Add(ttl).Sub(s.now), true
}

// endIsTold: the status tells how the guest ended for good, or that it did not. Not every CRD that may be there has a place for
// the time.
func (s *snapshot) endIsTold() bool {
	is, told := s.ended(), s.vm.Status.Ended
	if is == nil || told == nil {
		return is == told
	}
	return is.Phase == told.Phase && is.Reason == told.Reason && is.RestartedAt == told.RestartedAt
}

// leaves: the restartPolicy leaves a guest that ended so as it is.
func (s *snapshot) leaves(phase v1alpha1.Phase) bool {
	policy := s.vm.Spec.RestartPolicy
	return policy == v1alpha1.RestartNever || policy == v1alpha1.RestartOnFailure && phase == v1alpha1.PhaseSucceeded
}

// whyEnded is the agent's word, if it has spoken.
func (s *snapshot) whyEnded(phase v1alpha1.Phase) v1alpha1.Reason {
	reason := condition.Reason(s.vm.Status.Conditions, v1alpha1.ConditionRunning)
	switch {
	case phase == v1alpha1.PhaseSucceeded:
		return v1alpha1.ReasonPoweredOff
	case s.guestIdle() && reason.StandsIn(v1alpha1.InLastExit):
		return reason
	case evicted(s.berth):
		return v1alpha1.ReasonEvicted
	default:
		return v1alpha1.ReasonShimLost
	}
}

// saidToRun: the agent's last word is that the guest runs, is paused, or may run.
func (s *snapshot) saidToRun() bool {
	c := condition.Find(s.vm.Status.Conditions, v1alpha1.ConditionRunning)
	return c.Status == metav1.ConditionTrue || c.Status == metav1.ConditionUnknown || c.Reason == string(v1alpha1.ReasonPaused)
}

// mayHaveRun: it is not proven that no guest ever ran in the berth. Only its agent can tell, when it has released it.
func (s *snapshot) mayHaveRun() bool {
	reason := condition.Reason(s.vm.Status.Conditions, v1alpha1.ConditionRunning)
	neverRan := s.vm.Status.ReleasedBerth == s.berth.UID && !s.saidToRun() && !reason.StandsIn(v1alpha1.InLastExit)
	return s.statusMatchesBerth() && !neverRan
}

// guestEnded: the guest of the completed berth ended by itself, and not because its pod was being deleted. Its shim's
// termination message tells. The times do not: the API server moves a deletionTimestamp when kubelet takes its last step.
func guestEnded(pod *corev1.Pod) bool {
	var reason v1alpha1.Reason
	if t := berth.ContainerStatus(pod).State.Terminated; t != nil {
		word, _, _ := strings.Cut(t.Message, ": ") // as shimproto.Exit has it
		reason = v1alpha1.Reason(word)
	}
	switch reason {
	case v1alpha1.ReasonNotRunning: // there was none
		return false
	case v1alpha1.ReasonShutDown, v1alpha1.ReasonForcedOff:
		return !terminating(pod)
	default:
		return !terminating(pod) || reason.StandsIn(v1alpha1.InLastExit)
	}
}

// evicted: Kubernetes took the pod away, and not somebody who deleted it.
func evicted(pod *corev1.Pod) bool {
	return pod.Status.Reason == "Evicted" || berth.Condition(pod, corev1.DisruptionTarget).Status == corev1.ConditionTrue
}
