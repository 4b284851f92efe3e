package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/kube"
)

// Reconciler has nodes have images.
type Reconciler struct {
	Client  client.Client      // reads from the cache and writes to the API server
	Status  *kube.StatusWriter // writes statuses
	Options berth.Options      // the administrator's
	Now     func() time.Time
}

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachineimages,verbs=get;list;watch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachineimages/status,verbs=patch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachineimages/finalizers,verbs=update
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinehosts,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create;delete

// Reconcile brings one VirtualMachineImage closer to its spec. It may be killed at any line.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	image, err := kube.Read[v1alpha1.VirtualMachineImage](ctx, r.Client, req.NamespacedName)
	if err != nil || image == nil || !image.DeletionTimestamp.IsZero() { // porters go with their owner
		return ctrl.Result{}, err
	}
	s := seen{image: image, now: r.Now()}
	var nodes corev1.NodeList
	var hosts v1alpha1.VirtualMachineHostList
	var porters corev1.PodList
	if err := errors.Join(r.Client.List(ctx, &nodes), r.Client.List(ctx, &hosts),
		r.Client.List(ctx, &porters, client.InNamespace(image.Namespace), client.MatchingFields{indexPorter: string(image.UID)})); err != nil {
		return ctrl.Result{}, fmt.Errorf("reading what image %s has: %w", image.Name, err)
	}
	s.nodes, s.hosts, s.porters = nodes.Items, hosts.Items, porters.Items
	n := decide(s)
	for _, e := range n.create {
		failed := r.create(ctx, image, e)
		if apierrors.IsForbidden(failed) || apierrors.IsInvalid(failed) { // a quota, or an admission policy
			n.failures, failed = append(n.failures, failure{e.node, failed.Error(), v1alpha1.ReasonBerthRefused}), nil
			n.wake = kube.MinWait(n.wake, rest)
		}
		err = errors.Join(err, failed)
	}
	n.tell(s)
	if _, failed := r.Status.Write(ctx, image, &n.status, &image.Status); failed != nil {
		return kube.Outcome(errors.Join(err, failed), n.wake)
	}
	for _, p := range n.remove { // what they found out is in the status now
		if p.DeletionTimestamp.IsZero() {
			err = errors.Join(err, client.IgnoreNotFound(r.Client.Delete(ctx, p, client.Preconditions{UID: &p.UID})))
		}
	}
	return kube.Outcome(err, n.wake)
}

func (r *Reconciler) create(ctx context.Context, image *v1alpha1.VirtualMachineImage, e errand) error {
	pod, err := berth.Porter(image, e.node, e.digest, r.Options)
	if err == nil {
		err = r.Client.Create(ctx, pod)
	}
	// That it exists says that the cache is behind, or that the last one is still going.
	return fault.Doing(client.IgnoreAlreadyExists(err), "making the porter for node %s", e.node)
}

// indexPorter finds porters by the UID of their VirtualMachineImage.
const indexPorter = "porter"

// Setup registers the reconciler and its watches.
func (r *Reconciler) Setup(ctx context.Context, mgr ctrl.Manager) error {
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, indexPorter, func(o client.Object) []string {
		if owner := berth.PorterOwner(o); owner != nil {
			return []string{string(owner.UID)}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("indexing porters: %w", err)
	}
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.VirtualMachineImage{}).
		Owns(&corev1.Pod{}).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(kube.Changed(func(n *corev1.Node) any {
			return []any{n.Labels, n.Spec.Unschedulable, n.Spec.Taints}
		}))).
		Watches(&v1alpha1.VirtualMachineHost{}, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(kube.Changed(func(h *v1alpha1.VirtualMachineHost) any {
			return h.Status.Images
		}))).
		Complete(r)
}

// all wakes every image: a node has come, gone or changed.
func (r *Reconciler) all(ctx context.Context, _ client.Object) (requests []reconcile.Request) {
	var images v1alpha1.VirtualMachineImageList
	if err := r.Client.List(ctx, &images); err != nil {
		return nil // the next change, or the resync, asks again
	}
	for _, i := range images.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&i)})
	}
	return requests
}
