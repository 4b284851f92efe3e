package virtualmachine

import (
	"context"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/kube"
)

// workers is how many VirtualMachines are reconciled at once.
const workers = 8

// Reconciler brings VirtualMachines closer to their specs, in the API.
type Reconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// Live reads from the API server, for what the cache does not hold.
	Live client.Reader
	// Status writes the operator's part of statuses.
	Status *kube.StatusWriter
	// Events records Events of VirtualMachines.
	Events events.EventRecorder
	// Options are the administrator's.
	Options berth.Options
	// Now is the clock.
	Now func() time.Time
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
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(onBerth)).
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
	// indexNode finds VirtualMachines and berths by the name of their node.
	indexNode = "node"
	// indexOwner finds berths by the name of their VirtualMachine, also when that is gone and only its name is known.
	indexOwner = "owner"
)

func ownerName(pod client.Object) []string {
	if owner := berth.Owner(pod); owner != nil {
		return []string{owner.Name}
	}
	return nil
}

// nodeChange passes what concerns guests: whether the node is Ready, and whether it is out of service. Heartbeats do not.
var nodeChange = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	old, now := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
	return nodeReady(old) != nodeReady(now) || outOfService(old) != outOfService(now)
}}

// hostChange passes a change of the host's condition Ready, and of the berths that its agent reports as released.
var hostChange = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	old, now := &e.ObjectOld.(*v1alpha1.VirtualMachineHost).Status, &e.ObjectNew.(*v1alpha1.VirtualMachineHost).Status
	return !equality.Semantic.DeepEqual(
		meta.FindStatusCondition(old.Conditions, v1alpha1.ConditionHostReady), meta.FindStatusCondition(now.Conditions, v1alpha1.ConditionHostReady)) ||
		!slices.Equal(old.ReleasedBerths, now.ReleasedBerths)
}}

// onBerth wakes the VirtualMachine that owns a berth, whether or not it still exists.
func onBerth(_ context.Context, pod client.Object) (requests []reconcile.Request) {
	for _, name := range ownerName(pod) {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: pod.GetNamespace(), Name: name}})
	}
	return requests
}

// onNode wakes everything that lives on a node: it may have gone, or come back.
func (r *Reconciler) onNode(ctx context.Context, node client.Object) []reconcile.Request {
	return append(r.terminatingOn(ctx, node.GetName()), r.guestsOn(ctx, node.GetName())...)
}

// onHost wakes the guests that wait for a host, and the berths that wait for a report of its agent.
func (r *Reconciler) onHost(ctx context.Context, host client.Object) []reconcile.Request {
	return append(r.terminatingOn(ctx, host.GetName()), r.guestsOn(ctx, "")...)
}

// guestsOn lists the VirtualMachines of a node, or those without one if the name is "".
func (r *Reconciler) guestsOn(ctx context.Context, node string) (requests []reconcile.Request) {
	var vms v1alpha1.VirtualMachineList
	if err := r.Client.List(ctx, &vms, client.MatchingFields{indexNode: node}, client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing VirtualMachines of a node", "node", node)
		return nil
	}
	for i := range vms.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&vms.Items[i])})
	}
	return requests
}

// terminatingOn lists the owners of the berths on a node that are being deleted.
func (r *Reconciler) terminatingOn(ctx context.Context, node string) (requests []reconcile.Request) {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.MatchingFields{indexNode: node}, client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing berths of a node", "node", node)
		return nil
	}
	for i := range pods.Items {
		if terminating(&pods.Items[i]) {
			requests = append(requests, onBerth(ctx, &pods.Items[i])...)
		}
	}
	return requests
}
