package virtualmachine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
)

// snapshot is all that a decision may depend on.
type snapshot struct {
	vm    *v1alpha1.VirtualMachine     // nil: there is none
	berth *corev1.Pod                  // the VirtualMachine's, see assign; nil: there is none
	node  *corev1.Node                 // of the berth, or status.nodeName's if there is no berth; nil: it has none, or the node is gone
	host  *v1alpha1.VirtualMachineHost // what the agent of that node reports; nil: nothing
	// surplus are the other berths of VirtualMachines of this name: the status does not name them, or their
	// VirtualMachine was deleted, and perhaps created again.
	surplus  []placedBerth
	hosts    []v1alpha1.VirtualMachineHost // all, read only while the berth has no node
	outdated []v1alpha1.PendingChange      // the changes of the spec that the berth cannot take
	mutation string                        // how the berth is not as Berth made it, so that no guest starts in it; "" if it is
	// misplaced: the berth is on another node than the guest's kept disks, of which the status did not tell when it was made.
	misplaced  bool
	notStarted string                 // why kubelet does not run the berth's container, in its words; "" if it says nothing
	claims     []diskClaim            // the disks of the spec that have one
	leases     []coordinationv1.Lease // those that the VirtualMachine has of claims
	shimImage  string                 // of the operator's own shim
	now        time.Time
}

// placedBerth is a berth with its node and host, nil as in snapshot.
type placedBerth struct {
	pod  *corev1.Pod
	node *corev1.Node
	host *v1alpha1.VirtualMachineHost
}

func (r *Reconciler) observe(ctx context.Context, name types.NamespacedName) (snapshot, error) {
	seen := snapshot{now: r.Now(), shimImage: r.Options.ShimImage}
	if err := r.observeBerths(ctx, &seen, name); err != nil || seen.vm == nil {
		return seen, err
	}
	if err := r.observeClaims(ctx, &seen); err != nil || seen.berth == nil {
		return seen, err
	}
	var err error
	if seen.outdated, err = berth.Outdated(seen.berth.Annotations[berth.AnnotationSpec], &seen.vm.Spec); err != nil {
		return seen, err
	}
	if err := r.observeKubelet(ctx, &seen); err != nil {
		return seen, err
	}
	node := seen.berth.Spec.NodeName
	switch {
	case len(seen.outdated) > 0:
	case seen.statusMatchesBerth():
		seen.mutation = berth.Mutation(seen.berth, seen.vm)
	case node != "":
		if err := r.compare(ctx, &seen); err != nil {
			return seen, err
		}
	}
	if node != seen.vm.Status.NodeName {
		seen.node, seen.host, err = r.observeNode(ctx, node)
	}
	if err == nil && node == "" {
		var hosts v1alpha1.VirtualMachineHostList
		err = r.Client.List(ctx, &hosts)
		seen.hosts = hosts.Items
	}
	return seen, err
}

// observeBerths reads the VirtualMachine and the berths of all VirtualMachines of its name.
func (r *Reconciler) observeBerths(ctx context.Context, seen *snapshot, name types.NamespacedName) error {
	if err := r.observeVM(ctx, r.Client, seen, name); err != nil {
		return err
	}
	var list corev1.PodList
	if err := r.Client.List(ctx, &list, client.InNamespace(name.Namespace), client.MatchingFields{indexOwner: name.Name}); err != nil {
		return fmt.Errorf("listing berths: %w", err)
	}
	pods := list.Items
	seen.assign(pods)
	if expected := seen.expectedBerth(); expected != "" && seen.berth == nil { // the cache may be behind
		pod, err := kube.Read[corev1.Pod](ctx, r.Live, types.NamespacedName{Namespace: name.Namespace, Name: expected})
		if err != nil {
			return err
		}
		if pod != nil && berth.Owner(pod) != nil { // whose any other pod is, createBerth finds out
			pods = append(slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.UID == pod.UID }), *pod)
			seen.assign(pods)
		}
	}
	if slices.ContainsFunc(seen.surplus, func(b placedBerth) bool { return !terminating(b.pod) }) || seen.berth != nil && seen.lacksFinalizer() {
		// A berth is about to be deleted because the status does not name it, or the finalizer to be set, as it was a moment
		// ago: it must not be the cache that is behind.
		if err := r.observeVM(ctx, r.Live, seen, name); err != nil {
			return err
		}
		seen.assign(pods)
	}
	for i := range seen.surplus {
		var err error
		b := &seen.surplus[i]
		if b.node, b.host, err = r.observeNode(ctx, b.pod.Spec.NodeName); err != nil {
			return err
		}
	}
	return nil
}

// compare tells whether a berth is as Berth makes it, before the status names it and a guest can start in it: admission may
// have changed it, or somebody else made it. Later the API server lets nobody change more than what berth.Mutation looks at.
func (r *Reconciler) compare(ctx context.Context, seen *snapshot) error {
	pod, err := kube.Read[corev1.Pod](ctx, r.Live, client.ObjectKeyFromObject(seen.berth)) // the cache has a part of it
	if err != nil {
		return err
	}
	if pod == nil || pod.UID != seen.berth.UID {
		return fmt.Errorf("berth %s was deleted meanwhile", seen.berth.Name)
	}
	if seen.mutation, err = r.unlike(pod, seen); err != nil {
		return err
	}
	disks := seen.pinnedNode()
	seen.misplaced = disks != "" && disks != pod.Spec.NodeName
	if seen.mutation == "" && !seen.misplaced {
		return nil
	}
	// It is about to be deleted as one without a guest: it must not be the cache that is behind.
	version := seen.vm.ResourceVersion
	if err := r.observeVM(ctx, r.Live, seen, client.ObjectKeyFromObject(seen.vm)); err != nil {
		return err
	}
	if seen.vm == nil || seen.vm.ResourceVersion != version {
		return fmt.Errorf("the VirtualMachine of berth %s changed meanwhile", pod.Name)
	}
	return nil
}

// unlike says how a pod is not the berth that Berth makes, "" if it is. The status may have said less of disks when it was
// made, so it may be bound to no node, or to the one where it is.
func (r *Reconciler) unlike(pod *corev1.Pod, seen *snapshot) (mutation string, err error) {
	for _, node := range []string{seen.pinnedNode(), "", pod.Spec.NodeName} {
		made, err := berth.PodFor(berth.Input{VM: seen.vm, Node: node, Claims: seen.berthClaims(), Options: r.Options})
		if err != nil { // the administrator's options have changed
			return err.Error(), nil //nolint:nilerr // it is told as such
		}
		differs, err := berth.Unlike(pod, made)
		if err != nil || differs == "" {
			return "", err
		}
		mutation = cmp.Or(mutation, differs)
	}
	return mutation, nil
}

// accepted: the berth has a node, and its guest may be started there. Nothing is made there before the finalizer is set, and
// the claims are the berth's.
func (s *snapshot) accepted() bool {
	return s.berth.Spec.NodeName != "" && (s.statusMatchesBerth() || s.acceptable() && !s.lacksFinalizer() && !s.lacksLeases())
}

// acceptable: the berth has a node, and is as the spec has it.
func (s *snapshot) acceptable() bool {
	return s.berth.Spec.NodeName != "" && s.mutation == "" && !s.misplaced && len(s.outdated) == 0
}

// observeVM reads the VirtualMachine, which the API server has whole if the cache has not, and the node and host of its status.
func (r *Reconciler) observeVM(ctx context.Context, from client.Reader, seen *snapshot, name types.NamespacedName) (err error) {
	seen.vm, err = kube.Read[v1alpha1.VirtualMachine](ctx, from, name)
	if err == nil && seen.vm != nil && berth.Incomplete(seen.vm) {
		seen.vm, err = kube.Read[v1alpha1.VirtualMachine](ctx, r.Live, name)
	}
	if err != nil || seen.vm == nil {
		return err
	}
	seen.node, seen.host, err = r.observeNode(ctx, seen.vm.Status.NodeName)
	return err
}

// observeNode reads a node and its host. Each is nil if there is none, or if the name is "".
func (r *Reconciler) observeNode(ctx context.Context, name string) (*corev1.Node, *v1alpha1.VirtualMachineHost, error) {
	if name == "" {
		return nil, nil, nil
	}
	key := types.NamespacedName{Name: name}
	node, err := kube.Read[corev1.Node](ctx, r.Client, key)
	if err == nil && outOfService(node) { // this is evidence: it must not be the cache that is behind
		node, err = kube.Read[corev1.Node](ctx, r.Live, key)
	}
	if err != nil {
		return nil, nil, err
	}
	host, err := kube.Read[v1alpha1.VirtualMachineHost](ctx, r.Client, key)
	return node, host, err
}

// assign finds the VirtualMachine's berth among the pods that VirtualMachines of its name own. It is the one that the
// status names by UID. If there is no such pod, it is the pod of the VirtualMachine's name, as long as no guest is left
// of what the status names: else a second guest could start. All other pods are surplus.
func (s *snapshot) assign(pods []corev1.Pod) {
	s.berth, s.surplus = nil, nil
	find := func(is func(*corev1.Pod) bool) {
		for i := range pods {
			if owner, _ := berth.OwnerUID(&pods[i]); s.berth == nil && owner == s.vm.UID && is(&pods[i]) {
				s.berth = &pods[i]
			}
		}
	}
	if s.vm != nil {
		find(func(pod *corev1.Pod) bool { return s.vm.Status.Berth != nil && s.vm.Status.Berth.PodUID == pod.UID })
		find(func(pod *corev1.Pod) bool { return pod.Name == s.vm.Name && s.previousReleased() })
	}
	for i := range pods {
		if pod := &pods[i]; pod != s.berth {
			s.surplus = append(s.surplus, placedBerth{pod: pod})
		}
	}
}

// outOfService: the administrator says that nothing runs on the node, by deleting it or by its taint.
func outOfService(node *corev1.Node) bool {
	return node == nil || slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// wantsGuest: the spec asks for a guest, running or paused.
func (s *snapshot) wantsGuest() bool {
	return s.vm != nil && s.vm.DeletionTimestamp.IsZero() && s.vm.Spec.State != v1alpha1.StateStopped
}

// hasFinalizer: the VirtualMachine has a berth that may have disks, or had one.
func (s *snapshot) hasFinalizer() bool {
	return controllerutil.ContainsFinalizer(s.vm, berth.DiskFinalizer)
}

// lacksFinalizer: the VirtualMachine is to have a guest, or may have disks on its node, and nothing keeps it until they are
// gone. It is new, or somebody took the finalizer off, or left it out of what replaced it.
func (s *snapshot) lacksFinalizer() bool {
	return s.vm != nil && s.vm.DeletionTimestamp.IsZero() && !s.hasFinalizer() && (s.wantsGuest() || s.vm.Status.NodeName != "")
}

func terminating(pod *corev1.Pod) bool { return !pod.DeletionTimestamp.IsZero() }

// released: no process of the berth's guest can be alive. A dead container, or a pod that failed, proves nothing.
func (s *snapshot) released(b placedBerth) bool {
	return b.pod.Spec.NodeName == "" || // no agent ever saw it
		outOfService(b.node) ||
		s.vm != nil && s.vm.Status.ReleasedBerth == b.pod.UID ||
		b.host != nil && slices.Contains(b.host.Status.ReleasedBerths, b.pod.UID)
}

// expectedBerth is the name of the berth that there is, or was, going by the VirtualMachine alone; "" for none.
func (s *snapshot) expectedBerth() string {
	switch {
	case s.vm == nil:
		return ""
	case !s.statusReleased():
		return s.vm.Status.Berth.PodName
	case s.hasFinalizer() && s.wantsGuest() && s.vm.Status.Ended == nil:
		return s.vm.Name
	default:
		return ""
	}
}

// previousReleased: no guest is left of the berth that the status still names, though its pod is gone. Somebody may
// have removed the finalizer of that pod: then only its node's agent knows.
func (s *snapshot) previousReleased() bool { return s.statusReleased() || outOfService(s.node) }

// statusReleased: the status names no berth, or one of which the agent reports that nothing is left.
func (s *snapshot) statusReleased() bool {
	return s.vm.Status.Berth == nil || s.vm.Status.ReleasedBerth == s.vm.Status.Berth.PodUID
}

// guestNode is the node where the guest may be, "" if there is none.
func (s *snapshot) guestNode() string {
	switch {
	case s.berth != nil:
		return s.berth.Spec.NodeName
	case s.previousReleased():
		return ""
	default:
		return s.vm.Status.NodeName
	}
}

// nodeLost: the guest's node is not Ready or does not exist, so nobody knows whether the guest runs.
func (s *snapshot) nodeLost() bool {
	return s.guestNode() != "" && (s.node == nil || !nodeReady(s.node))
}

// nodeReady: the node's kubelet reports, and its condition Ready is True.
func nodeReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// guestIdle: the agent reports that no guest runs in this berth, or it has no node yet.
func (s *snapshot) guestIdle() bool {
	c := condition.Find(s.vm.Status.Conditions, v1alpha1.ConditionRunning)
	return s.berth.Spec.NodeName == "" || s.statusMatchesBerth() && c.Status == metav1.ConditionFalse && c.Reason != string(v1alpha1.ReasonPaused)
}

// statusMatchesBerth: the status names the present berth, so what the agent wrote is about it.
func (s *snapshot) statusMatchesBerth() bool {
	return s.vm.Status.Berth != nil && s.vm.Status.Berth.PodUID == s.berth.UID
}

// completed: the berth's container has ended for good.
func completed(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// disksGone: nothing of the VirtualMachine is left on any node.
func (s *snapshot) disksGone() bool {
	return s.vm.Status.NodeName == "" || s.node == nil ||
		condition.Reason(s.vm.Status.Conditions, v1alpha1.ConditionDisksReady) == v1alpha1.ReasonDisksRemoved
}
