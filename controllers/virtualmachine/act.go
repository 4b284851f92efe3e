package virtualmachine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
)

// act does all actions at once: no action of one decision waits for another.
func (r *Reconciler) act(ctx context.Context, seen snapshot, actions []action) error {
	errs := make([]error, len(actions))
	var all sync.WaitGroup
	for i, a := range actions {
		all.Go(func() {
			// gofail: var beforeAction string
			// crashAt(a, beforeAction)
			errs[i] = r.do(ctx, seen, a)
			// gofail: var afterAction string
			// crashAt(a, afterAction)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (r *Reconciler) do(ctx context.Context, seen snapshot, a action) error {
	switch a := a.(type) {
	case addFinalizer:
		return r.setFinalizers(ctx, seen.vm, append(seen.vm.Finalizers, berth.DiskFinalizer))
	case removeFinalizer:
		return r.setFinalizers(ctx, seen.vm, without(seen.vm.Finalizers, berth.DiskFinalizer))
	case removeBerthFinalizer:
		return r.removeBerthFinalizer(ctx, a.pod)
	case createBerth:
		return r.createBerth(ctx, seen, a.node)
	case takeClaims:
		return r.takeClaims(ctx, seen, seen.berth.UID)
	case releaseClaims:
		return r.releaseClaims(ctx, seen.vm, a.leases)
	case makeClaim:
		return r.makeClaim(ctx, seen.vm, a.diskClaim)
	case updateClaim:
		return r.updateClaim(ctx, seen.vm, a)
	case deleteBerth:
		return r.deleteBerth(ctx, a)
	case deleteFinished:
		return r.deleteFinished(ctx, seen.vm)
	}
	return fmt.Errorf("unknown action %T", a)
}

// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create

// createBerth makes the pod, once the claims are the VirtualMachine's. That it exists already is success if it is ours.
func (r *Reconciler) createBerth(ctx context.Context, seen snapshot, node string) error {
	vm := seen.vm
	if err := seen.claimFault(); err != nil {
		return err
	}
	pod, err := berth.PodFor(berth.Input{VM: vm, Node: node, Claims: seen.berthClaims(), Options: r.Options})
	if err != nil {
		return err
	}
	if err := r.takeClaims(ctx, seen, ""); err != nil {
		return err
	}
	err = r.Client.Create(ctx, pod)
	switch {
	case err == nil:
		ctrl.LoggerFrom(ctx).Info("Created berth", "berth", pod.Name, "uid", pod.UID)
		return nil
	case apierrors.IsAlreadyExists(err):
		return r.checkNameTaken(ctx, vm)
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return fault.NewUser(v1alpha1.ReasonBerthRefused, fmt.Errorf("the API server refuses the berth: %w", err))
	default:
		return fmt.Errorf("creating berth: %w", err)
	}
}

// checkNameTaken finds out what pod has the VirtualMachine's name.
func (r *Reconciler) checkNameTaken(ctx context.Context, vm *v1alpha1.VirtualMachine) error {
	var pod corev1.Pod
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(vm), &pod); err != nil {
		return fmt.Errorf("reading the pod that has the berth's name: %w", err)
	}
	owner, ours := berth.OwnerUID(&pod)
	if ours && owner == vm.UID && pod.Labels[berth.LabelVM] != "" {
		return nil // the cache was behind
	}
	if ours {
		return fault.NewTransient(v1alpha1.ReasonPodNameTaken, fmt.Errorf("pod %s of a deleted VirtualMachine (uid %s) is still terminating", pod.Name, owner))
	}
	return fault.NewUser(v1alpha1.ReasonPodNameTaken, fmt.Errorf(
		"a pod that is not Berth's has the name %s: delete that pod, or give the VirtualMachine another name", vm.Name))
}

// +kubebuilder:rbac:groups="",resources=pods,verbs=delete

func (r *Reconciler) deleteBerth(ctx context.Context, a deleteBerth) error {
	err := r.Client.Delete(ctx, a.pod, client.GracePeriodSeconds(a.grace), client.Preconditions{UID: &a.pod.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting berth %s: %w", a.pod.Name, err)
	}
	ctrl.LoggerFrom(ctx).Info("Deleted berth", "berth", a.pod.Name, "uid", a.pod.UID, "node", a.pod.Spec.NodeName)
	return nil
}

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines,verbs=delete

// deleteFinished deletes exactly the VirtualMachine that was seen: one that was changed since, to run its guest once more for
// example, is looked at again.
func (r *Reconciler) deleteFinished(ctx context.Context, vm *v1alpha1.VirtualMachine) error {
	err := r.Client.Delete(ctx, vm, client.Preconditions{UID: &vm.UID, ResourceVersion: &vm.ResourceVersion})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting the VirtualMachine of a guest that has ended: %w", err)
	}
	ttl := *vm.Spec.TTLSecondsAfterFinished
	ctrl.LoggerFrom(ctx).Info("Deleted VirtualMachine of a finished guest", "vm", vm.Name, "uid", vm.UID, "ttlSecondsAfterFinished", ttl)
	r.Events.Eventf(vm, nil, corev1.EventTypeNormal, string(v1alpha1.ReasonTTLExpired), "Delete",
		"the guest has ended for good (%s), and ttlSecondsAfterFinished is %d: the VirtualMachine is deleted, with its disks", vm.Status.Ended.Reason, ttl)
	return nil
}

func (r *Reconciler) removeBerthFinalizer(ctx context.Context, pod *corev1.Pod) error {
	if err := r.setFinalizers(ctx, pod, without(pod.Finalizers, berth.PodFinalizer)); err != nil {
		return err
	}
	ctrl.LoggerFrom(ctx).Info("Removed finalizer of berth", "berth", pod.Name, "uid", pod.UID, "node", pod.Spec.NodeName)
	return nil
}

// finalizerPatch replaces the finalizers of exactly the object that was seen.
type finalizerPatch struct {
	Metadata struct {
		UID             types.UID `json:"uid"`
		ResourceVersion string    `json:"resourceVersion"`
		Finalizers      []string  `json:"finalizers"`
	} `json:"metadata"`
}

// +kubebuilder:rbac:groups="",resources=pods,verbs=patch
// +kubebuilder:rbac:groups="",resources=pods/finalizers,verbs=update
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines/finalizers,verbs=update

func (r *Reconciler) setFinalizers(ctx context.Context, o client.Object, finalizers []string) error {
	var p finalizerPatch
	p.Metadata.UID, p.Metadata.ResourceVersion, p.Metadata.Finalizers = o.GetUID(), o.GetResourceVersion(), finalizers
	raw, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encoding finalizers: %w", err)
	}
	target := &metav1.PartialObjectMetadata{}
	switch o.(type) {
	case *corev1.Pod:
		target.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	case *v1alpha1.VirtualMachine:
		target.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("VirtualMachine"))
	}
	target.SetNamespace(o.GetNamespace())
	target.SetName(o.GetName())
	err = r.Client.Patch(ctx, target, client.RawPatch(types.MergePatchType, raw))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("setting finalizers of %s: %w", o.GetName(), err)
	}
	return nil
}

func without(list []string, item string) []string {
	rest := []string{}
	for _, s := range list {
		if s != item {
			rest = append(rest, s)
		}
	}
	return rest
}
