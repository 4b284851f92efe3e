package virtualmachine

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
)

// workers is how many VirtualMachines are reconciled at once.
const workers = 8

// Reconciler brings VirtualMachines closer to their specs, in the API.
type Reconciler struct {
	Client  client.Client        // reads from the cache and writes to the API server
	Live    client.Reader        // reads from the API server, for what the cache does not hold
	Status  *kube.StatusWriter   // writes the operator's part of statuses
	Events  events.EventRecorder // records Events of VirtualMachines
	Options berth.Options        // the administrator's
	Now     func() time.Time
}

// Reconcile brings one VirtualMachine closer to its spec. It may be killed at any line.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	seen, err := r.observe(ctx, req.NamespacedName) // from the cache, once
	if err != nil {
		return ctrl.Result{}, err
	}
	next := decide(seen)
	err = r.act(ctx, seen, next)
	if len(next) > 0 && (err == nil || apierrors.IsConflict(err)) {
		// What was seen is out of date. The watch wakes us when the cache has what was done, and then it is reported:
		// in one write, and never that there is no berth because the cache did not have it yet.
		return kube.Outcome(err, seen.wake())
	}
	wait, e := r.report(ctx, seen, err) // the one write to the VM's status
	if e != nil {
		return kube.Outcome(e, 0) // act will fail again; a User fault of its own must not slow this down
	}
	return kube.Outcome(err, kube.MinWait(kube.MinWait(wait, seen.wake()), seen.createdIn()))
}

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinehosts,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch

// Setup registers the reconciler and its watches.
func (r *Reconciler) Setup(ctx context.Context, mgr ctrl.Manager) error {
	for _, index := range []struct {
		object client.Object
		field  string
		values client.IndexerFunc
	}{
		{&v1alpha1.VirtualMachine{}, indexNode, func(o client.Object) []string { return []string{o.(*v1alpha1.VirtualMachine).Status.NodeName} }},
		{&corev1.Pod{}, indexNode, func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }},
		{&corev1.Pod{}, indexOwner, ownerName},
		{&v1alpha1.VirtualMachine{}, indexClaim, claimNames},
		{&coordinationv1.Lease{}, indexHolder, holders},
	} {
		if err := mgr.GetFieldIndexer().IndexField(ctx, index.object, index.field, index.values); err != nil {
			return fmt.Errorf("indexing %T by %s: %w", index.object, index.field, err)
		}
	}
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.VirtualMachine{}).
		Owns(&corev1.Pod{}).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.onNode), builder.WithPredicates(nodeChange)).
		Watches(&v1alpha1.VirtualMachineHost{}, handler.EnqueueRequestsFromMapFunc(r.onHost), builder.WithPredicates(hostChange)).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.onClaim)).
		Watches(&coordinationv1.Lease{}, handler.EnqueueRequestsFromMapFunc(r.onLease)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: workers,
			// What failed is tried again within ten seconds: the API server may be back.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, 10*time.Second),
		}).
		Complete(r)
}

const (
	indexNode   = "node"   // finds VirtualMachines and berths by the name of their node
	indexOwner  = "owner"  // finds berths by the name of their VirtualMachine, also when that is gone and only its name is known
	indexClaim  = "claim"  // finds VirtualMachines by the names of their disks' claims
	indexHolder = "holder" // finds Leases by the UIDs of the VirtualMachines that own them
)

func ownerName(pod client.Object) []string {
	if owner := berth.Owner(pod); owner != nil {
		return []string{owner.Name}
	}
	return nil
}

// nodeChange passes what concerns guests: whether the node is Ready, and whether it is out of service. Heartbeats do not.
var nodeChange = kube.Changed(func(node *corev1.Node) any { return [2]bool{nodeReady(node), outOfService(node)} })

// hostChange passes a change of the host's condition Ready, and of the berths that its agent reports as released.
var hostChange = kube.Changed(func(host *v1alpha1.VirtualMachineHost) any {
	return []any{condition.Find(host.Status.Conditions, v1alpha1.ConditionHostReady), host.Status.ReleasedBerths}
})

// wake reconciles VirtualMachines by their names, whether or not they still exist.
func wake(namespace string, names ...string) (requests []reconcile.Request) {
	for _, name := range names {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}})
	}
	return requests
}

// onNode wakes everything that lives on a node: it may have gone, or come back.
func (r *Reconciler) onNode(ctx context.Context, node client.Object) []reconcile.Request {
	return append(r.terminatingOn(ctx, node.GetName()), r.find(ctx, indexNode, node.GetName(), "")...)
}

// onHost wakes the guests that wait for a host, which have no node, and the berths that wait for a report of its agent.
func (r *Reconciler) onHost(ctx context.Context, host client.Object) []reconcile.Request {
	return append(r.terminatingOn(ctx, host.GetName()), r.find(ctx, indexNode, "", "")...)
}

// find wakes the VirtualMachines of a namespace, or of all if that is "", that an index has under a value.
func (r *Reconciler) find(ctx context.Context, index, value, namespace string) (requests []reconcile.Request) {
	var vms v1alpha1.VirtualMachineList
	err := r.Client.List(ctx, &vms, client.InNamespace(namespace), client.MatchingFields{index: value}, client.UnsafeDisableDeepCopy)
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing VirtualMachines", "index", index, "value", value)
	}
	for i := range vms.Items {
		requests = append(requests, wake(vms.Items[i].Namespace, vms.Items[i].Name)...)
	}
	return requests
}

// terminatingOn wakes the owners of the berths on a node that are being deleted.
func (r *Reconciler) terminatingOn(ctx context.Context, node string) (requests []reconcile.Request) {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.MatchingFields{indexNode: node}, client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing berths of a node", "node", node)
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; terminating(pod) {
			requests = append(requests, wake(pod.Namespace, ownerName(pod)...)...)
		}
	}
	return requests
}
