package plan

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
)

// ran is a VirtualMachine whose guest was reported as running.
func ran(vm *v1alpha1.VirtualMachine) {
	vm.Status.Conditions = []metav1.Condition{condition.New(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted, "")}
}

// unknown is one of which the last word is that nothing is known.
func unknown(vm *v1alpha1.VirtualMachine) {
	vm.Status.Conditions = []metav1.Condition{condition.Unknown(v1alpha1.ConditionRunning, v1alpha1.ReasonLibvirtUnreachable, "")}
}

// poweredOff is one that is said to have powered off some time ago.
func poweredOff(vm *v1alpha1.VirtualMachine) {
	vm.Status.LastExit = exitOf(Exit{Reason: v1alpha1.ReasonPoweredOff}, now.Add(-30*time.Minute))
}

// justEnded is one that is said to have panicked, now.
func justEnded(vm *v1alpha1.VirtualMachine) {
	vm.Status.LastExit = exitOf(Exit{Reason: v1alpha1.ReasonGuestPanicked, Code: 134}, now)
}

// endedAt is a berth of which kubelet says that its guest panicked, in a container that began then.
func endedAt(at, began time.Time) func(*Berth) {
	return func(b *Berth) {
		b.LastExit = &Exit{Reason: v1alpha1.ReasonGuestPanicked, Code: 134, ReportedAt: at, Began: began}
	}
}

// lastingEnds are the memories of cases in which a state has lasted, by their names.
var lastingEnds = map[string]Memory{
	"a shim that was killed, of which kubelet says nothing":       {exitUnknown: now.Add(-exitUnknownLimit)},
	"nor before kubelet says how it ended, if no agent was there": {exitUnknown: now.Add(-(exitUnknownLimit - time.Second))},
	"or does not": {exitUnknown: now.Add(-exitUnknownLimit)},
}

func TestReport(t *testing.T) {
	errUnreadable := fault.NewTransient(v1alpha1.ReasonStoreFailed, errors.New("input/output error"))
	bound := func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Disks = []v1alpha1.DiskStatus{{Name: "root", Image: "registry/web:1"}}
	}
	diskless := func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks = nil }
	notFound := fault.NewUser(v1alpha1.ReasonImageNotFound, errors.New("no such image"))
	gone := Have{Domain: DomainAbsent, Process: ProcessNone}
	tests := []struct {
		name    string
		want    Want
		have    Have
		failure error
		running string // status and reason of the condition
		disks   string
		exit    v1alpha1.Reason
		at      time.Time // of the exit, if it matters
		freed   types.UID
		wait    bool
	}{
		{
			name: "a guest that runs", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true}, Disks: []machine.Disk{{Name: "root"}}},
			running: "True Started", disks: "True DisksReady",
		},
		{
			name: "one whose shim has not spoken yet to an agent that has just begun", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Disks: []machine.Disk{{Name: "root"}}},
			running: "True Started", disks: "True DisksReady",
		},
		{
			name: "a start that goes well is not worth a word", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAbsent, Disks: []machine.Disk{{Name: "root"}}},
			running: "False Starting", disks: "True DisksReady", wait: true,
		},
		{
			name: "until it takes long", want: Want{VM: vm(), Berth: fresh(func(b *Berth) { b.Created = now.Add(-time.Minute) })},
			have:    Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAbsent, Disks: []machine.Disk{{Name: "root"}}},
			running: "False Starting", disks: "True DisksReady",
		},
		{
			name: "a pull is told at once", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImagePulling)},
			running: "False Starting", disks: "False PullingImage",
		},
		{
			name: "so is an image that does not exist", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: map[string]Image{"root": {State: ImageFailed, Err: notFound}}},
			running: "False Starting", disks: "False ImageNotFound",
		},
		{
			name: "which a new attempt does not hide", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: map[string]Image{"root": {State: ImagePulling, Err: notFound}}},
			running: "False Starting", disks: "False ImageNotFound",
		},
		{
			name: "a step that failed for the disk's sake", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			failure: fault.NewUser(v1alpha1.ReasonDiskTooSmall, errors.New("too small")),
			running: "False Starting", disks: "False DiskTooSmall",
		},
		{
			name: "a step that failed for another", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			failure: fault.NewUser(v1alpha1.ReasonDomainNameTaken, errors.New("taken")),
			running: "False DomainNameTaken", disks: "True DisksReady",
		},
		{
			name: "a libvirtd that does not answer", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Unknown: fault.NewTransient(v1alpha1.ReasonLibvirtUnreachable, errors.New("no answer"))},
			running: "Unknown LibvirtUnreachable", disks: "False DisksReady",
		},
		{
			name: "a power-off", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Attached: true, Exiting: true}, Exit: &Exit{Reason: v1alpha1.ReasonPoweredOff}},
			running: "False PoweredOff", disks: "True DisksReady", exit: v1alpha1.ReasonPoweredOff,
		},
		{
			name: "an end that the shim was told, though the status says already that nothing runs", want: Want{VM: vm(), Berth: fresh(used, finished)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Exit: &Exit{Reason: v1alpha1.ReasonPoweredOff, ReportedAt: now}},
			running: "False PoweredOff", disks: "True DisksReady", exit: v1alpha1.ReasonPoweredOff,
		},
		{
			name: "a QEMU that is about to end", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true}},
			running: "False Starting", disks: "True DisksReady", wait: true,
		},
		{
			name: "a shim that was killed, of which kubelet says nothing", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Exit: &Exit{Reason: v1alpha1.ReasonDestroyed, Code: 137}},
			running: "False ShimLost", disks: "True DisksReady", exit: v1alpha1.ReasonShimLost,
		},
		{
			name: "one whose berth is no more, so that kubelet will say nothing", want: Want{VM: vm(ran), Vanished: "pod-1"},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Exit: &Exit{Reason: v1alpha1.ReasonDestroyed, Code: 137}},
			running: "False NotRunning", disks: "True DisksReady", exit: v1alpha1.ReasonShimLost, freed: "pod-1",
		},
		{
			name: "a QEMU that was killed with its shim waits for kubelet's word", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Exit: &Exit{Reason: v1alpha1.ReasonQEMUFailed, Code: 1}},
			running: "False NotRunning", disks: "True DisksReady", wait: true,
		},
		{
			name: "which knows of the memory that it had too little of", want: Want{VM: vm(ran), Berth: fresh(used, func(b *Berth) { b.LastExit = &Exit{Reason: v1alpha1.ReasonOOMKilled, Code: 137, ReportedAt: now} })},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Exit: &Exit{Reason: v1alpha1.ReasonQEMUFailed, Code: 1}},
			running: "False OOMKilled", disks: "True DisksReady", exit: v1alpha1.ReasonOOMKilled,
		},
		{
			name: "a shim that kubelet killed when the grace period was over", want: Want{VM: vm(ran), Berth: fresh(used, ending, func(b *Berth) { b.LastExit = &Exit{Reason: ForcedOff.Reason, Code: 137, ReportedAt: now} })},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Exit: &Exit{Reason: v1alpha1.ReasonDestroyed, Code: 137}},
			running: "False ForcedOff", disks: "True DisksReady", exit: v1alpha1.ReasonForcedOff, freed: "pod-1",
		},
		{
			name: "an end that only kubelet has told of, since the API server was away", want: Want{VM: vm(ran), Berth: fresh(used, endedAt(now.Add(-time.Minute), time.Time{}))},
			have:    Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}},
			running: "True Started", disks: "True DisksReady", exit: v1alpha1.ReasonGuestPanicked,
		},
		{
			name: "an end that kubelet tells of again", want: Want{VM: vm(ran, poweredOff), Berth: fresh(used, endedAt(now.Add(-time.Hour), time.Time{}))},
			have:    Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}},
			running: "True Started", disks: "True DisksReady", exit: v1alpha1.ReasonPoweredOff,
		},
		{
			name: "or tells of later than the status does", want: Want{VM: vm(ran, justEnded), Berth: fresh(used, endedAt(now.Add(5*time.Second), now.Add(-time.Hour)))},
			have:    Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}},
			running: "True Started", disks: "True DisksReady", exit: v1alpha1.ReasonGuestPanicked, at: now,
		},
		{
			name: "but not one of a container that began after it", want: Want{VM: vm(ran, justEnded), Berth: fresh(used, endedAt(now.Add(5*time.Second), now.Add(time.Second)))},
			have:    Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}},
			running: "True Started", disks: "True DisksReady", exit: v1alpha1.ReasonGuestPanicked, at: now.Add(5 * time.Second),
		},
		{
			name: "an ending berth is released when nothing is left in it", want: Want{VM: vm(ran), Berth: fresh(used, ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Attached: true, Exiting: true, Terminating: true}, Exit: &Exit{Reason: v1alpha1.ReasonPoweredOff}},
			running: "False ShutDown", disks: "True DisksReady", exit: v1alpha1.ReasonShutDown, freed: "pod-1",
		},
		{
			name: "so is one whose pod is no more", want: Want{VM: vm(ran), Vanished: "pod-1"},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1",
		},
		{
			name: "but not before its guest is", want: Want{VM: vm(ran), Vanished: "pod-1"},
			have:    Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}},
			running: "True Started", disks: "False DisksReady",
		},
		{
			name: "nor before kubelet says how it ended, if no agent was there", want: Want{VM: vm(ran), Berth: fresh(ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1", wait: true,
		},
		{
			name: "nor if nobody knew of it when it ended", want: Want{VM: vm(unknown), Berth: fresh(ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1", wait: true,
		},
		{
			name: "which it does", want: Want{VM: vm(ran), Berth: fresh(used, ending, endedAt(now, time.Time{}))},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False GuestPanicked", disks: "False DisksReady", exit: v1alpha1.ReasonGuestPanicked, freed: "pod-1",
		},
		{
			name: "or does not", want: Want{VM: vm(ran), Berth: fresh(ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1",
		},
		{
			name: "not while a process is left", want: Want{VM: vm(ran), Berth: fresh(used, ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessInContainer, Container: ContainerAlive},
			running: "False NotRunning", disks: "False DisksReady",
		},
		{
			name: "not while that is unknown", want: Want{VM: vm(ran), Berth: fresh(used, ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Unknown: errors.New("?")},
			running: "Unknown InternalError", disks: "True DisksReady",
		},
		{
			name: "a deleted guest without disks", want: Want{VM: vm(deleted), Berth: fresh(ending)}, have: gone,
			running: "False NotRunning", disks: "False DisksRemoved", freed: "pod-1",
		},
		{
			name: "a shim that broke the protocol before it had its guest", want: Want{VM: vm(), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, ShimSilent: true, ShimBroken: true},
			running: "False ShimProtocolError", disks: "True DisksReady",
		},
		{
			name: "one whose guest runs", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, ShimSilent: true, ShimBroken: true},
			running: "True Started", disks: "True DisksReady",
		},
		{
			name: "an altered berth", want: Want{VM: vm(), Berth: fresh(altered)}, have: gone,
			running: "False BerthMutated", disks: "False DisksReady",
		},
		{
			name: "a shim that was told to end without a guest: that is no end of one", want: Want{VM: vm(), Berth: fresh(used, ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Exit: &Exit{Reason: v1alpha1.ReasonNotRunning, ReportedAt: now}},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1",
		},
		{
			name: "the end of a guest whose disks cannot be read: one may be kept that nobody knows of", want: Want{VM: vm(), Berth: fresh(used, ending)},
			have:    Have{StartUnknown: errUnreadable, Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False StoreFailed",
		},
		{
			name: "and of one whose disks bind it to the node", want: Want{VM: vm(bound), Berth: fresh(used, ending)},
			have:    Have{StartUnknown: errUnreadable, Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False StoreFailed", freed: "pod-1",
		},
		{
			name: "and of one that keeps none", want: Want{VM: vm(diskless), Berth: fresh(used, ending)},
			have:    Have{StartUnknown: errUnreadable, Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False StoreFailed", freed: "pod-1",
		},
		{
			name: "an outdated berth", want: Want{VM: vm(), Berth: fresh(used, drifted)}, have: gone,
			running: "False BerthOutdated", disks: "False DisksReady",
		},
		{
			name: "an outdated shim", want: Want{VM: vm(), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Lacks: []string{"dhcp"}}},
			running: "False ShimOutdated", disks: "False DisksReady",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.have.Disks == nil && tt.disks == "True DisksReady" {
				tt.have.Disks = []machine.Disk{{Name: "root"}}
			}
			s, wait := Report(resolved(t, tt.want), tt.have, lastingEnds[tt.name], tt.failure, now)
			for _, c := range s.Conditions {
				if !v1alpha1.Reason(c.Reason).StandsIn(c.Type) {
					t.Errorf("the table of reasons does not have %s in %s", c.Reason, c.Type)
				}
			}
			if s.LastExit != nil && !s.LastExit.Reason.StandsIn(v1alpha1.InLastExit) {
				t.Errorf("the table of reasons does not have %s in lastExit", s.LastExit.Reason)
			}
			say := func(kind string) string {
				c := meta.FindStatusCondition(s.Conditions, kind)
				return string(c.Status) + " " + c.Reason
			}
			if got := say(v1alpha1.ConditionRunning); got != tt.running {
				t.Errorf("Running is %s, want %s", got, tt.running)
			}
			if got := say(v1alpha1.ConditionDisksReady); got != tt.disks {
				t.Errorf("DisksReady is %s, want %s", got, tt.disks)
			}
			if s.LastExit == nil != (tt.exit == "") || s.LastExit != nil && s.LastExit.Reason != tt.exit {
				t.Errorf("last exit is %+v, want %q", s.LastExit, tt.exit)
			}
			if !tt.at.IsZero() && !s.LastExit.Time.Time.Equal(tt.at) {
				t.Errorf("last exit was at %s, want %s", s.LastExit.Time, tt.at)
			}
			if s.ReleasedBerth != tt.freed {
				t.Errorf("released %q, want %q", s.ReleasedBerth, tt.freed)
			}
			if wait > 0 != tt.wait {
				t.Errorf("wait is %s, want one: %t", wait, tt.wait)
			}
		})
	}
}

func TestReportKeepsTheTimeOfAnExitThatWasTold(t *testing.T) {
	have := Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Attached: true, Exiting: true}, Exit: &Exit{Reason: v1alpha1.ReasonPoweredOff}}
	web := vm(ran)
	first, _ := Report(Want{VM: web, Berth: fresh()}, have, Memory{}, nil, now)
	web.Status = *first
	second, _ := Report(Want{VM: web, Berth: fresh()}, have, Memory{}, nil, now.Add(time.Minute))
	if !second.LastExit.Time.Equal(&first.LastExit.Time) {
		t.Errorf("the exit moved from %s to %s", first.LastExit.Time, second.LastExit.Time)
	}
}

// The operator makes a new berth where the status says that the kept disks are: a look that failed must not take them away.
func TestReportKeepsWhatCannotBeSeen(t *testing.T) {
	web := vm(ran)
	seen, _ := Report(resolved(t, Want{VM: web, Berth: fresh()}), Have{
		Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true},
		Disks: []machine.Disk{{Name: "root", Image: machine.Image{Reference: "registry/web:1", Digest: "sha256:1"}, Size: 1 << 30}},
		Guest: &v1alpha1.GuestInfo{Hostname: "web"},
	}, Memory{}, nil, now)
	web.Status = *seen
	failed, _ := Report(resolved(t, Want{VM: web, Berth: fresh()}), Have{Unknown: errors.New("no answer")}, Memory{}, nil, now.Add(time.Minute))
	if diff := cmp.Diff(seen.Disks, failed.Disks); diff != "" {
		t.Errorf("disks (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(seen.Guest, failed.Guest); diff != "" {
		t.Errorf("guest (-before +after):\n%s", diff)
	}
	for _, c := range seen.Conditions {
		after := meta.FindStatusCondition(failed.Conditions, c.Type)
		if diff := cmp.Diff(&c, after); diff != "" && c.Type != v1alpha1.ConditionRunning {
			t.Errorf("%s (-before +after):\n%s", c.Type, diff)
		}
	}
}
