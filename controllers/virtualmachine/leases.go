package virtualmachine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/kube"
)

// A Lease berth-<claim UID> says who writes to a claim. Its holder is the UID of the one VirtualMachine that does, or how
// several use it; its owners are the VirtualMachines that use it, and an annotation for each has the UID of the berth that the
// status names, or is about to. It is there before such a berth is, and goes when no guest can be left in it. That a Lease is
// there, the API server decides and no cache.
const (
	leasePrefix = "berth-"
	// annotationBerth and the UID of a VirtualMachine are the key of its berth's UID. No UID: it has no berth yet.
	annotationBerth             = "berth.dev/berth."
	annotationClaim             = "berth.dev/claim"   // has the claim's name
	holderShared, holderReaders = "shared", "readers" // the holders of a Lease that several can have
)

func holders(lease client.Object) (uids []string) {
	for _, o := range lease.GetOwnerReferences() {
		uids = append(uids, string(o.UID))
	}
	return uids
}

// onLease wakes the VirtualMachines that have a claim, and those that wait for it.
func (r *Reconciler) onLease(ctx context.Context, lease client.Object) []reconcile.Request {
	requests := r.find(ctx, indexClaim, lease.GetAnnotations()[annotationClaim], lease.GetNamespace())
	for _, o := range lease.GetOwnerReferences() {
		requests = append(requests, wake(lease.GetNamespace(), o.Name)...)
	}
	return requests
}

// holder is how a VirtualMachine has a claim: alone, or with others that use it likewise.
func holder(vm *v1alpha1.VirtualMachine, d *v1alpha1.Disk) string {
	shared := map[v1alpha1.DiskAccess]string{v1alpha1.DiskShared: holderShared, v1alpha1.DiskReadOnly: holderReaders}
	return cmp.Or(shared[d.Access], string(vm.UID))
}

// lacksLeases: the Leases do not say yet that the berth has the claims. The status does not name it before.
func (s *snapshot) lacksLeases() bool {
	return slices.ContainsFunc(s.claims, func(d diskClaim) bool {
		return d.claim == nil || !slices.ContainsFunc(s.leases, func(l coordinationv1.Lease) bool {
			return l.Name == leasePrefix+string(d.claim.UID) && l.DeletionTimestamp.IsZero() && l.Annotations[annotationBerth+string(s.vm.UID)] == string(s.berth.UID)
		})
	})
}

// unneeded are the Leases that the VirtualMachine has for nothing: no guest of it can be left, and none is to come that has
// those claims.
func (s *snapshot) unneeded() []coordinationv1.Lease {
	return slices.DeleteFunc(slices.Clone(s.leases), func(l coordinationv1.Lease) bool {
		uid := types.UID(l.Annotations[annotationBerth+string(s.vm.UID)])
		used := s.berth != nil && s.berth.UID == uid || slices.ContainsFunc(s.surplus, func(b placedBerth) bool { return b.pod.UID == uid }) ||
			s.vm.Status.Berth != nil && s.vm.Status.Berth.PodUID == uid && !s.previousReleased()
		needed := s.wantsGuest() && s.ended() == nil && slices.ContainsFunc(s.claims, func(d diskClaim) bool {
			return d.claim != nil && l.Name == leasePrefix+string(d.claim.UID)
		})
		return used || needed || !l.DeletionTimestamp.IsZero()
	})
}

// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,verbs=get;list;watch;create;update;delete

// takeClaims takes the Leases of the claims, for a berth of that UID, "" before it has one. All take them in the same order, so
// no two wait for each other.
func (r *Reconciler) takeClaims(ctx context.Context, seen snapshot, pod types.UID) error {
	if err := seen.claimFault(); err != nil {
		return err
	}
	claims := slices.SortedFunc(slices.Values(seen.claims), func(a, b diskClaim) int { return cmp.Compare(a.claim.UID, b.claim.UID) })
	for _, d := range claims {
		if err := r.takeClaim(ctx, seen.vm, d, pod); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reconciler) takeClaim(ctx context.Context, vm *v1alpha1.VirtualMachine, d diskClaim, pod types.UID) error {
	name, how, key := leasePrefix+string(d.claim.UID), holder(vm, d.disk), annotationBerth+string(vm.UID)
	had, err := kube.Read[coordinationv1.Lease](ctx, r.Live, types.NamespacedName{Namespace: vm.Namespace, Name: name})
	if err != nil {
		return err
	}
	lease := cmp.Or(had, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: vm.Namespace, Name: name, Labels: map[string]string{berth.LabelVM: vm.Name}},
	})
	others := slices.DeleteFunc(slices.Clone(lease.OwnerReferences), func(o metav1.OwnerReference) bool { return o.UID == vm.UID })
	alike, last := lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity == how, lease.Annotations[key]
	switch {
	case had == nil:
	case !lease.DeletionTimestamp.IsZero(), len(others) > 0 && !alike, len(lease.OwnerReferences) == 0:
		return fault.NewUser(v1alpha1.ReasonClaimInUse, fmt.Errorf("disk %s: PersistentVolumeClaim %s is in use by %s", d.disk.Name, d.name, users(others, name)))
	case alike && len(others) < len(lease.OwnerReferences) && (pod == "" || last == string(pod)):
		return nil
	case last != "" && last != string(pod):
		there, err := kube.Read[corev1.Pod](ctx, r.Live, client.ObjectKeyFromObject(vm))
		if err != nil || there != nil && string(there.UID) == last { // what was seen is out of date
			return errors.Join(err, fmt.Errorf("PersistentVolumeClaim %s is still that of berth %s", d.name, last))
		}
	}
	lease.Spec.HolderIdentity, lease.OwnerReferences = &how, append(others, ownerOf(vm))
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, annotationClaim, d.name)
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, key, string(pod))
	if had != nil {
		err = r.Client.Update(ctx, lease)
	} else if err = r.Client.Create(ctx, lease); apierrors.IsAlreadyExists(err) { // another was first
		return r.takeClaim(ctx, vm, d, pod)
	}
	if err != nil {
		return fmt.Errorf("writing Lease %s of PersistentVolumeClaim %s: %w", name, d.name, err)
	}
	ctrl.LoggerFrom(ctx).Info("Took claim", "claim", d.name, "lease", name, "holder", how, "berth", pod)
	return nil
}

// users tells who has a claim, and what to do.
func users(others []metav1.OwnerReference, lease string) string {
	if len(others) == 0 {
		return fmt.Sprintf("nobody that Berth knows: delete Lease %s once nothing uses the claim", lease)
	}
	return fmt.Sprintf("VirtualMachine %s (UID %s): stop or delete that one, or set access of the disk to Shared or ReadOnly in both", others[0].Name, others[0].UID)
}

// releaseClaims gives up exactly the Leases that were seen. Of the berth that one names, no pod may be left.
func (r *Reconciler) releaseClaims(ctx context.Context, vm *v1alpha1.VirtualMachine, leases []coordinationv1.Lease) error {
	pod, err := kube.Read[corev1.Pod](ctx, r.Live, client.ObjectKeyFromObject(vm))
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range leases {
		key, claim := annotationBerth+string(vm.UID), l.Annotations[annotationClaim]
		if pod != nil && string(pod.UID) == l.Annotations[key] {
			continue // the cache is behind
		}
		lease := l.DeepCopy()
		delete(lease.Annotations, key)
		lease.OwnerReferences = slices.DeleteFunc(lease.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == vm.UID })
		if len(lease.OwnerReferences) > 0 {
			err = r.Client.Update(ctx, lease)
		} else {
			err = client.IgnoreNotFound(r.Client.Delete(ctx, lease, client.Preconditions{UID: &l.UID, ResourceVersion: &l.ResourceVersion}))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("giving up Lease %s of PersistentVolumeClaim %s: %w", l.Name, claim, err))
			continue
		}
		ctrl.LoggerFrom(ctx).Info("Gave up claim", "claim", claim, "lease", l.Name)
	}
	return errors.Join(errs...)
}
