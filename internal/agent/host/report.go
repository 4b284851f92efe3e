package host

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

const (
	// Oldest versions that Berth works with.
	minLibvirt = "8.0"
	minQEMU    = "6.2"
	minKernel  = "5.6" // pidfd_getfd

	// resyncPeriod is how often the host is reconciled though nothing happened.
	resyncPeriod = 5 * time.Minute
	// notReadyResyncPeriod is the same while no guest can start on it: most of what repairs a host sends no event.
	notReadyResyncPeriod = 15 * time.Second
)

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinehosts/status,verbs=patch

// report writes the host's status if it differs, and returns when to reconcile again.
func (r *Reconciler) report(ctx context.Context, seen snapshot) (time.Duration, error) {
	want, wake := r.wantedStatus(&seen)
	_, err := r.status.Write(ctx, seen.host, want, &seen.host.Status)
	return wake, err
}

// wantedStatus is the status that the host should have, and when to reconcile again. What cannot be read stays as it was.
func (r *Reconciler) wantedStatus(seen *snapshot) (*v1alpha1.VirtualMachineHostStatus, time.Duration) {
	old, s := seen.host.Status, seen.status.DeepCopy()
	s.Acceleration, s.AgentVersion = r.Acceleration, r.Version
	if facts := seen.facts; seen.factsKnown && seen.factsErr == nil {
		s.LibvirtVersion, s.QEMUVersion, s.CPUs = facts.LibvirtVersion, facts.QEMUVersion, facts.CPUs
		s.Memory = resource.NewQuantity(facts.Memory, resource.BinarySI)
		s.MachineTypes, s.CPUModels = bounded(facts.MachineTypes, 256), nil
		if v := r.domainCaps(facts); v != nil {
			s.CPUModels = bounded(v.CPUModels, 256)
		}
	}
	ready := condition.Unknown(v1alpha1.ConditionHostReady, v1alpha1.ReasonStarting, "waiting for libvirt to report the host's capabilities")
	if reported := meta.FindStatusCondition(old.Conditions, v1alpha1.ConditionHostReady); reported != nil {
		ready = *reported
	}
	switch {
	case seen.storeErr != nil:
		ready = condition.New(v1alpha1.ConditionHostReady, false, fault.ReasonOf(seen.storeErr), seen.storeErr.Error())
	case seen.factsKnown:
		ready = r.ready(seen)
	}
	s.Problems = nil
	if ready.Status == metav1.ConditionFalse {
		s.Problems = append(s.Problems, v1alpha1.HostProblem{Name: ready.Reason, Blocking: true, Message: ready.Message})
	}
	s.Problems = append(s.Problems, problems(r.checks(seen, s.CPUs), old.Problems)...)
	wellConfigured := condition.New(v1alpha1.ConditionWellConfigured, true, v1alpha1.ReasonWellConfigured, "")
	if len(s.Problems) > 0 {
		wellConfigured = condition.New(v1alpha1.ConditionWellConfigured, false, v1alpha1.ReasonMisconfigured, s.Problems[0].Message)
	}
	s.Conditions = condition.MergeTransitionTimes([]metav1.Condition{ready, wellConfigured}, old.Conditions, seen.host.Generation, r.Now())
	if ready.Status != metav1.ConditionTrue || !seen.factsKnown {
		return s, notReadyResyncPeriod
	}
	return s, resyncPeriod
}

func (r *Reconciler) domainCaps(facts libvirtd.HostFacts) *libvirtd.DomainCaps {
	if r.Acceleration == v1alpha1.AccelerationEmulation {
		return facts.Emulation
	}
	return facts.KVM
}

// ready says whether guests can start here.
func (r *Reconciler) ready(seen *snapshot) metav1.Condition {
	notReady := func(reason v1alpha1.Reason, format string, args ...any) metav1.Condition {
		return condition.New(v1alpha1.ConditionHostReady, false, reason, fmt.Sprintf(format, args...))
	}
	missing := ""
	if r.RequireConfinement {
		missing = unconfined(checkConfinement(seen.qemuConf, seen.facts, nil))
	}
	switch facts, kernel := seen.facts, seen.status.KernelVersion; {
	case olderThan(kernel, minKernel):
		return notReady(v1alpha1.ReasonKernelTooOld, "the kernel is %s: Berth needs %s or newer", kernel, minKernel)
	case seen.factsErr != nil:
		return notReady(v1alpha1.ReasonLibvirtUnreachable, "%v", seen.factsErr)
	case olderThan(facts.LibvirtVersion, minLibvirt):
		return notReady(v1alpha1.ReasonLibvirtTooOld, "libvirt is %s: Berth needs %s or newer", facts.LibvirtVersion, minLibvirt)
	case olderThan(facts.QEMUVersion, minQEMU):
		return notReady(v1alpha1.ReasonLibvirtTooOld, "QEMU is %s: Berth needs %s or newer", facts.QEMUVersion, minQEMU)
	case facts.StateDirInaccessible != nil:
		return notReady(v1alpha1.ReasonStateDirInaccessible, "%v: it must be traversable by others (chmod o+x; on Debian dpkg-statoverride --update --add libvirt-qemu libvirt-qemu 0751 /var/lib/libvirt/qemu)", facts.StateDirInaccessible)
	case r.Acceleration == v1alpha1.AccelerationKVM && facts.KVM == nil:
		return notReady(v1alpha1.ReasonKVMUnavailable, "KVM cannot be used: %v; enable virtualisation in the firmware, load kvm_intel or kvm_amd, and let the group kvm use /dev/kvm; or set agent.acceleration to Emulation", facts.KVMUnavailable)
	case r.domainCaps(facts) == nil:
		return notReady(v1alpha1.ReasonLibvirtTooOld, "QEMU for x86_64 is missing: install qemu-system-x86")
	case missing != "":
		return notReady(v1alpha1.ReasonUnconfined, "agent.requireConfinement refuses this host: %s", missing)
	}
	return condition.New(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady, "")
}

// olderThan compares versions by their numbers alone. One that cannot be read is not older.
func olderThan(have, least string) bool {
	v, err := version.ParseGeneric(have)
	return err == nil && v.LessThan(version.MustParseGeneric(least))
}
