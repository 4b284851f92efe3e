package agent

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/shims"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
)

// guest is one guest for the time of one sync.
type guest struct {
	plan.Want
	uid types.UID
	// berthUID is the pod whose container counts: the wanted berth, or else the one the domain was made for.
	berthUID types.UID
	// berthRecord is the record of the spec that the wanted berth was made from.
	berthRecord string
	// writable: its status is this node's to write.
	writable bool

	// What the last look at the host found.
	link           *shims.Session // nil while there is none; linkErr says why
	linkErr        error
	qemu           []process.Process
	images         map[string]store.Content // of those that it may have, by what needs them
	fromAfar       string                   // see fromAfar
	agentConnected bool
}

// want reads what the API asks of a guest. An error says that the API server was
// needed and did not answer; what is returned then still serves to care for a guest that runs.
func (a *Agent) want(ctx context.Context, uid types.UID) (*guest, error) {
	g := &guest{uid: uid}
	vm, err := a.virtualMachine(ctx, uid)
	if err != nil || vm == nil {
		return g, err
	}
	g.VM = vm
	g.writable = vm.Status.NodeName == a.Node
	g.Elsewhere = vm.Status.NodeName != "" && !g.writable
	if vm.Status.Berth == nil || !g.writable {
		return g, nil
	}
	var pods corev1.PodList
	if err := a.client.List(ctx, &pods, client.MatchingFields{indexUID: string(vm.Status.Berth.PodUID)}); err != nil {
		return g, fmt.Errorf("reading berth: %w", err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if owner, ok := berth.OwnerUID(pod); !ok || owner != uid || pod.Spec.NodeName != a.Node {
			continue // its name in the status is no proof alone, nor is its own word
		}
		record := pod.Annotations[berth.AnnotationSpec]
		changes, err := berth.Changes(record, &vm.Spec)
		if err != nil {
			return g, err
		}
		g.berthUID, g.berthRecord = pod.UID, record
		g.Berth = &plan.Berth{
			UID: pod.UID, Created: pod.CreationTimestamp.Time, Ending: !pod.DeletionTimestamp.IsZero(),
			Finished: pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
			Fresh:    true, Outdated: berth.NewBerth(changes), Altered: berth.Altered(pod, vm),
		}
		for _, c := range pod.Status.ContainerStatuses {
			if c.Name == berth.Container {
				g.Berth.Fresh = c.RestartCount == 0 && c.State.Terminated == nil
				g.Berth.ProbeStarted = c.Started != nil && *c.Started
				g.Berth.Ended = endOf(c, pod.DeletionTimestamp)
			}
		}
	}
	if g.Berth == nil && vm.Status.ReleasedBerth != vm.Status.Berth.PodUID {
		return g, a.lookForBerth(ctx, g)
	}
	return g, nil
}

// endOf is how a guest ended by the termination message of its shim, which kubelet keeps; nil if it is about none. A shim that
// was killed, perhaps for want of memory and with its QEMU, has said nothing. Its pod's deletion, if any, is when the
// grace period ends, after which kubelet does it.
func endOf(c corev1.ContainerStatus, deletion *metav1.Time) *plan.End {
	t := c.State.Terminated
	if t == nil {
		t = c.LastTerminationState.Terminated
	}
	if t == nil {
		return nil
	}
	reason, message := shimproto.ParseTerminationMessage(t.Message)
	end := &plan.End{Reason: v1alpha1.Reason(reason), Code: t.ExitCode, Message: message, Told: t.FinishedAt.Time}
	switch {
	case end.Reason.StandsIn(v1alpha1.InLastExit):
		return end
	case t.Message == "" && t.Reason == "OOMKilled":
		end.Reason, end.Message = v1alpha1.ReasonOOMKilled, outOfMemory
		return end
	case t.Message == "" && t.ExitCode == plan.ForcedOff.Code && deletion != nil && !t.FinishedAt.Before(deletion):
		end.Reason, end.Message = plan.ForcedOff.Reason, plan.ForcedOff.Message
		return end
	case t.Message == "" && t.ExitCode != 0: // killed, or crashed
		end.Reason, end.Message = plan.ShimLost.Reason, plan.ShimLost.Message
		return end
	}
	return nil
}

// lookForBerth finds out whether the pod that the status names is no more. The cache's silence proves nothing.
func (a *Agent) lookForBerth(ctx context.Context, g *guest) error {
	var pod corev1.Pod
	named := g.VM.Status.Berth
	err := a.live.Get(ctx, types.NamespacedName{Namespace: g.VM.Namespace, Name: named.PodName}, &pod)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading berth %s: %w", named.PodName, err)
	}
	if err != nil || pod.UID != named.PodUID {
		g.Vanished = named.PodUID
	}
	return nil
}

// virtualMachine finds a guest by its UID: in the cache, which holds this node's,
// or by the name that the node remembers. A watch that is limited to a node calls
// an object deleted that only moved, so the cache's silence proves nothing.
func (a *Agent) virtualMachine(ctx context.Context, uid types.UID) (*v1alpha1.VirtualMachine, error) {
	var vms v1alpha1.VirtualMachineList
	if err := a.client.List(ctx, &vms, client.MatchingFields{indexUID: string(uid)}); err != nil {
		return nil, fmt.Errorf("reading VirtualMachine: %w", err)
	}
	if len(vms.Items) == 1 {
		return &vms.Items[0], nil
	}
	key, known := a.remembered(ctx, uid)
	if !known {
		return nil, nil
	}
	var vm v1alpha1.VirtualMachine
	err := a.live.Get(ctx, key, &vm)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading VirtualMachine %s: %w", key, err)
	}
	if err != nil || vm.UID != uid {
		return nil, nil //nolint:nilerr // gone, or made anew
	}
	return &vm, nil
}

// remembered is the name of a guest that the cache does not hold, from what the node has of it.
func (a *Agent) remembered(ctx context.Context, uid types.UID) (types.NamespacedName, bool) {
	var pods corev1.PodList
	if err := a.client.List(ctx, &pods, client.MatchingFields{indexOwner: string(uid)}); err == nil && len(pods.Items) > 0 {
		return client.ObjectKeyFromObject(&pods.Items[0]), true
	}
	if guests, err := a.store.List(); err == nil {
		for _, g := range guests {
			if g.UID == string(uid) && g.Name != "" {
				return types.NamespacedName{Namespace: g.Namespace, Name: g.Name}, true
			}
		}
	}
	if found, err := a.libvirt.Domain(ctx, string(uid)); err == nil && found.Exists {
		if facts, err := domain.ParseFacts(found.XML); err == nil && facts.Identity != nil {
			return types.NamespacedName{Namespace: facts.Identity.Namespace, Name: facts.Identity.Name}, true
		}
	}
	return types.NamespacedName{}, false
}
