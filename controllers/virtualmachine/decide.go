package virtualmachine

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// action is one change to the API.
//
//sumtype:decl
type action interface{ isAction() }

type (
	// keepVM adds the finalizer that keeps the VirtualMachine until its disks are gone.
	keepVM struct{}
	// releaseVM removes it.
	releaseVM struct{}
	// createBerth makes the pod, on a certain node if that is not empty.
	createBerth struct{ node string }
	// deleteBerth asks kubelet to end the guest and the pod.
	deleteBerth struct {
		uid   types.UID
		grace int64 // seconds
	}
	// releaseBerth removes the finalizer that keeps the pod until its guest is gone.
	releaseBerth struct{ pod *corev1.Pod }
)

func (keepVM) isAction()       {}
func (releaseVM) isAction()    {}
func (createBerth) isAction()  {}
func (deleteBerth) isAction()  {}
func (releaseBerth) isAction() {}

// decide is the whole policy: the first rule that applies wins. Restarts in place are kubelet's.
func decide(seen snapshot) []action {
	switch {
	case seen.orphan != nil:
		return decideOrphan(seen)
	case seen.vm == nil:
		return nil
	case seen.berth == nil:
		return decideWithoutBerth(seen)
	case ending(seen.berth) && seen.provenGone(seen.berth):
		return release(seen.berth) // evidence, never a guess
	case ending(seen.berth):
		return nil
	case !seen.wantsGuest(), seen.restartAsked(), seen.mustReplace():
		return []action{deleteBerth{uid: seen.berth.UID, grace: berth.GraceSeconds(seen.vm)}}
	default:
		return nil
	}
}

// decideOrphan ends a berth whose VirtualMachine is gone.
func decideOrphan(seen snapshot) []action {
	switch {
	case !ending(seen.orphan):
		return []action{deleteBerth{uid: seen.orphan.UID, grace: *seen.orphan.Spec.TerminationGracePeriodSeconds}}
	case seen.provenGone(seen.orphan):
		return release(seen.orphan)
	default:
		return nil
	}
}

func decideWithoutBerth(seen snapshot) []action {
	switch {
	case seen.wantsGuest() && !seen.formerGone():
		return nil // a second guest must not start: its node's agent is about to tell
	case seen.wantsGuest() && !seen.kept():
		return []action{keepVM{}, createBerth{node: seen.boundTo()}}
	case seen.wantsGuest():
		return []action{createBerth{node: seen.boundTo()}}
	case !seen.vm.DeletionTimestamp.IsZero() && seen.kept() && seen.disksGone():
		return []action{releaseVM{}}
	default:
		return nil
	}
}

func release(pod *corev1.Pod) []action {
	if !controllerutil.ContainsFinalizer(pod, berth.PodFinalizer) {
		return nil
	}
	return []action{releaseBerth{pod}}
}

// restartAsked: restartedAt changed since the berth was made.
func (s *snapshot) restartAsked() bool {
	return s.berth.Annotations[berth.AnnotationRestartedAt] != s.vm.Spec.RestartedAt
}

// mustReplace: kubelet will not bring the guest back in this berth, or should not.
func (s *snapshot) mustReplace() bool {
	if finished(s.berth) { // evicted, or the node shut down; else the policy has had its say
		return s.vm.Spec.RestartPolicy == v1alpha1.RestartAlways ||
			s.vm.Spec.RestartPolicy == v1alpha1.RestartOnFailure && s.berth.Status.Phase == corev1.PodFailed
	}
	return len(s.outdated) > 0 && s.guestIdle() || s.altered && s.now.Sub(s.berth.CreationTimestamp.Time) >= alteredAgain
}

// alteredAgain is how long a berth that admission altered stands before a new one is tried: whoever altered it may
// have been mended, and nothing tells.
const alteredAgain = time.Minute

// wake is when to look again though nothing changes; 0 is never.
func (s *snapshot) wake() time.Duration {
	if s.berth != nil && s.altered && !ending(s.berth) {
		return max(s.berth.CreationTimestamp.Add(alteredAgain).Sub(s.now), time.Second)
	}
	return 0
}

// boundTo is the node that has the guest's kept disks, "" if there are none.
func (s *snapshot) boundTo() string {
	if slices.ContainsFunc(s.vm.Status.Disks, func(d v1alpha1.DiskStatus) bool { return !d.Ephemeral }) {
		return s.vm.Status.NodeName
	}
	return ""
}
