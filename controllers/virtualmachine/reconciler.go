package virtualmachine

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
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
	// Events tells users.
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
		// What was seen is out of date. The watch brings what we did, and then it is told: in one write, and
		// never that there is no berth because the cache did not have it yet.
		return kube.Outcome(err, seen.wake())
	}
	wait, e := r.report(ctx, seen, err) // the one write to the VM's status
	if e != nil {
		return kube.Outcome(e, 0) // what act met, it meets again; a user's fault must not slow this down
	}
	return kube.Outcome(err, kube.Sooner(wait, seen.wake()))
}

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinehosts,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch

// Setup registers the reconciler and its watches.
func (r *Reconciler) Setup(ctx context.Context, mgr ctrl.Manager) error {
	err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.VirtualMachine{}, indexNode, func(o client.Object) []string {
		return []string{o.(*v1alpha1.VirtualMachine).Status.NodeName}
	})
	if err != nil {
		return err
	}
	err = mgr.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, indexNode, func(o client.Object) []string {
		return []string{o.(*corev1.Pod).Spec.NodeName}
	})
	if err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.VirtualMachine{}).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(berthOwner)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.onNode), builder.WithPredicates(nodeChange)).
		Watches(&v1alpha1.VirtualMachineHost{}, handler.EnqueueRequestsFromMapFunc(r.onHost), builder.WithPredicates(hostChange)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: workers,
			// What fails is tried again soon: the API server may be back.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, 10*time.Second),
		}).
		Complete(r)
}

// indexNode finds VirtualMachines and berths by their node's name.
const indexNode = "node"

// nodeChange: a node answers no more, or again, or is vouched off. The rest that nodes tell of themselves, again and
// again, concerns no guest.
var nodeChange = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	old, now := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
	return answers(old) != answers(now) || vouchedOff(old) != vouchedOff(now)
}}

// hostChange: guests may start on a host now, or no more, or something else keeps them; or a berth on it was released.
var hostChange = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	old, now := &e.ObjectOld.(*v1alpha1.VirtualMachineHost).Status, &e.ObjectNew.(*v1alpha1.VirtualMachineHost).Status
	return !equality.Semantic.DeepEqual(
		meta.FindStatusCondition(old.Conditions, v1alpha1.ConditionHostReady), meta.FindStatusCondition(now.Conditions, v1alpha1.ConditionHostReady)) ||
		!slices.Equal(old.ReleasedBerths, now.ReleasedBerths)
}}

// berthOwner maps a berth to its VirtualMachine, which has the same name, whether or not that still exists.
func berthOwner(_ context.Context, pod client.Object) []reconcile.Request {
	if _, ok := berth.OwnerUID(pod); !ok {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(pod)}}
}

// onNode wakes everything that lives on a node: it may have gone, or come back.
func (r *Reconciler) onNode(ctx context.Context, node client.Object) []reconcile.Request {
	var vms v1alpha1.VirtualMachineList
	if err := r.Client.List(ctx, &vms, client.MatchingFields{indexNode: node.GetName()}, client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing guests of a node", "node", node.GetName())
		return nil
	}
	requests := r.berthsOn(ctx, node.GetName())
	for i := range vms.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&vms.Items[i])})
	}
	return requests
}

// onHost wakes the guests that wait for a host, and berths on it that outlived their guest.
func (r *Reconciler) onHost(ctx context.Context, host client.Object) []reconcile.Request {
	var vms v1alpha1.VirtualMachineList
	if err := r.Client.List(ctx, &vms, client.MatchingFields{indexNode: ""}, client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing guests without a node", "node", host.GetName())
		return nil
	}
	requests := r.berthsOn(ctx, host.GetName())
	for i := range vms.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&vms.Items[i])})
	}
	return requests
}

// berthsOn lists the berths on a node that are being deleted.
func (r *Reconciler) berthsOn(ctx context.Context, node string) []reconcile.Request {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.MatchingFields{indexNode: node}, client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing berths of a node", "node", node)
		return nil
	}
	var requests []reconcile.Request
	for i := range pods.Items {
		if !pods.Items[i].DeletionTimestamp.IsZero() {
			requests = append(requests, berthOwner(ctx, &pods.Items[i])...)
		}
	}
	return requests
}
