package virtualmachine

import (
	"cmp"
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
)

// target is what the API asks of one guest, for the time of one sync.
type target struct {
	plan.Want
	uid types.UID
	// writable: its status is this node's to write.
	writable bool
}

// want reads what the API asks of a guest. An error says that the API server was
// needed and did not answer; what is returned then still serves to care for a guest that runs.
func (r *Reconciler) want(ctx context.Context, uid types.UID) (*target, error) {
	g := &target{uid: uid}
	vm, err := r.VirtualMachine(ctx, uid)
	if err != nil || vm == nil {
		return g, err
	}
	if g.Machine, err = machine.Of(vm, r.Guests); err != nil {
		return g, err
	}
	g.VM = vm
	if err := r.resolve(ctx, &g.Machine); err != nil {
		return g, err
	}
	g.writable = vm.Status.NodeName == r.Node
	g.Elsewhere = vm.Status.NodeName != "" && !g.writable
	if vm.Status.Berth == nil || !g.writable {
		return g, nil
	}
	var pods corev1.PodList
	if err := r.Cache.List(ctx, &pods, client.MatchingFields{IndexUID: string(vm.Status.Berth.PodUID)}); err != nil {
		return g, fmt.Errorf("reading berth: %w", err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if owner, ok := berth.OwnerUID(pod); !ok || owner != uid || pod.Spec.NodeName != r.Node {
			continue // its name in the status is no proof alone, nor is its own word
		}
		if g.Berth, err = berthOf(pod, vm); err != nil {
			return g, err
		}
		if c := pod.Spec.SecurityContext; c != nil && c.FSGroup != nil && g.Machine.OnFileSystems() {
			g.Machine.Group = *c.FSGroup
		}
	}
	if g.Berth == nil && vm.Status.ReleasedBerth != vm.Status.Berth.PodUID {
		g.Vanished, err = r.vanished(ctx, vm)
	}
	return g, err
}

// berthOf is what a berth's pod says of itself.
func berthOf(pod *corev1.Pod, vm *v1alpha1.VirtualMachine) (*plan.Berth, error) {
	outdated, err := berth.Outdated(pod.Annotations[berth.AnnotationSpec], &vm.Spec)
	if err != nil {
		return nil, err
	}
	c := berth.ContainerStatus(pod)
	b := &plan.Berth{
		UID: pod.UID, Created: pod.CreationTimestamp.Time, Terminating: !pod.DeletionTimestamp.IsZero(),
		Completed: pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		Outdated:  outdated, Mutation: berth.Mutation(pod, vm),
		NeverStarted: c.RestartCount == 0 && c.State.Terminated == nil,
		ProbeStarted: c.Started != nil && *c.Started,
		LastExit:     exitOf(c, pod.DeletionTimestamp),
	}
	if pod.Status.StartTime != nil {
		b.Accepted = pod.Status.StartTime.Time
	}
	return b, nil
}

// exitOf is how a guest ended by the termination message of its shim, which kubelet keeps; nil if it is about none. A shim that
// was killed, perhaps for want of memory and with its QEMU, has said nothing. Its pod's deletion, if any, is when the
// grace period ends, after which kubelet does it.
func exitOf(c corev1.ContainerStatus, deletion *metav1.Time) *plan.Exit {
	t := cmp.Or(c.State.Terminated, c.LastTerminationState.Terminated)
	if t == nil {
		return nil
	}
	reason, message := shimproto.ParseTerminationMessage(t.Message)
	exit := &plan.Exit{Reason: v1alpha1.Reason(reason), Code: t.ExitCode, Message: message, ReportedAt: t.FinishedAt.Time, Began: t.StartedAt.Time}
	switch {
	case exit.Reason.StandsIn(v1alpha1.InLastExit):
		return exit
	case t.Message == "" && t.Reason == "OOMKilled":
		exit.Reason, exit.Message = v1alpha1.ReasonOOMKilled, outOfMemory
		return exit
	case t.Message == "" && t.ExitCode == plan.ForcedOff.Code && deletion != nil && !t.FinishedAt.Before(deletion):
		exit.Reason, exit.Message = plan.ForcedOff.Reason, plan.ForcedOff.Message
		return exit
	case t.Message == "" && t.ExitCode != 0: // killed, or crashed
		exit.Reason, exit.Message = plan.ShimLost.Reason, plan.ShimLost.Message
		return exit
	}
	return nil
}

// vanished is the UID of the pod that the status names, if it is no more. The cache's silence proves nothing.
func (r *Reconciler) vanished(ctx context.Context, vm *v1alpha1.VirtualMachine) (types.UID, error) {
	var pod corev1.Pod
	named := vm.Status.Berth
	err := r.Live.Get(ctx, types.NamespacedName{Namespace: vm.Namespace, Name: named.PodName}, &pod)
	if client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("reading berth %s: %w", named.PodName, err)
	}
	if err != nil || pod.UID != named.PodUID {
		return named.PodUID, nil //nolint:nilerr // gone, or made anew
	}
	return "", nil
}

// VirtualMachine finds a guest by its UID: in the cache, which holds this node's,
// or by the name that the node remembers. A watch that is limited to a node calls
// an object deleted that only moved, so the cache's silence proves nothing.
func (r *Reconciler) VirtualMachine(ctx context.Context, uid types.UID) (*v1alpha1.VirtualMachine, error) {
	var vms v1alpha1.VirtualMachineList
	if err := r.Cache.List(ctx, &vms, client.MatchingFields{IndexUID: string(uid)}); err != nil {
		return nil, fmt.Errorf("reading VirtualMachine: %w", err)
	}
	var key types.NamespacedName
	if len(vms.Items) == 1 {
		if !berth.Incomplete(&vms.Items[0]) {
			return &vms.Items[0], nil
		}
		key = client.ObjectKeyFromObject(&vms.Items[0])
	} else {
		var known bool
		if key, known = r.remembered(ctx, uid); !known {
			return nil, nil
		}
	}
	var vm v1alpha1.VirtualMachine
	err := r.Live.Get(ctx, key, &vm)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading VirtualMachine %s: %w", key, err)
	}
	if err != nil || vm.UID != uid {
		return nil, nil //nolint:nilerr // gone, or made anew
	}
	return &vm, nil
}

// remembered is the name of a guest that the cache does not hold, from what the node has of it.
func (r *Reconciler) remembered(ctx context.Context, uid types.UID) (types.NamespacedName, bool) {
	var pods corev1.PodList
	if err := r.Cache.List(ctx, &pods, client.MatchingFields{IndexOwner: string(uid)}); err == nil {
		for i := range pods.Items {
			if owner := berth.Owner(&pods.Items[i]); owner != nil && owner.UID == uid {
				return types.NamespacedName{Namespace: pods.Items[i].Namespace, Name: owner.Name}, true
			}
		}
	}
	if guests, err := r.Host.Store.List(); err == nil {
		for _, g := range guests {
			if g.UID == string(uid) && g.Name != "" {
				return types.NamespacedName{Namespace: g.Namespace, Name: g.Name}, true
			}
		}
	}
	if found, err := r.Host.Libvirt.Domain(ctx, string(uid)); err == nil && found.Exists {
		if facts, err := domain.ParseFacts(found.XML); err == nil && facts.Identity != nil {
			return types.NamespacedName{Namespace: facts.Identity.Namespace, Name: facts.Identity.Name}, true
		}
	}
	return types.NamespacedName{}, false
}
