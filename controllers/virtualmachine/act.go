package virtualmachine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

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
		return r.setFinalizer(ctx, seen.vm, controllerutil.AddFinalizer, berth.DiskFinalizer)
	case removeFinalizer:
		return r.setFinalizer(ctx, seen.vm, controllerutil.RemoveFinalizer, berth.DiskFinalizer)
	case removeBerthFinalizer:
		return r.setFinalizer(ctx, a.pod, controllerutil.RemoveFinalizer, berth.PodFinalizer)
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
	if err := r.create(ctx, "berth", pod); !apierrors.IsAlreadyExists(err) {
		return err
	}
	return r.checkNameTaken(ctx, vm)
}

// create makes a berth or a claim. Somebody has to correct what the API server refuses: the spec, or a quota or policy.
func (r *Reconciler) create(ctx context.Context, what string, o client.Object, options ...client.CreateOption) error {
	err := r.Client.Create(ctx, o, options...)
	switch {
	case err == nil:
		ctrl.LoggerFrom(ctx).Info("Created "+what, "name", o.GetName(), "uid", o.GetUID())
		return nil
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return fault.NewUser(v1alpha1.ReasonBerthRefused, fmt.Errorf("the API server refuses %s %s: %w", what, o.GetName(), err))
	default:
		return fmt.Errorf("creating %s %s: %w", what, o.GetName(), err)
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

// +kubebuilder:rbac:groups="",resources=pods,verbs=patch
// +kubebuilder:rbac:groups="",resources=pods/finalizers,verbs=update
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines/finalizers,verbs=update

// setFinalizer adds or removes a finalizer of exactly the object that was seen.
func (r *Reconciler) setFinalizer(ctx context.Context, o client.Object, change func(client.Object, string) bool, finalizer string) error {
	now := o.DeepCopyObject().(client.Object)
	change(now, finalizer)
	err := r.Client.Patch(ctx, now, client.MergeFromWithOptions(o, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("setting finalizers of %s: %w", o.GetName(), err)
	}
	ctrl.LoggerFrom(ctx).Info("Set finalizers", "name", o.GetName(), "uid", o.GetUID(), "finalizers", now.GetFinalizers())
	return nil
}
