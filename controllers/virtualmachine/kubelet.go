package virtualmachine

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/internal/berth"
)

const (
	// creatingPatience is how long kubelet may create a container before its Events are asked why it takes so long: of a
	// volume that it cannot mount, or a sandbox without a network, it says nothing in the pod's status.
	creatingPatience = 20 * time.Second
	// creatingLook is how often they are asked then. No watch tells of them: there are too many.
	creatingLook = time.Minute
)

// notStarted is why kubelet does not run the berth's container, in its own words, "" if it says nothing. A container that
// ended is not meant: how its guest did says more.
func notStarted(pod *corev1.Pod) string {
	c := berth.ContainerStatus(pod)
	if c.State.Running != nil {
		return ""
	}
	for _, ended := range []*corev1.ContainerStateTerminated{c.State.Terminated, c.LastTerminationState.Terminated} {
		if ended != nil && (ended.Reason == "StartError" || ended.Reason == "ContainerCannotRun") { // containerd's and CRI-O's words for a container that never ran
			return ended.Reason + ": " + ended.Message
		}
	}
	if w := c.State.Waiting; w != nil && !creating(pod) && w.Reason != "CrashLoopBackOff" {
		return w.Reason + ": " + w.Message
	}
	return ""
}

// creating: kubelet has the berth and has come to no end with its container, good or bad.
func creating(pod *corev1.Pod) bool {
	if terminating(pod) || completed(pod) || pod.Status.StartTime == nil {
		return false
	}
	c := berth.ContainerStatus(pod)
	return c.Name == "" || c.State.Waiting != nil && (c.State.Waiting.Reason == "" || c.State.Waiting.Reason == "ContainerCreating" || c.State.Waiting.Reason == "PodInitializing")
}

// createdIn is after how long a berth's container that is being created is worth a look at kubelet's Events, 0 for never.
func (s *snapshot) createdIn() time.Duration {
	if s.berth == nil || !creating(s.berth) {
		return 0
	}
	if left := creatingPatience - s.now.Sub(s.berth.Status.StartTime.Time); left > 0 {
		return min(left, creatingPatience) // our clock and the node's may differ
	}
	return creatingLook
}

// +kubebuilder:rbac:groups="",resources=events,verbs=list

// observeKubelet finds out why kubelet does not run the berth's container.
func (r *Reconciler) observeKubelet(ctx context.Context, seen *snapshot) error {
	seen.notStarted = notStarted(seen.berth)
	if seen.createdIn() != creatingLook {
		return nil
	}
	var list corev1.EventList
	if err := r.Live.List(ctx, &list, client.InNamespace(seen.berth.Namespace), client.MatchingFields{
		"involvedObject.uid": string(seen.berth.UID), "type": corev1.EventTypeWarning,
	}); err != nil {
		return fmt.Errorf("listing kubelet's Events about berth %s: %w", seen.berth.Name, err)
	}
	slices.SortStableFunc(list.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	for _, e := range list.Items { // so that the last one stays
		// Anybody who may make Events can say what a kubelet does: it is only told on.
		if e.Source.Component == "kubelet" || e.ReportingController == "kubelet" {
			seen.notStarted = e.Reason + ": " + e.Message
		}
	}
	return nil
}
