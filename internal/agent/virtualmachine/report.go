package virtualmachine

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
)

// report writes what the host has of the guest, if it differs from what stands
// there. It returns when to look again for want of something worth writing.
func (r *Reconciler) report(ctx context.Context, g *target, o *observed, m plan.Memory, failure error) (time.Duration, error) {
	if g.VM == nil || !g.writable {
		return 0, nil
	}
	if errors.Is(o.Unknown, libvirtd.ErrNotConnected) || errors.Is(o.StartUnknown, store.ErrUnidentified) { // this agent is new. What comes of it wakes us
		return 0, nil
	}
	want, wait := plan.Report(g.Want, o.Have, m, failure, r.Now())
	if wait > 0 {
		return wait, nil
	}
	have := plan.Owned(&g.VM.Status)
	wrote, err := r.Status.Write(ctx, g.VM, want, have)
	if wrote {
		r.announce(ctx, g.VM, have, want)
	}
	return 0, err
}

// announce raises Events for what changed: a start, an end, and what is in the way. The log has starts and ends, too.
func (r *Reconciler) announce(ctx context.Context, vm *v1alpha1.VirtualMachine, had, has *v1alpha1.VirtualMachineStatus) {
	log := ctrl.LoggerFrom(ctx).WithValues("vm", client.ObjectKeyFromObject(vm).String())
	if e := has.LastExit; e != nil && (had.LastExit == nil || *had.LastExit != *e) {
		log.Info("Guest ended", "reason", e.Reason, "exitCode", e.ExitCode, "message", e.Message)
		if !requested(vm, e) {
			r.Events.Eventf(vm, nil, e.Reason.Event(), string(e.Reason), "Stop", "%s (exit code %d)", cmp.Or(e.Message, strings.TrimSuffix(e.Reason.When(), ".")), e.ExitCode)
		}
	}
	r.announceData(vm, had, has)
	for _, c := range has.Conditions {
		old, reason := meta.FindStatusCondition(had.Conditions, c.Type), v1alpha1.Reason(c.Reason)
		if old != nil && old.Reason == c.Reason && old.Message == c.Message {
			continue
		}
		switch {
		case reason == v1alpha1.ReasonStarted:
			if old != nil && old.Status != metav1.ConditionFalse {
				continue // it ran on
			}
			log.Info("Guest started", "node", r.Node)
			r.Events.Eventf(vm, nil, reason.Event(), c.Reason, "Start", "Guest runs on node %s", r.Node)
		case reason == v1alpha1.ReasonPullingImage:
			if old == nil || old.Reason != c.Reason {
				r.Events.Eventf(vm, nil, reason.Event(), c.Reason, "Pull", "Pulling images to node %s", r.Node)
			}
		case reason.IsWarning() && c.Message != "" && (has.LastExit == nil || reason != has.LastExit.Reason):
			r.Events.Eventf(vm, nil, reason.Event(), c.Reason, "Prepare", "%s", c.Message)
		}
	}
}

// TellPulled raises an Event for an image that has come for a guest.
func (r *Reconciler) TellPulled(uid types.UID, said string) {
	if vm, err := r.VirtualMachine(r.life, uid); err == nil && vm != nil {
		r.Events.Eventf(vm, nil, v1alpha1.ReasonPulled.Event(), string(v1alpha1.ReasonPulled), "Pull", "%s", said)
	}
}

// announceData tells of each claim that was to be seeded and had data.
func (r *Reconciler) announceData(vm *v1alpha1.VirtualMachine, had, has *v1alpha1.VirtualMachineStatus) {
	for _, d := range has.Disks {
		known := slices.ContainsFunc(had.Disks, func(old v1alpha1.DiskStatus) bool { return old.Name == d.Name && old.UsedClaimUID == d.UsedClaimUID })
		wanted := slices.ContainsFunc(vm.Spec.Disks, func(s v1alpha1.Disk) bool { return s.Name == d.Name && s.ImageName() != "" })
		if d.UsedClaimUID != "" && !d.Seeded && !known && wanted {
			reason := v1alpha1.ReasonClaimNotBlank
			r.Events.Eventf(vm, nil, reason.Event(), string(reason), "Seed", "The claim of disk %s had data already: its image was not written to it", d.Name)
		}
	}
}

// requested: the guest ended as its user asked for, and when.
func requested(vm *v1alpha1.VirtualMachine, e *v1alpha1.LastExit) bool {
	if vm.DeletionTimestamp.IsZero() && vm.Spec.State != v1alpha1.StateStopped {
		return false
	}
	grace := vm.Spec.TerminationGracePeriodSeconds
	return e.ExitCode == 0 || e.Reason == v1alpha1.ReasonForcedOff && grace != nil && *grace == 0
}
