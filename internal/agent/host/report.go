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

	// hostLook is how often the host is looked at though nothing happened.
	hostLook = 5 * time.Minute
	// troubledLook is the same while no guest can start on it: most of what mends a host cannot be heard.
	troubledLook = 15 * time.Second
)

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinehosts/status,verbs=patch

// report writes the host's status if it differs, and returns when to look again.
func (r *Reconciler) report(ctx context.Context, seen snapshot) (time.Duration, error) {
	want, wake := r.wantedStatus(&seen)
	_, err := r.status.Write(ctx, seen.host, want, &seen.host.Status)
	return wake, err
}

// wantedStatus is what can be said of the host now, and when to look again. What cannot be read stays as it was.
func (r *Reconciler) wantedStatus(seen *snapshot) (*v1alpha1.VirtualMachineHostStatus, time.Duration) {
	had, s := seen.host.Status, seen.status.DeepCopy()
	s.Acceleration, s.AgentVersion = r.Acceleration, r.Version
	if facts := seen.facts; seen.factsKnown && seen.factsErr == nil {
		s.LibvirtVersion, s.QEMUVersion, s.CPUs = facts.LibvirtVersion, facts.QEMUVersion, facts.CPUs
		s.Memory = resource.NewQuantity(facts.Memory, resource.BinarySI)
		s.MachineTypes, s.CPUModels = bounded(facts.MachineTypes, 256), nil
		if v := r.virt(facts); v != nil {
			s.CPUModels = bounded(v.CPUModels, 256)
		}
	}
	ready := condition.Unknown(v1alpha1.ConditionHostReady, v1alpha1.ReasonStarting, "libvirt is asked what this host can do")
	if old := meta.FindStatusCondition(had.Conditions, v1alpha1.ConditionHostReady); old != nil {
		ready = *old
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
	s.Problems = append(s.Problems, problems(r.checks(seen, s.CPUs), had.Problems)...)
	sound := condition.New(v1alpha1.ConditionWellConfigured, true, v1alpha1.ReasonWellConfigured, "")
	if len(s.Problems) > 0 {
		sound = condition.New(v1alpha1.ConditionWellConfigured, false, v1alpha1.ReasonMisconfigured, s.Problems[0].Message)
	}
	s.Conditions = condition.Carry([]metav1.Condition{ready, sound}, had.Conditions, seen.host.Generation, r.Now())
	if ready.Status != metav1.ConditionTrue || !seen.factsKnown {
		return s, troubledLook
	}
	return s, hostLook
}

func (r *Reconciler) virt(facts libvirtd.HostFacts) *libvirtd.Virt {
	if r.Acceleration == v1alpha1.AccelerationEmulation {
		return facts.Emulation
	}
	return facts.KVM
}

// ready says whether guests can start here.
func (r *Reconciler) ready(seen *snapshot) metav1.Condition {
	no := func(reason v1alpha1.Reason, format string, args ...any) metav1.Condition {
		return condition.New(v1alpha1.ConditionHostReady, false, reason, fmt.Sprintf(format, args...))
	}
	switch facts, kernel := seen.facts, seen.status.KernelVersion; {
	case olderThan(kernel, minKernel):
		return no(v1alpha1.ReasonKernelTooOld, "the kernel is %s: Berth needs %s", kernel, minKernel)
	case seen.factsErr != nil:
		return no(v1alpha1.ReasonLibvirtUnreachable, "%v", seen.factsErr)
	case olderThan(facts.LibvirtVersion, minLibvirt):
		return no(v1alpha1.ReasonLibvirtTooOld, "libvirt is %s: Berth needs %s", facts.LibvirtVersion, minLibvirt)
	case olderThan(facts.QEMUVersion, minQEMU):
		return no(v1alpha1.ReasonLibvirtTooOld, "QEMU is %s: Berth needs %s", facts.QEMUVersion, minQEMU)
	case facts.StateDirClosed != nil:
		return no(v1alpha1.ReasonStateDirClosed, "%v: let others pass by dpkg-statoverride --update --add libvirt-qemu libvirt-qemu 0751 /var/lib/libvirt/qemu, or by chmod o+x where there is no dpkg", facts.StateDirClosed)
	case r.Acceleration == v1alpha1.AccelerationKVM && facts.KVM == nil:
		return no(v1alpha1.ReasonKVMUnavailable, "KVM cannot be used: %v; enable virtualisation in the firmware, load kvm_intel or kvm_amd, and let the group kvm use /dev/kvm; or set agent.acceleration to Emulation", facts.WhyNoKVM)
	case r.virt(facts) == nil:
		return no(v1alpha1.ReasonLibvirtTooOld, "QEMU for x86_64 is missing: install qemu-system-x86")
	}
	return condition.New(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady, "")
}

// olderThan compares versions by their numbers alone. One that cannot be read is not older.
func olderThan(have, least string) bool {
	v, err := version.ParseGeneric(have)
	return err == nil && v.LessThan(version.MustParseGeneric(least))
}
