package host

import (
	"cmp"
	"errors"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
)

func TestReady(t *testing.T) {
	sound := libvirtd.HostFacts{LibvirtVersion: "9.0.0", QEMUVersion: "7.2.0", KVM: &libvirtd.DomainCaps{}, Emulation: &libvirtd.DomainCaps{}}
	but := func(change func(*libvirtd.HostFacts)) libvirtd.HostFacts {
		facts := sound
		change(&facts)
		return facts
	}
	noKVM := but(func(f *libvirtd.HostFacts) {
		f.KVM, f.KVMUnavailable = nil, errors.New("/dev/kvm is not a device")
	})
	for name, c := range map[string]struct {
		kernel string
		facts  libvirtd.HostFacts
		err    error
		kind   v1alpha1.Acceleration
		reason v1alpha1.Reason
		says   string
	}{
		"all is well":         {facts: sound, reason: v1alpha1.ReasonHostReady},
		"no /dev/kvm":         {facts: noKVM, reason: v1alpha1.ReasonKVMUnavailable, says: "/dev/kvm is not a device; enable virtualisation"},
		"none, and emulation": {facts: noKVM, kind: v1alpha1.AccelerationEmulation, reason: v1alpha1.ReasonHostReady},
		"an old kernel":       {kernel: "5.4.0-150-generic", facts: sound, reason: v1alpha1.ReasonKernelTooOld, says: "the kernel is 5.4.0-150-generic: Berth needs 5.6"},
		"a kernel by itself":  {kernel: "custom", facts: sound, reason: v1alpha1.ReasonHostReady},
		"no libvirtd":         {err: errors.New("libvirtd does not answer: start it"), reason: v1alpha1.ReasonLibvirtUnreachable, says: "start it"},
		"an old libvirt":      {facts: but(func(f *libvirtd.HostFacts) { f.LibvirtVersion = "7.9.0" }), reason: v1alpha1.ReasonLibvirtTooOld, says: "Berth needs 8.0"},
		"an old QEMU":         {facts: but(func(f *libvirtd.HostFacts) { f.QEMUVersion = "6.1.0" }), reason: v1alpha1.ReasonLibvirtTooOld, says: "Berth needs 6.2"},
		"a directory of Debian's": {
			facts: but(func(f *libvirtd.HostFacts) {
				f.StateDirInaccessible = errors.New("/var/lib/libvirt/qemu has mode 0750")
			}),
			reason: v1alpha1.ReasonStateDirInaccessible, says: "mode 0750: it must be traversable by others",
		},
		"emulation, and no QEMU": {facts: but(func(f *libvirtd.HostFacts) { f.Emulation = nil }), kind: v1alpha1.AccelerationEmulation, reason: v1alpha1.ReasonLibvirtTooOld, says: "install qemu-system-x86"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Reconciler{Options: Options{Acceleration: cmp.Or(c.kind, v1alpha1.AccelerationKVM)}}
			got := r.ready(&snapshot{
				status: &v1alpha1.VirtualMachineHostStatus{KernelVersion: cmp.Or(c.kernel, "6.1.0-18-cloud-amd64")},
				facts:  c.facts, factsErr: c.err,
			})
			if (got.Status == metav1.ConditionTrue) != (c.reason == v1alpha1.ReasonHostReady) || got.Reason != string(c.reason) || !strings.Contains(got.Message, c.says) {
				t.Errorf("%s %s: %s; want %s: %s", got.Status, got.Reason, got.Message, c.reason, c.says)
			}
		})
	}
}

func TestConfinementThatIsRequired(t *testing.T) {
	facts := func(models ...string) libvirtd.HostFacts {
		return libvirtd.HostFacts{LibvirtVersion: "9.0.0", QEMUVersion: "7.2.0", KVM: &libvirtd.DomainCaps{}, SecurityModels: models}
	}
	for name, c := range map[string]struct {
		conf     file
		facts    libvirtd.HostFacts
		required bool
		says     string // "" for a host that is ready
	}{
		"all is there":             {file{}, facts("apparmor", "dac"), true, ""},
		"there is no AppArmor":     {file{}, facts("dac"), true, "boot this host with AppArmor"},
		"nor is it required":       {file{}, facts("dac"), false, ""},
		"seccomp is switched off":  {file{text: "seccomp_sandbox = 0"}, facts("apparmor", "dac"), true, "remove seccomp_sandbox"},
		"nobody can tell":          {file{err: errors.New("no")}, facts("apparmor", "dac"), true, "SeccompSandbox cannot be read"},
		"nor does anybody need to": {file{err: errors.New("no")}, facts("apparmor", "dac"), false, ""},
	} {
		r := &Reconciler{Options: Options{Acceleration: v1alpha1.AccelerationKVM, RequireConfinement: c.required}}
		got := r.ready(&snapshot{status: &v1alpha1.VirtualMachineHostStatus{}, facts: c.facts, factsKnown: true, qemuConf: c.conf})
		reason := v1alpha1.ReasonHostReady
		if c.says != "" {
			reason = v1alpha1.ReasonUnconfined
		}
		if got.Reason != string(reason) || !strings.Contains(got.Message, c.says) {
			t.Errorf("%s: %s %s: %s; want %s: %s", name, got.Status, got.Reason, got.Message, reason, c.says)
		}
	}
}

func TestStatus(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	r := &Reconciler{Options: Options{
		Node: "n1", Version: "v1", Acceleration: v1alpha1.AccelerationKVM, UnifiedCgroups: true, Now: func() time.Time { return now },
	}}
	look := func(had *v1alpha1.VirtualMachineHostStatus, change func(*snapshot)) snapshot {
		seen := snapshot{
			host: r.object(), factsKnown: true,
			facts: libvirtd.HostFacts{
				LibvirtVersion: "9.0.0", QEMUVersion: "7.2.0", CPUs: 8, Memory: 1 << 30, MachineTypes: []string{"q35", "pc-q35-7.2", "q35"},
				SecurityModels: []string{"apparmor", "dac"}, KVM: &libvirtd.DomainCaps{CPUModels: []string{"EPYC", "Opteron_G1"}}, Emulation: &libvirtd.DomainCaps{CPUModels: []string{"qemu64"}},
			},
			kubeletErr: process.ErrAbsent, qemuConf: file{text: "cgroup_controllers = []"},
		}
		seen.host.Status = *had.DeepCopy()
		seen.status = had.DeepCopy()
		seen.status.BootID, seen.status.KernelVersion, seen.status.ForeignDomains = "b1", "6.1.0", []string{"a"}
		change(&seen)
		return seen
	}
	seen := look(&v1alpha1.VirtualMachineHostStatus{}, func(*snapshot) {})
	first, wake := r.wantedStatus(&seen)
	ready := condition.New(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady, "")
	sound := condition.New(v1alpha1.ConditionWellConfigured, true, v1alpha1.ReasonWellConfigured, "")
	want := &v1alpha1.VirtualMachineHostStatus{
		Conditions:   condition.MergeTransitionTimes([]metav1.Condition{ready, sound}, nil, 0, now),
		Acceleration: v1alpha1.AccelerationKVM, AgentVersion: "v1", BootID: "b1", KernelVersion: "6.1.0",
		LibvirtVersion: "9.0.0", QEMUVersion: "7.2.0", CPUs: 8, Memory: resource.NewQuantity(1<<30, resource.BinarySI),
		MachineTypes: []string{"pc-q35-7.2", "q35"}, CPUModels: []string{"EPYC", "Opteron_G1"}, ForeignDomains: []string{"a"},
	}
	if diff := gocmp.Diff(want, first); diff != "" || wake != resyncPeriod {
		t.Fatalf("a sound host is looked at after %s, -want +got:\n%s", wake, diff)
	}

	unreachable := errors.New("libvirtd does not answer")
	full := fault.NewTransient(v1alpha1.ReasonStoreFull, errors.New("no space"))
	for name, c := range map[string]struct {
		had    *v1alpha1.VirtualMachineHostStatus
		change func(*snapshot)
		wake   time.Duration
		want   func(*v1alpha1.VirtualMachineHostStatus) // what differs from the first
	}{
		"the same again": {first, func(*snapshot) {}, resyncPeriod, func(*v1alpha1.VirtualMachineHostStatus) {}},
		"libvirtd may be about to come back": {
			first, func(s *snapshot) { s.facts, s.factsKnown, s.factsErr = libvirtd.HostFacts{}, false, unreachable },
			notReadyResyncPeriod, func(*v1alpha1.VirtualMachineHostStatus) {},
		},
		"libvirtd is away": {
			first, func(s *snapshot) {
				s.facts, s.factsErr, s.foreignErr = libvirtd.HostFacts{}, unreachable, unreachable
			}, notReadyResyncPeriod,
			func(s *v1alpha1.VirtualMachineHostStatus) {
				s.Conditions = []metav1.Condition{
					condition.New(v1alpha1.ConditionHostReady, false, v1alpha1.ReasonLibvirtUnreachable, unreachable.Error()),
					condition.New(v1alpha1.ConditionWellConfigured, false, v1alpha1.ReasonMisconfigured, unreachable.Error()),
				}
				s.Problems = []v1alpha1.HostProblem{{Name: "LibvirtUnreachable", Blocking: true, Message: unreachable.Error()}}
			},
		},
		"the store is full, whatever libvirtd says": {
			first, func(s *snapshot) { s.storeErr, s.factsKnown = full, false }, notReadyResyncPeriod,
			func(s *v1alpha1.VirtualMachineHostStatus) {
				s.Conditions = []metav1.Condition{
					condition.New(v1alpha1.ConditionHostReady, false, v1alpha1.ReasonStoreFull, "no space"),
					condition.New(v1alpha1.ConditionWellConfigured, false, v1alpha1.ReasonMisconfigured, "no space"),
				}
				s.Problems = []v1alpha1.HostProblem{{Name: "StoreFull", Blocking: true, Message: "no space"}}
			},
		},
		"a misconfigured host is ready all the same": {
			first, func(s *snapshot) { s.selinux.text = "1\n" }, resyncPeriod,
			func(s *v1alpha1.VirtualMachineHostStatus) {
				const wrong = "SELinux is enforcing, which Berth does not support: it has no policy, so guests may be denied their disks; run guests on hosts without SELinux"
				s.Conditions = []metav1.Condition{ready, condition.New(v1alpha1.ConditionWellConfigured, false, v1alpha1.ReasonMisconfigured, wrong)}
				s.Problems = []v1alpha1.HostProblem{{Name: "SELinux", Message: wrong}}
			},
		},
		"an agent that just began": {
			&v1alpha1.VirtualMachineHostStatus{}, func(s *snapshot) { s.facts, s.factsKnown = libvirtd.HostFacts{}, false }, notReadyResyncPeriod,
			func(s *v1alpha1.VirtualMachineHostStatus) {
				s.LibvirtVersion, s.QEMUVersion, s.CPUs, s.Memory, s.MachineTypes, s.CPUModels = "", "", 0, nil, nil, nil
				s.Conditions = []metav1.Condition{
					condition.Unknown(v1alpha1.ConditionHostReady, v1alpha1.ReasonStarting, "waiting for libvirt to report the host's capabilities"), sound,
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			seen := look(c.had, c.change)
			got, wake := r.wantedStatus(&seen)
			want := first.DeepCopy()
			c.want(want)
			want.Conditions = condition.MergeTransitionTimes(want.Conditions, c.had.Conditions, 0, now)
			if diff := gocmp.Diff(want, got); diff != "" || wake != c.wake {
				t.Errorf("looked at after %s, want %s; status -want +got:\n%s", wake, c.wake, diff)
			}
		})
	}
}
