package virtualmachine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/kube"
)

// claimsManager is the field manager of the claims that are made from templates.
const claimsManager = "berth-operator-claims"

func claimNames(o client.Object) (names []string) {
	vm := o.(*v1alpha1.VirtualMachine)
	for i := range vm.Spec.Disks {
		if name := berth.ClaimName(vm, &vm.Spec.Disks[i]); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// onClaim wakes the VirtualMachines that name a claim, and the one that it was made for: of one that is large, the cache does
// not know what it names.
func (r *Reconciler) onClaim(ctx context.Context, claim client.Object) []reconcile.Request {
	requests := r.find(ctx, indexClaim, claim.GetName(), claim.GetNamespace())
	if vm, ok := claim.GetLabels()[berth.LabelVM]; ok {
		requests = append(requests, wake(claim.GetNamespace(), vm)...)
	}
	return requests
}

// TrimClaim keeps of a claim what the operator reads of it, for a cache of many thousands.
func TrimClaim(c *corev1.PersistentVolumeClaim) {
	maps.DeleteFunc(c.Labels, func(key, _ string) bool { return key != berth.LabelVM })
	*c = corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion, Labels: c.Labels,
			DeletionTimestamp: c.DeletionTimestamp, OwnerReferences: c.OwnerReferences,
		},
		Spec:   corev1.PersistentVolumeClaimSpec{AccessModes: c.Spec.AccessModes, VolumeMode: c.Spec.VolumeMode, Resources: c.Spec.Resources},
		Status: corev1.PersistentVolumeClaimStatus{Phase: c.Status.Phase, Capacity: c.Status.Capacity},
	}
}

// diskClaim is a disk of the spec that has a claim.
type diskClaim struct {
	disk     *v1alpha1.Disk
	name     string                        // the claim's
	template *v1alpha1.VolumeClaimTemplate // nil if it is made from none
	claim    *corev1.PersistentVolumeClaim // nil if it does not exist
}

// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch

// observeClaims reads the claims of the spec's disks, and the Leases that the VirtualMachine has.
func (r *Reconciler) observeClaims(ctx context.Context, seen *snapshot) error {
	vm := seen.vm
	for i := range vm.Spec.Disks {
		d := diskClaim{disk: &vm.Spec.Disks[i], name: berth.ClaimName(vm, &vm.Spec.Disks[i])}
		if d.name == "" {
			continue
		}
		if t := slices.IndexFunc(vm.Spec.VolumeClaimTemplates, func(t v1alpha1.VolumeClaimTemplate) bool {
			return t.Metadata.Name == d.disk.PersistentVolumeClaim.TemplateName
		}); t >= 0 {
			d.template = &vm.Spec.VolumeClaimTemplates[t]
		}
		var err error
		if d.claim, err = kube.Read[corev1.PersistentVolumeClaim](ctx, r.Client, types.NamespacedName{Namespace: vm.Namespace, Name: d.name}); err != nil {
			return err
		}
		seen.claims = append(seen.claims, d)
	}
	var leases coordinationv1.LeaseList
	if err := r.Client.List(ctx, &leases, client.InNamespace(vm.Namespace), client.MatchingFields{indexHolder: string(vm.UID)}); err != nil {
		return fmt.Errorf("listing the Leases of claims: %w", err)
	}
	seen.leases = leases.Items
	return nil
}

// berthClaims is what a berth has to know of the claims.
func (s *snapshot) berthClaims() map[string]corev1.PersistentVolumeMode {
	modes := map[string]corev1.PersistentVolumeMode{}
	for _, d := range s.claims {
		if d.claim != nil {
			modes[d.disk.Name] = volumeMode(d.claim)
		}
	}
	return modes
}

func volumeMode(c *corev1.PersistentVolumeClaim) corev1.PersistentVolumeMode {
	return *cmp.Or(c.Spec.VolumeMode, new(corev1.PersistentVolumeFilesystem))
}

// claimFault is why no berth can be made with the claims as they are, nil if there is nothing in the way. Each of it goes
// away by itself: a claim that changes wakes the VirtualMachine.
func (s *snapshot) claimFault() error {
	for i, d := range s.claims {
		if slices.ContainsFunc(s.claims[:i], func(e diskClaim) bool { return e.name == d.name }) { // of a template, and by its name
			return fault.NewUser(v1alpha1.ReasonClaimAccess, fmt.Errorf("disk %s: PersistentVolumeClaim %s is another disk's already: give each its own", d.disk.Name, d.name))
		}
		if reason, message := d.fault(s.vm); reason != "" {
			return fault.NewUser(reason, fmt.Errorf("disk %s: PersistentVolumeClaim %s %s", d.disk.Name, d.name, message))
		}
	}
	return nil
}

func (d diskClaim) fault(vm *v1alpha1.VirtualMachine) (reason v1alpha1.Reason, message string) {
	c := d.claim
	may := func(mode corev1.PersistentVolumeAccessMode) bool { return slices.Contains(c.Spec.AccessModes, mode) }
	switch {
	case c == nil:
		return v1alpha1.ReasonClaimMissing, "does not exist: create it, or correct claimName"
	case !c.DeletionTimestamp.IsZero(), d.template != nil && isOfAnother(c, vm):
		return v1alpha1.ReasonClaimMissing, "is being deleted: wait until it is gone and create another, which volumeClaimTemplates do by themselves, or give the disk another claim"
	case d.template != nil && c.Labels[berth.LabelVM] != vm.Name:
		return v1alpha1.ReasonClaimNameTaken, fmt.Sprintf("was not made for this VirtualMachine: rename the template, delete the claim, or label it %s=%s to hand it over", berth.LabelVM, vm.Name)
	case c.Status.Phase == corev1.ClaimLost:
		return v1alpha1.ReasonClaimLost, "has lost its PersistentVolume: restore that, or give the disk another claim"
	case d.disk.Access == v1alpha1.DiskShared && !may(corev1.ReadWriteMany):
		return v1alpha1.ReasonClaimAccess, fmt.Sprintf("has access modes %v, and the disk's access is Shared: use a claim that is ReadWriteMany, or leave access out", c.Spec.AccessModes)
	case d.disk.Access != v1alpha1.DiskReadOnly && !slices.ContainsFunc(c.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool { return m != corev1.ReadOnlyMany }):
		return v1alpha1.ReasonClaimAccess, fmt.Sprintf("has access modes %v: set the disk's access to ReadOnly, or use a claim that can be written", c.Spec.AccessModes)
	case d.disk.Size != nil && volumeMode(c) == corev1.PersistentVolumeBlock:
		return v1alpha1.ReasonClaimAccess, "is a Block volume, which the guest sees whole: leave the disk's size out"
	}
	return "", ""
}

// isOfAnother: the claim goes with another VirtualMachine, one that had this name before.
func isOfAnother(c *corev1.PersistentVolumeClaim, vm *v1alpha1.VirtualMachine) bool {
	return slices.ContainsFunc(c.OwnerReferences, func(o metav1.OwnerReference) bool { return ownsClaim(o) && o.UID != vm.UID })
}

func ownsClaim(o metav1.OwnerReference) bool {
	return o.Kind == "VirtualMachine" && strings.HasPrefix(o.APIVersion, v1alpha1.GroupVersion.Group+"/")
}

func ownerOf(vm *v1alpha1.VirtualMachine) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "VirtualMachine", Name: vm.Name, UID: vm.UID}
}

// decideClaims makes the claims that a guest needs from their templates, and keeps those that exist as the spec has them.
func decideClaims(seen snapshot) (actions []action) {
	if seen.vm == nil || !seen.vm.DeletionTimestamp.IsZero() {
		return nil
	}
	for _, d := range seen.claims {
		switch {
		case d.template == nil:
		case d.claim == nil && seen.wantsGuest():
			actions = append(actions, makeClaim{d})
		case d.claim != nil && d.claim.DeletionTimestamp.IsZero() && !isOfAnother(d.claim, seen.vm) && d.claim.Labels[berth.LabelVM] == seen.vm.Name:
			if now := d.updated(seen.vm); now != nil {
				actions = append(actions, updateClaim{d.claim, now})
			}
		}
	}
	return actions
}

// makesClaims: there are claims to be made first.
func (s *snapshot) makesClaims() bool {
	return slices.ContainsFunc(s.claims, func(d diskClaim) bool { return d.template != nil && d.claim == nil })
}

// updated is the claim as the spec's retention has it, and then as large as its template; nil if it is both.
func (d diskClaim) updated(vm *v1alpha1.VirtualMachine) *corev1.PersistentVolumeClaim {
	now := d.claim.DeepCopy()
	bound := now.Status.Phase == corev1.ClaimBound // no other may grow
	request, owned := d.template.Spec.Resources.Requests[corev1.ResourceStorage], slices.ContainsFunc(now.OwnerReferences, ownsClaim)
	switch deleted := vm.Spec.VolumeClaimRetention == v1alpha1.VolumeClaimDelete; {
	case deleted && !owned:
		now.OwnerReferences = append(now.OwnerReferences, ownerOf(vm))
	case !deleted && owned:
		now.OwnerReferences = slices.DeleteFunc(now.OwnerReferences, ownsClaim)
	case bound && request.Cmp(now.Spec.Resources.Requests[corev1.ResourceStorage]) > 0:
		now.Spec.Resources.Requests[corev1.ResourceStorage] = request
	default:
		return nil
	}
	return now
}

// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=create;patch

// makeClaim makes a claim from its template. One that exists already comes by watch.
func (r *Reconciler) makeClaim(ctx context.Context, vm *v1alpha1.VirtualMachine, d diskClaim) error {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: vm.Namespace, Name: d.name, Labels: maps.Clone(d.template.Metadata.Labels), Annotations: d.template.Metadata.Annotations,
		},
		Spec: d.template.Spec,
	}
	metav1.SetMetaDataLabel(&claim.ObjectMeta, berth.LabelVM, vm.Name)
	if vm.Spec.VolumeClaimRetention == v1alpha1.VolumeClaimDelete {
		claim.OwnerReferences = []metav1.OwnerReference{ownerOf(vm)}
	}
	return client.IgnoreAlreadyExists(r.create(ctx, "PersistentVolumeClaim", claim, client.FieldOwner(claimsManager)))
}

// updateClaim changes exactly the claim that was seen. That it cannot grow is told in an Event: the guest has what it has.
func (r *Reconciler) updateClaim(ctx context.Context, vm *v1alpha1.VirtualMachine, u updateClaim) error {
	err := r.Client.Patch(ctx, u.now, client.MergeFromWithOptions(u.seen, client.MergeFromWithOptimisticLock{}), client.FieldOwner(claimsManager))
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		r.Events.Eventf(vm, u.seen, corev1.EventTypeWarning, string(v1alpha1.ReasonClaimNotGrown), "Grow", "PersistentVolumeClaim %s stays as it is: %v", u.seen.Name, err)
		return &fault.Error{Class: fault.User, Reason: v1alpha1.ReasonClaimNotGrown, Err: err} // no condition tells it
	}
	return fault.Doing(err, "updating PersistentVolumeClaim %s", u.seen.Name)
}
