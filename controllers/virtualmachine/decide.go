package virtualmachine

import (
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
)

// action is one change to the API.
//
//sumtype:decl
type action interface{ isAction() }

type (
	addFinalizer    struct{}              // keeps the VirtualMachine until its disks are gone
	removeFinalizer struct{}              // lets it go
	createBerth     struct{ node string } // creates the pod, on a certain node if that is not empty
	deleteBerth     struct {              // asks kubelet to end the guest and the pod
		pod   *corev1.Pod
		grace int64 // seconds
	}
	removeBerthFinalizer struct{ pod *corev1.Pod }                         // lets a pod go whose guest is gone
	takeClaims           struct{}                                          // takes the Leases of the claims for the berth
	releaseClaims        struct{ leases []coordinationv1.Lease }           // gives up those that are needed no more
	makeClaim            struct{ diskClaim }                               // makes a claim from its template
	updateClaim          struct{ seen, now *corev1.PersistentVolumeClaim } // makes of the claim that was seen what it is to be now
	// deleteFinished deletes the VirtualMachine of a guest that has ended for good, as long ago as its spec says.
	deleteFinished struct{}
)

func (addFinalizer) isAction()         {}
func (removeFinalizer) isAction()      {}
func (createBerth) isAction()          {}
func (deleteBerth) isAction()          {}
func (removeBerthFinalizer) isAction() {}
func (takeClaims) isAction()           {}
func (releaseClaims) isAction()        {}
func (makeClaim) isAction()            {}
func (updateClaim) isAction()          {}
func (deleteFinished) isAction()       {}

// decide is the whole policy. Restarts in place are kubelet's. The scheduler and the image's check need not wait for the
// finalizer: agents do, since the status names no berth before it is there (accepted).
func decide(seen snapshot) []action {
	actions := append(decideBerth(seen), decideSurplus(seen)...)
	if seen.lacksFinalizer() {
		actions = append(actions, addFinalizer{})
	}
	if leases := seen.unneeded(); len(leases) > 0 {
		actions = append(actions, releaseClaims{leases})
	}
	actions = append(actions, decideClaims(seen)...)
	if left, counts := seen.timeToLive(); counts && left <= 0 {
		actions = append(actions, deleteFinished{})
	}
	return actions
}

// decideBerth is the policy for the VirtualMachine and its berth: the first rule that applies wins.
func decideBerth(seen snapshot) []action {
	switch {
	case seen.vm == nil:
		return nil
	case seen.berth == nil:
		return decideWithoutBerth(seen)
	case terminating(seen.berth) && !seen.endIsTold():
		return nil // the status tells first how the guest ended: then the pod is no more needed for that
	case terminating(seen.berth):
		return seen.finish(placedBerth{seen.berth, seen.node, seen.host})
	case !seen.wantsGuest(), seen.restartRequested(), seen.mustReplace():
		return []action{deleteBerth{seen.berth, seen.grace()}}
	case !seen.statusMatchesBerth() && seen.acceptable() && seen.lacksLeases():
		return []action{takeClaims{}}
	default:
		return nil
	}
}

// decideSurplus ends the berths that the status does not name, and those whose VirtualMachine is gone.
func decideSurplus(seen snapshot) (actions []action) {
	for _, b := range seen.surplus {
		if terminating(b.pod) {
			actions = append(actions, seen.finish(b)...)
		} else {
			actions = append(actions, deleteBerth{b.pod, *b.pod.Spec.TerminationGracePeriodSeconds})
		}
	}
	return actions
}

func decideWithoutBerth(seen snapshot) []action {
	switch {
	case !seen.vm.DeletionTimestamp.IsZero() && seen.hasFinalizer() && seen.disksGone():
		return []action{removeFinalizer{}}
	case !seen.wantsGuest(), seen.makesClaims():
		return nil
	case seen.ended() != nil, seen.vm.Status.Ended != nil:
		return nil // the status tells first that the end of the guest before counts no more, so it is never taken for the next one's
	case !seen.previousReleased(), len(seen.surplus) > 0:
		return nil // a second guest must not start, so the agents of their nodes report first
	default:
		return []action{createBerth{node: seen.pinnedNode()}}
	}
}

// finish lets a terminating berth go: on evidence, never on a guess.
func (s *snapshot) finish(b placedBerth) []action {
	if !s.released(b) || !controllerutil.ContainsFinalizer(b.pod, berth.PodFinalizer) {
		return nil
	}
	return []action{removeBerthFinalizer{b.pod}}
}

// restartRequested: restartedAt changed since the berth was made.
func (s *snapshot) restartRequested() bool {
	return s.berth.Annotations[berth.AnnotationRestartedAt] != s.vm.Spec.RestartedAt
}

// mustReplace: kubelet will not bring the guest back in this berth, or should not.
func (s *snapshot) mustReplace() bool {
	if completed(s.berth) { // evicted, or the node shut down; else the policy has had its say
		return s.endOfBerth() == nil
	}
	if s.statusMatchesBerth() && !s.guestIdle() { // what is pending, or was changed, waits for the guest's end
		return false
	}
	return len(s.outdated) > 0 || s.misplaced || s.shimOutdated() || s.mutation != "" && s.now.Sub(s.berth.CreationTimestamp.Time) >= mutatedRetry
}

// shimOutdated: the agent starts no guest in the berth, whose shim is older than the agent, and a new berth has another.
func (s *snapshot) shimOutdated() bool {
	return s.statusMatchesBerth() && condition.Reason(s.vm.Status.Conditions, v1alpha1.ConditionRunning) == v1alpha1.ReasonShimOutdated &&
		!berth.SameImage(berth.Image(s.berth), s.shimImage)
}

// mutatedRetry is how long a berth that is not as Berth made it stands before a new one is tried: the webhook or policy
// may have been corrected, and no watch shows that.
const mutatedRetry = time.Minute

// grace is how long the berth may take to end, in seconds. No agent looks after one that was not accepted.
func (s *snapshot) grace() int64 {
	if (s.mutation != "" || s.misplaced) && !s.statusMatchesBerth() {
		return 1
	}
	return berth.GraceSeconds(s.vm)
}

// wake is after how long to reconcile again though nothing changes; 0 is never.
func (s *snapshot) wake() (wait time.Duration) {
	if s.berth != nil && s.mutation != "" && !terminating(s.berth) {
		wait = max(s.berth.CreationTimestamp.Add(mutatedRetry).Sub(s.now), time.Second)
	}
	if left, counts := s.timeToLive(); counts {
		wait = kube.MinWait(wait, max(left, time.Second))
	}
	return wait
}

// pinnedNode is the node that has the guest's kept disks, "" if there are none.
func (s *snapshot) pinnedNode() string {
	if slices.ContainsFunc(s.vm.Status.Disks, berth.OnNode) {
		return s.vm.Status.NodeName
	}
	return ""
}
