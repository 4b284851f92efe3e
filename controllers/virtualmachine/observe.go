package virtualmachine

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
)

// snapshot is all that a decision may depend on.
type snapshot struct {
	vm    *v1alpha1.VirtualMachine // nil: there is none
	berth *corev1.Pod              // the VM's own; nil: there is none
	// orphan is a berth of this name whose VirtualMachine is gone: deleted, or made anew.
	orphan *corev1.Pod
	// node is the node of berth or orphan, or of the disks if there are neither; nil: it has none, or the node is gone.
	node *corev1.Node
	// host is what the agent of that node says; nil: nothing.
	host *v1alpha1.VirtualMachineHost
	// hosts are all of them, read only while there is no such node.
	hosts []v1alpha1.VirtualMachineHost
	// outdated are the changes of the spec that the berth cannot take.
	outdated []v1alpha1.PendingChange
	// altered: admission changed the berth, so it gets no guest.
	altered bool
	now     time.Time
}

func (r *Reconciler) observe(ctx context.Context, name types.NamespacedName) (seen snapshot, err error) {
	seen.now = r.Now()
	var vm v1alpha1.VirtualMachine
	if err = r.Client.Get(ctx, name, &vm); err == nil {
		seen.vm = &vm
	} else if client.IgnoreNotFound(err) != nil {
		return seen, fmt.Errorf("reading VirtualMachine: %w", err)
	}
	var pod corev1.Pod
	err = r.Client.Get(ctx, name, &pod)
	if apierrors.IsNotFound(err) && seen.vm != nil && (seen.kept() && seen.wantsGuest() || !seen.berthReleased()) { // it should be there: the cache may be behind
		err = r.Live.Get(ctx, name, &pod)
	}
	switch {
	case client.IgnoreNotFound(err) != nil:
		return seen, fmt.Errorf("reading berth: %w", err)
	case err != nil:
		return seen, r.observeHome(ctx, &seen, "")
	}
	owner, ours := berth.OwnerUID(&pod)
	switch {
	case !ours: // creating the berth will tell
	case seen.vm != nil && owner == seen.vm.UID:
		seen.berth = &pod
		changes, err := berth.Changes(pod.Annotations[berth.AnnotationSpec], &seen.vm.Spec)
		if err != nil {
			return seen, err
		}
		seen.outdated = berth.NewBerth(changes)
		seen.altered = len(seen.outdated) == 0 && berth.Altered(&pod, seen.vm) != ""
	default:
		seen.orphan = &pod
	}
	return seen, r.observeHome(ctx, &seen, pod.Spec.NodeName)
}

// observeHome reads the node and the host of the berth, or those of the VirtualMachine's disks; all hosts if there are neither.
func (r *Reconciler) observeHome(ctx context.Context, seen *snapshot, node string) error {
	if node == "" && seen.berth == nil && seen.orphan == nil && seen.vm != nil {
		node = seen.vm.Status.NodeName
	}
	if node == "" {
		var hosts v1alpha1.VirtualMachineHostList
		if err := r.Client.List(ctx, &hosts); err != nil {
			return fmt.Errorf("listing hosts: %w", err)
		}
		seen.hosts = hosts.Items
		return nil
	}
	var err error
	seen.node, err = readNode(ctx, r.Client, node)
	if err == nil && vouchedOff(seen.node) { // this is evidence: it must not be the cache that is behind
		seen.node, err = readNode(ctx, r.Live, node)
	}
	if err != nil {
		return err
	}
	var host v1alpha1.VirtualMachineHost
	if err := r.Client.Get(ctx, types.NamespacedName{Name: node}, &host); err == nil {
		seen.host = &host
	} else if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading host: %w", err)
	}
	return nil
}

// readNode returns nil when there is no such node.
func readNode(ctx context.Context, from client.Reader, name string) (*corev1.Node, error) {
	var node corev1.Node
	err := from.Get(ctx, types.NamespacedName{Name: name}, &node)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading node: %w", err)
	}
	return &node, nil
}

// vouchedOff: somebody says that nothing runs on the node, by removing it or by its taint.
func vouchedOff(node *corev1.Node) bool {
	return node == nil || slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// wantsGuest: the spec asks for a guest, running or paused.
func (s *snapshot) wantsGuest() bool {
	return s.vm != nil && s.vm.DeletionTimestamp.IsZero() && s.vm.Spec.State != v1alpha1.StateStopped
}

// kept: the VirtualMachine has had a berth, or is about to.
func (s *snapshot) kept() bool { return controllerutil.ContainsFinalizer(s.vm, berth.DiskFinalizer) }

func ending(pod *corev1.Pod) bool { return !pod.DeletionTimestamp.IsZero() }

// provenGone: no process of the berth's guest can be alive. A dead container, or a pod that failed, proves nothing.
func (s *snapshot) provenGone(pod *corev1.Pod) bool {
	switch {
	case pod.Spec.NodeName == "": // no agent ever saw it
		return true
	case vouchedOff(s.node):
		return true
	case s.vm != nil && s.vm.Status.ReleasedBerth == pod.UID:
		return true
	case s.host != nil && slices.Contains(s.host.Status.ReleasedBerths, pod.UID):
		return true
	}
	return false
}

// formerGone: no guest can be left of the berth that the status still names, though its pod is no more. Somebody may
// have taken the finalizer off that pod: then only its node's agent can tell.
func (s *snapshot) formerGone() bool { return s.berthReleased() || vouchedOff(s.node) }

// berthReleased: the status names no berth, or the agent says that nothing is left in it.
func (s *snapshot) berthReleased() bool {
	named := s.vm.Status.Berth
	return named == nil || s.vm.Status.ReleasedBerth == named.PodUID
}

// home is the node where the guest may be, "" if there is none.
func (s *snapshot) home() string {
	switch {
	case s.berth != nil:
		return s.berth.Spec.NodeName
	case s.formerGone():
		return ""
	default:
		return s.vm.Status.NodeName
	}
}

// nodeLost: the guest's node does not answer, so nobody knows of the guest.
func (s *snapshot) nodeLost() bool {
	if s.home() == "" {
		return false
	}
	return s.node == nil || !answers(s.node)
}

// answers: kubelet tells of the node.
func answers(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// guestIdle: the agent says of this berth that no guest runs in it, or it has no node yet.
func (s *snapshot) guestIdle() bool {
	return s.berth.Spec.NodeName == "" || s.named() && condition.Is(s.vm.Status.Conditions, v1alpha1.ConditionRunning, metav1.ConditionFalse) &&
		condition.Reason(s.vm.Status.Conditions, v1alpha1.ConditionRunning) != v1alpha1.ReasonPaused
}

// named: the status names the present berth, so what the agent wrote is about it.
func (s *snapshot) named() bool {
	return s.vm.Status.Berth != nil && s.vm.Status.Berth.PodUID == s.berth.UID
}

// finished: the berth's container has ended for good.
func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// endedForGood: the guest has ended, and its restartPolicy leaves it so.
func (s *snapshot) endedForGood() bool {
	return s.berth != nil && finished(s.berth) && !ending(s.berth) && s.wantsGuest() && !s.mustReplace()
}

// disksGone: nothing of the VirtualMachine is left on any node.
func (s *snapshot) disksGone() bool {
	if s.vm.Status.NodeName == "" || s.node == nil {
		return true
	}
	return condition.Reason(s.vm.Status.Conditions, v1alpha1.ConditionDisksReady) == v1alpha1.ReasonDisksRemoved
}
